"""What a stage over the whole corpus is: a signature of every record, a search over all signatures in parts, a verdict for every record.

A record's id is (shard << 40) + its place in the shard. `Drops` is a search's result: sorted ids, each with the id that is kept instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from herd.data.records import Record
from herd.data.stages.stage import Drop, Note

Ids = NDArray[np.uint64]
Judge = Callable[[int, Record, Note], Record | Drop]
"""Called with a record's place in its shard and the record."""

SHARD_BITS = np.uint64(40)


@runtime_checkable
class Signer(Protocol):
    """Takes the records of a shard one after another and writes what the search needs into a folder."""

    def add(self, record: Record | None) -> None:
        """The next record; None for one that the stage does not look at."""
        ...

    def save(self, folder: Path) -> None:
        """Write the signatures of all records that were added."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Signatures:
    """The signatures of all shards: their folders, how many records each has, and the drops of the stages before."""

    folders: tuple[Path, ...]
    counts: tuple[int, ...]
    before: tuple[Path, ...] = ()

    def alive(self, shard: int) -> NDArray[np.bool_]:
        """Which of a shard's records no stage before has dropped."""
        mask = np.ones(self.counts[shard], dtype=np.bool_)
        for path in self.before:
            mask[places_of(path, shard)[0]] = False
        return mask


@runtime_checkable
class CorpusStage(Protocol):
    """A frozen configuration of such a stage. `parts` searches run side by side; `merge` makes one result of theirs."""

    kind: ClassVar[str]

    @property
    def routes(self) -> tuple[str, ...]:
        """The routes that it looks at; empty: all."""
        ...

    @property
    def parts(self) -> int:
        """How many parts its search has."""
        ...

    def files(self) -> tuple[str, ...]:
        """Files besides the records that it depends on."""
        ...

    def signer(self) -> Signer:
        """A new signer."""
        ...

    def find(self, signatures: Signatures, part: int, output: Path) -> Mapping[str, Any]:
        """Search one part into a folder; returns figures for the report."""
        ...

    def merge(self, signatures: Signatures, parts: Sequence[Path], output: Path) -> Mapping[str, Any]:
        """Make of the parts' folders the result, `drops.npy` among it where the stage drops whole records."""
        ...

    def judge(self, result: Path, shard: int) -> Judge:
        """The verdict over the records of a shard."""
        ...


def ids_of(shard: int, places: NDArray[Any]) -> Ids:
    """The ids of records of a shard."""
    return (np.uint64(shard) << SHARD_BITS) + places.astype(np.uint64)


def save_drops(output: Path, dropped: Ids, kept: Ids) -> None:
    """Write a result: `dropped` in any order, each with the one that is kept."""
    order = np.argsort(dropped, kind="stable")
    np.save(output / "drops.npy", dropped[order])
    np.save(output / "kept.npy", kept[order])


def places_of(result: Path, shard: int) -> tuple[NDArray[np.int64], Ids]:
    """The places in a shard of what a result drops, and the ids kept instead. Nothing for a stage without such a file."""
    if not (result / "drops.npy").exists():
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    drops = np.load(result / "drops.npy", mmap_mode="r")
    first, last = np.searchsorted(drops, [np.uint64(shard) << SHARD_BITS, np.uint64(shard + 1) << SHARD_BITS])
    places = (drops[first:last] & np.uint64(2**40 - 1)).astype(np.int64)
    return places, np.array(np.load(result / "kept.npy", mmap_mode="r")[first:last])


def drop_judge(result: Path, shard: int, reason: str) -> Judge:
    """A verdict that drops what a result lists."""
    places, kept = places_of(result, shard)
    instead = dict(zip(places.tolist(), kept.tolist(), strict=True))

    def judge(place: int, record: Record, note: Note) -> Record | Drop:
        other = instead.get(place)
        if other is None:
            return record
        return Drop(reason, f"kept: record {other & (2**40 - 1)} of shard {other >> 40}")

    return judge
