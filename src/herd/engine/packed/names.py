"""Where packed weights are kept and what they are called. No torch.

KEY.herdpack     the weights; KEY is the SHA-256 of the checkpoint's files, the dtype and the layout of the packed bytes
NAME.digests     of a checkpoint folder: the SHA-256 of each of its files beside size, inode and time of change, which spare hashing it
again as long as all three are the same; and the dtype that its weights are stored in, once that is known
NAME.angles      the cosines and sines of positions, see `angles`
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from herd.base.atomic import atomic_file
from herd.base.errors import ConfigError, HerdError
from herd.base.paths import home
from herd.checkpoint.hf_config import CONFIG_FILE
from herd.engine.packed.file import LAYOUT

DEFAULT_BYTES = 32 * 2**30
SUFFIX, NOTES_SUFFIX, ANGLES_SUFFIX = ".herdpack", ".digests", ".angles"
_DTYPE = "dtype"
"""The name in the notes that is no file's."""


def packed_dir() -> Path:
    """Where the files are."""
    return home() / "packed"


def limit_bytes() -> int:
    """What they may take together. Raises ConfigError where `HERD_PACKED_BYTES` is no number of bytes."""
    text = os.environ.get("HERD_PACKED_BYTES")
    if not text:
        return DEFAULT_BYTES
    if not text.isdecimal():
        raise ConfigError(f"HERD_PACKED_BYTES={text!r} is no number of bytes", hint="give a whole number, or 0 to keep no packed weights")
    return int(text)


def name_of(facts: Any) -> str:
    """32 hexadecimal digits for what JSON can tell."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def target_of(digests: dict[str, str], dtype: str) -> Path:
    """The file for the packed weights of a checkpoint of these files, in a dtype."""
    return packed_dir() / f"{name_of({'files': digests, 'dtype': f'torch.{dtype}', 'layout': LAYOUT})}{SUFFIX}"


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of config and weights by name; of a file whose size, inode and time of change are known, the known one."""
    known = _notes(folder)
    found: dict[str, Any] = {}
    for path in _files(folder):
        facts = _facts(path)
        old = known.get(path.name)
        if isinstance(old, list) and old[:3] == facts and len(old) == 4:
            found[path.name] = old
            continue
        with path.open("rb") as file:
            found[path.name] = [*facts, hashlib.file_digest(file, "sha256").hexdigest()]
    if found != {name: facts for name, facts in known.items() if name != _DTYPE}:
        _note(folder, found)
    return {name: str(facts[3]) for name, facts in found.items()}


def known_digests(folder: Path) -> tuple[dict[str, str], str | None] | None:
    """As `digests_of`, and the dtype of the stored weights if it was noted; None where anything would have to be hashed."""
    known = _notes(folder)
    found: dict[str, str] = {}
    for path in _files(folder):
        old = known.get(path.name)
        try:
            if not isinstance(old, list) or len(old) != 4 or old[:3] != _facts(path):
                return None
        except OSError:
            return None
        found[path.name] = str(old[3])
    dtype = known.get(_DTYPE)
    return found, dtype if isinstance(dtype, str) else None


def note_dtype(folder: Path, dtype: str) -> None:
    """Note what the weights of a folder are stored in. The digests have been noted before."""
    known = _notes(folder)
    if known.get(_DTYPE) != dtype:
        _note(folder, {**known, _DTYPE: dtype})


def _files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.safetensors"), folder / CONFIG_FILE])


def _facts(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns]


def _notes_path(folder: Path) -> Path:
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return packed_dir() / f"{name}{NOTES_SUFFIX}"


def _notes(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(_notes_path(folder).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _note(folder: Path, found: dict[str, Any]) -> None:
    path = _notes_path(folder)
    with suppress(OSError, HerdError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")
