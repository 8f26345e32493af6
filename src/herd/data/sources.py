"""Which files a run reads: paths, folders, globs and URLs become a sorted list of files, the same one on every machine.

Knows names, not contents.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from fsspec.core import url_to_fs

from herd.base.errors import NotFoundError
from herd.data.records import ENDINGS


def expand(patterns: Iterable[str | Path]) -> list[str]:
    """Every file that the patterns name, each once: those of a pattern sorted, patterns in their order.

    A pattern is a file, a folder (all files of records below it), a glob, or any of them as a URL. Raises NotFoundError for one that
    names nothing.
    """
    found: dict[str, None] = {}
    for pattern in map(str, patterns):
        members = _remote(pattern) if "://" in pattern else _local(pattern)
        if not members:
            raise NotFoundError(f"there is no file of records at {pattern}", hint=f"files end in {', '.join(ENDINGS)}")
        found |= dict.fromkeys(members)
    return list(found)


def _local(pattern: str) -> list[str]:
    path = Path(pattern)
    if path.is_dir():
        return sorted(str(member) for member in path.rglob("*") if member.is_file() and member.name.lower().endswith(ENDINGS))
    if path.exists() or not any(mark in pattern for mark in "*?["):
        return [pattern] if path.is_file() else []
    root = Path(path.anchor or ".")
    return sorted(str(member) for member in root.glob(str(path.relative_to(path.anchor))) if member.is_file())


def _remote(pattern: str) -> list[str]:
    filesystem, path = cast("tuple[Any, str]", url_to_fs(pattern))
    try:
        if filesystem.isdir(path):
            names = [name for name in filesystem.find(path) if name.lower().endswith(ENDINGS)]
        else:
            names = filesystem.glob(path) if any(mark in path for mark in "*?[") else [path] if filesystem.exists(path) else []
    except OSError as error:
        raise NotFoundError(f"cannot list {pattern}: {error}", hint="check the address and its credentials") from error
    return sorted(filesystem.unstrip_protocol(name) for name in names)
