"""Lines that a bucket of documents holds again and again: menus, notices, cookie banners (section 3.1.1 of the Llama 3 paper, after ccNet).

A line seen more than `max_count` times in a bucket of about 30M documents is removed everywhere in it. Buckets are whole shards in their
order. Lines are compared without case, digits and punctuation, as ccNet does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import ConfigError
from herd.data.dedup.corpus_stage import Judge, Signatures, Signer
from herd.data.records import Record
from herd.data.stages.stage import Drop, Note
from herd.data.units import Hashes, stable_hash

_DIGIT = re.compile(r"\d")
_MARK = re.compile(r"[^\w\s]+")


def plain_line(line: str) -> str:
    """What of a line counts when lines are compared; empty for one without letters or digits."""
    return " ".join(_DIGIT.sub("0", _MARK.sub("", line.lower())).split())


def line_hashes(text: str) -> list[int]:
    """The number of every line; 0 for one that is never removed, since it says nothing."""
    plain = _DIGIT.sub("0", _MARK.sub("", text.lower()))
    return [stable_hash(line) or 1 if (line := " ".join(part.split())) else 0 for part in plain.split("\n")]


class LineSigner:
    """The numbers of the lines of a shard's documents, and how many each has."""

    def __init__(self) -> None:
        self._lines: list[Hashes] = []

    def add(self, record: Record | None) -> None:
        """The next document."""
        numbers = [] if record is None else [number for number in line_hashes(record["text"]) if number]
        self._lines.append(np.array(numbers, dtype=np.uint64))

    def save(self, folder: Path) -> None:
        """Two arrays."""
        np.save(folder / "lines.npy", np.concatenate([np.empty(0, np.uint64), *self._lines]))
        np.save(folder / "num_lines.npy", np.array(list(map(len, self._lines)), dtype=np.int64))


@dataclass(frozen=True, kw_only=True, slots=True)
class LineDedup:
    """Removes lines seen more than `max_count` times in a bucket of `bucket_documents`; drops documents of which nothing is left."""

    kind: ClassVar[str] = "line_dedup"
    routes: tuple[str, ...] = ("prose", "maths")
    max_count: int = 6
    bucket_documents: int = 30_000_000
    partitions: int = 1

    def __post_init__(self) -> None:
        for name in ("max_count", "bucket_documents", "partitions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1", hint=f"leave {name} at its default")

    @property
    def parts(self) -> int:
        """One for every partition of the lines."""
        return self.partitions

    def files(self) -> tuple[str, ...]:
        """None."""
        return ()

    def signer(self) -> Signer:
        """Of lines."""
        return LineSigner()

    def _buckets(self, signatures: Signatures) -> NDArray[np.int64]:
        """The bucket of every shard."""
        starts = np.cumsum([0, *signatures.counts])[:-1]
        return np.asarray(starts // self.bucket_documents, dtype=np.int64)

    def find(self, signatures: Signatures, part: int, output: Path) -> Mapping[str, Any]:
        """The lines of every bucket that come too often, of one partition."""
        buckets = self._buckets(signatures)
        num_lines = num_found = 0
        for bucket in np.unique(buckets):
            lines = [self._lines(signatures, int(shard), part) for shard in np.flatnonzero(buckets == bucket)]
            numbers, counts = np.unique(np.concatenate(lines), return_counts=True)
            found = numbers[counts > self.max_count]
            num_lines, num_found = num_lines + len(numbers), num_found + len(found)
            np.save(output / f"{bucket:06d}.npy", found)
        return {"lines": num_lines, "too_often": num_found}

    def _lines(self, signatures: Signatures, shard: int, part: int) -> Hashes:
        folder = signatures.folders[shard]
        lines = np.load(folder / "lines.npy")
        alive = np.repeat(signatures.alive(shard), np.load(folder / "num_lines.npy"))
        return lines[alive & (lines % np.uint64(self.partitions) == part)]

    def merge(self, signatures: Signatures, parts: Sequence[Path], output: Path) -> Mapping[str, Any]:
        """All partitions of every bucket in one array, and the bucket of every shard."""
        buckets = self._buckets(signatures)
        np.save(output / "buckets.npy", buckets)
        total = 0
        for bucket in np.unique(buckets):
            found = np.sort(np.concatenate([np.load(path / f"{bucket:06d}.npy") for path in parts]))
            total += len(found)
            np.save(output / f"{bucket:06d}.npy", found)
        return {"buckets": len(np.unique(buckets)), "too_often": total}

    def judge(self, result: Path, shard: int) -> Judge:
        """The record without the lines that come too often."""
        bucket = int(np.load(result / "buckets.npy")[shard])
        gone = frozenset(np.load(result / f"{bucket:06d}.npy").tolist())

        def judge(place: int, record: Record, note: Note) -> Record | Drop:
            text = record["text"]
            numbers = line_hashes(text)
            found = sum(number in gone for number in numbers)
            if not found:
                return record
            note("lines removed", found)
            left = "\n".join(line for line, number in zip(text.split("\n"), numbers, strict=True) if number not in gone).strip()
            return {**record, "text": left} if left else Drop("only lines that come too often", f"{found} lines")

        return judge
