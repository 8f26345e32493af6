"""Carry out one shard, once: a digest of code version, configuration and inputs is its key, and `done.json` in its folder the marker.

The folder appears by one rename, marker and all, so a run that is killed anywhere leaves whole shards or none. A key that differs (other
config, other files, an earlier shard done anew) means the shard is done again, and then whatever reads it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.core import url_to_fs

from herd.base.atomic import atomic_directory
from herd.base.errors import ConfigError, HerdError, NotFoundError, from_dict
from herd.data.executor.plan import DONE_FILE, Plan, Shard, Step, Task, inputs_of
from herd.version import __version__

Report = dict[str, Any]
Function = Callable[[Task], Mapping[str, Any]]

_SAMPLE_BYTES = 2**20


def canonical(value: Any) -> bytes:
    """A value as JSON of one spelling: what digests are made of."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def file_identity(url: str) -> list[Any]:
    """What tells one state of a source file from another: size, time of change where there is one, its first and last MiB.

    Raises NotFoundError if it is not there.
    """
    filesystem, path = cast("tuple[fsspec.AbstractFileSystem, str]", url_to_fs(url))
    try:
        about = filesystem.info(path)
        size = int(about["size"])
        with filesystem.open(path, "rb") as file:
            head = file.read(_SAMPLE_BYTES)
            file.seek(max(0, size - _SAMPLE_BYTES))
            tail = file.read(_SAMPLE_BYTES)
    except (OSError, ValueError) as error:
        raise NotFoundError(f"cannot read {url}: {error}", hint="check the path, or the address and its credentials") from error
    changed = about.get("mtime") or about.get("LastModified") or about.get("ETag") or ""
    return [size, str(changed), _digest(cast("bytes", head)), _digest(cast("bytes", tail))]


def read_done(folder: Path) -> dict[str, Any] | None:
    """The marker of a finished shard, or None."""
    try:
        done = json.loads((folder / DONE_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    whole = all((folder / name).is_file() and (folder / name).stat().st_size == size for name, (size, _) in done["files"].items())
    return done if whole else None


def shard_key(plan: Plan, step: Step, shard: Shard, folder: Path) -> str:
    """The key of a shard as things stand. Raises NotFoundError if something that it comes after is not done."""
    before: list[list[str]] = []
    for name, folders in inputs_of(plan, shard, folder).items():
        for path in folders:
            done = read_done(path)
            if done is None:
                raise NotFoundError(f"step {step.name} needs {name}/{path.name}, which is not done", hint="run the earlier steps first")
            before.append([name, path.name, _digest(canonical(done))])
    files = [file_identity(url) for url in shard.files]
    return _digest(canonical([__version__, step.function, step.config, shard.name, list(shard.files), files, before]))


def load_function(name: str) -> Function:
    """The function that a step names. Raises ConfigError if there is none."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"there is no function {name!r}: {error}", hint="a step names package.module:function") from error


def is_done(plan: Plan, step: Step, number: int, folder: Path) -> bool:
    """Whether a shard's folder holds what its step would make now."""
    done = read_done(folder / step.name / step.shards[number].name)
    return done is not None and done["key"] == shard_key(plan, step, step.shards[number], folder)


def run_shard(plan: Plan, name: str, number: int, folder: Path) -> bool:
    """Carry out one shard unless it is done; says whether there was anything to do."""
    step = plan.step(name)
    shard = step.shards[number]
    key = shard_key(plan, step, shard, folder)
    target = folder / step.name / shard.name
    done = read_done(target)
    if done is not None and done["key"] == key:
        return False
    function = load_function(step.function)
    with atomic_directory(target, overwrite=True) as output:
        inputs = inputs_of(plan, shard, folder)
        task = Task(name=shard.name, number=number, config=step.config, files=shard.files, inputs=inputs, output=output)
        try:
            report = dict(function(task))
        except HerdError as error:
            placed = {**error.to_dict(), "message": f"step {step.name}, shard {shard.name}: {error.message}"}
            raise from_dict(placed) from error
        files = {str(path.relative_to(output)): _file_digest(path) for path in sorted(output.rglob("*")) if path.is_file()}
        (output / DONE_FILE).write_bytes(canonical({"key": key, "files": files, "report": report}))
    return True


def _file_digest(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()]


def reports(plan: Plan, name: str, folder: Path) -> list[Report]:
    """The reports of a finished step, in the order of its shards. Raises NotFoundError if one is not done."""
    found: list[Report] = []
    for shard in plan.step(name).shards:
        done = read_done(folder / name / shard.name)
        if done is None:
            raise NotFoundError(f"shard {name}/{shard.name} is not done", hint="run the plan to its end first: herd data run PLAN")
        found.append(done["report"])
    return found
