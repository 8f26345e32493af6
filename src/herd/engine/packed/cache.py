"""Packed weights of checkpoints, kept in `HERD_HOME/packed`, so that a second start neither reads nor packs the first one's again.

    KEY.herdpack     the weights; KEY is the SHA-256 of the checkpoint's files, the dtype and the layout of the packed bytes
    NAME.digests     of a checkpoint folder: the SHA-256 of each of its files beside size, inode and time of change, which spare hashing it
                     again as long as all three are the same

What is damaged or of another layout is made anew; the files used longest ago go once all together pass `HERD_PACKED_BYTES` (default 32 GiB;
0 keeps none and packs in memory at each start). Quantised checkpoints alone are kept: 16-bit ones are mapped from their own files.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import torch

from herd.base.atomic import atomic_file
from herd.base.errors import ConfigError, HerdError
from herd.base.log import get_logger
from herd.base.memory import gib
from herd.base.paths import home
from herd.checkpoint.hf import CONFIG_FILE
from herd.checkpoint.hf_config import config_from_json
from herd.checkpoint.json_file import read_json_object
from herd.checkpoint.load import as_dtype, load_model
from herd.checkpoint.quant_hf import is_quantised
from herd.engine.packed.file import LAYOUT, Damaged, read, write
from herd.engine.packed.weights import PackedModel, pack_model
from herd.engine.runner import runs_in_c
from herd.kernels import dispatch
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer

log = get_logger(__name__)
DEFAULT_BYTES = 32 * 2**30
SUFFIX = ".herdpack"


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


def load_for_engine(path: Path, *, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu") -> Transformer:
    """A model for `build_engine`: mapped from its packed file where there is one, else loaded, and packed into a file for the next time.

    As `load_model` where the checkpoint is not quantised, or C does not run here. Raises as `load_model`.
    """
    wanted = torch.bfloat16 if dtype is None else as_dtype(dtype)
    folder = path.is_dir() and (path / CONFIG_FILE).is_file() and is_quantised(path)
    limit = limit_bytes()
    if not folder or not limit or torch.device(device).type != "cpu" or dispatch.native(torch.device("cpu"), wanted) is None:
        return load_model(path, dtype=dtype, device=device)
    target = packed_dir() / f"{_key(path, wanted)}{SUFFIX}"
    config = config_from_json(read_json_object(path / CONFIG_FILE), CONFIG_FILE, accept_quantised=True)
    found = _open(target, config, wanted)
    if found is not None:
        return found
    model = load_model(path, dtype=dtype, device=device)
    if not runs_in_c(model):
        return model
    try:
        write(target, pack_model(model), {"dtype": str(wanted).removeprefix("torch."), "of": path.name, "folder": str(path.resolve())})
    except (OSError, HerdError) as error:
        log.warning("the packed weights of %s are not kept: %s", path.name, error)
        return model
    make_room(limit, keep=target)
    return _open(target, config, wanted) or model


def _open(target: Path, config: ModelConfig, dtype: torch.dtype) -> PackedModel | None:
    """The packed model, or None; a damaged file goes."""
    try:
        weights, _ = read(target)
    except FileNotFoundError:
        return None
    except (Damaged, OSError, ValueError, KeyError, TypeError, RuntimeError, HerdError) as error:
        log.warning("packed weights %s are made anew: %s", target.name, error)
        target.unlink(missing_ok=True)
        return None
    with suppress(OSError):
        os.utime(target)
    return PackedModel(config, weights, dtype=dtype, digest=target.stem)


def make_room(limit: int, *, keep: Path | None = None) -> list[Path]:
    """Delete what was used longest ago until the rest is within `limit` bytes; `keep` stays. What was deleted."""
    files = sorted(packed_dir().glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
    total, gone = sum(path.stat().st_size for path in files), []
    for path in files:
        if total <= limit or path == keep:
            continue
        total -= path.stat().st_size
        path.unlink(missing_ok=True)
        gone.append(path)
        log.info("deleted packed weights %s, used longest ago: all of them are to stay within %s", path.name, gib(limit))
    return gone


def _key(folder: Path, dtype: torch.dtype) -> str:
    """What names the packed weights of a folder: the content of its files, dtype and layout."""
    digests = _digests(folder)
    facts = json.dumps({"files": digests, "dtype": str(dtype), "layout": LAYOUT}, sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of config and weights by name; of a file whose size, inode and time of change are known, the known one."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    notes = packed_dir() / f"{name}.digests"
    known: dict[str, list[object]] = {}
    with suppress(OSError, ValueError):
        known = json.loads(notes.read_text(encoding="utf-8"))
    found: dict[str, list[object]] = {}
    for path in sorted([*folder.glob("*.safetensors"), folder / CONFIG_FILE]):
        stat = path.stat()
        facts = [stat.st_size, stat.st_ino, stat.st_mtime_ns]
        old = known.get(path.name)
        if isinstance(old, list) and old[:3] == facts and len(old) == 4:
            found[path.name] = old
            continue
        with path.open("rb") as file:
            found[path.name] = [*facts, hashlib.file_digest(file, "sha256").hexdigest()]
    if found != known:
        with suppress(OSError, HerdError):
            notes.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(notes) as temporary:
                temporary.write_text(json.dumps(found), encoding="utf-8")
    return {name: str(facts[3]) for name, facts in found.items()}
