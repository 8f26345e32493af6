"""The packed weights that are kept: what each is of, its size and when it was last used; and deleting them. Reads headers, no weights."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.engine.packed.file import LAYOUT, Damaged, read_header
from herd.engine.packed.names import ANGLES_SUFFIX, NOTES_SUFFIX, SUFFIX, packed_dir


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A file of packed weights. `stale` says why it will not be used again, empty where it will; a run that maps it holds it open."""

    path: Path
    model: str
    folder: str | None
    dtype: str | None
    size_bytes: int
    used_s_ago: float
    stale: str

    @property
    def name(self) -> str:
        """The key, without the ending."""
        return self.path.name.removesuffix(SUFFIX)


def kept(now: float | None = None) -> list[Kept]:
    """All of them, the last used first."""
    found = []
    for path in packed_dir().glob(f"*{SUFFIX}"):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # another process has just deleted it
        facts, stale = _facts(path)
        age = (time.time() if now is None else now) - stat.st_mtime
        found.append(
            Kept(
                path=path,
                model=str(facts.get("of", "?")),
                folder=facts.get("folder"),
                dtype=facts.get("dtype"),
                size_bytes=stat.st_size,
                used_s_ago=max(age, 0.0),
                stale=stale,
            )
        )
    return sorted(found, key=lambda item: item.used_s_ago)


def _facts(path: Path) -> tuple[dict[str, Any], str]:
    """What a file's header says, and why it is stale."""
    try:
        with path.open("rb") as file:
            header = read_header(file)
    except (Damaged, OSError, ValueError) as error:
        return {}, f"damaged: {error}"
    facts = header.get("facts") or {}
    if header.get("layout") != LAYOUT:
        return facts, "written by another herd"
    folder = facts.get("folder")
    if folder is not None and not Path(folder).is_dir():
        return facts, "its checkpoint is gone"
    return facts, ""


def chosen(found: Iterable[Kept], *, older_than_s: float | None, most_bytes: int | None) -> list[Kept]:
    """Those to delete: stale ones, those not used for so long, and, used longest ago first, what is over so many bytes."""
    found = sorted(found, key=lambda item: item.used_s_ago)
    gone, total = [], 0
    for item in found:
        too_old = older_than_s is not None and item.used_s_ago > older_than_s
        too_much = most_bytes is not None and total + item.size_bytes > most_bytes
        if item.stale or too_old or too_much:
            gone.append(item)
        else:
            total += item.size_bytes
    return gone


def delete(gone: Iterable[Kept]) -> int:
    """Delete these, and what belongs to checkpoints that are kept no more; returns the bytes freed. A run that maps a file goes on."""
    freed = 0
    for item in gone:
        item.path.unlink(missing_ok=True)
        freed += item.size_bytes
    left = any(packed_dir().glob(f"*{SUFFIX}"))
    for notes in packed_dir().glob(f"*{NOTES_SUFFIX}"):
        if not left or _damaged(notes):
            notes.unlink(missing_ok=True)
    for angles in () if left else packed_dir().glob(f"*{ANGLES_SUFFIX}"):
        angles.unlink(missing_ok=True)
    return freed


def _damaged(notes: Path) -> bool:
    try:
        return not isinstance(json.loads(notes.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return True
