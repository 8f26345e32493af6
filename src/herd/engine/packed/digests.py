"""What is noted of a checkpoint folder, so that it is not read again only to find its packed weights. No torch.

The SHA-256 of each of its files beside size, inode and time of change, which spare hashing it as long as all three are the same; and the
dtype that its weights are stored in, once that is known.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from herd.base.atomic import atomic_file
from herd.base.errors import HerdError
from herd.checkpoint.hf_config import CONFIG_FILE
from herd.engine.packed.names import NOTES_SUFFIX, packed_dir

_DTYPE = "dtype"
"""The name in the notes that is no file's."""


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
