"""What a stage is, and the count of what it did: seen, kept and dropped by reason, with samples. Knows no stage in particular."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from herd.data.records import Record

Note = Callable[[str, int], None]
"""A stage calls `note(what, how_often)` for what it changed in a record."""

SAMPLES = 3
_SAMPLE_CHARACTERS = 280


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a record goes: a reason of a few (they are counted), and what in this record gave it."""

    reason: str
    detail: str = ""


@runtime_checkable
class Stage(Protocol):
    """A pure function of a record. `routes` limits it to records of these routes; empty: all."""

    kind: ClassVar[str]

    @property
    def routes(self) -> tuple[str, ...]:
        """The routes that it judges."""
        ...

    def apply(self, record: Record, note: Note) -> Record | Drop:
        """The record, perhaps changed, or why it goes."""
        ...

    def files(self) -> tuple[str, ...]:
        """Files besides the records that its verdict depends on."""
        ...


def size_of(record: Record) -> int:
    """UTF-8 bytes of a record's text, or of its page."""
    text = record.get("text", record.get("html", ""))
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


@dataclass(slots=True)
class Tally:
    """What a stage did to some records."""

    stage: str
    seen: int = 0
    bytes_in: int = 0
    kept: int = 0
    bytes_out: int = 0
    changed: int = 0
    dropped: dict[str, list[int]] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    samples: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def run(self, record: Record, function: Callable[[Record, Note], Record | Drop]) -> Record | None:
        """Put a record through a stage and count it; None if it is dropped."""
        size, before = size_of(record), record.get("text")
        self.seen += 1
        self.bytes_in += size
        result = function(record, self._note)
        if isinstance(result, Drop):
            self._drop(record, result, size)
            return None
        self.kept += 1
        text = result.get("text")
        if text is not before:
            size = size_of(result)
            self.changed += text != before
        self.bytes_out += size
        return result

    def _note(self, what: str, count: int) -> None:
        self.notes[what] = self.notes.get(what, 0) + count

    def _drop(self, record: Record, drop: Drop, size: int) -> None:
        counts = self.dropped.setdefault(drop.reason, [0, 0])
        counts[0] += 1
        counts[1] += size
        samples = self.samples.setdefault(drop.reason, [])
        if len(samples) < SAMPLES:
            text = str(record.get("text", record.get("html", "")))[:_SAMPLE_CHARACTERS]
            where = str(record.get("url") or record.get("id") or "")[:_SAMPLE_CHARACTERS]
            samples.append({"id": where, "detail": drop.detail[:_SAMPLE_CHARACTERS], "text": text})

    def to_dict(self) -> dict[str, Any]:
        """As a report holds it."""
        return {name: getattr(self, name) for name in self.__slots__}


def merged(tallies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tallies of one stage over several shards as one; samples are those of the first shards."""
    total = Tally(tallies[0]["stage"])
    for tally in tallies:
        for name in ("seen", "bytes_in", "kept", "bytes_out", "changed"):
            setattr(total, name, getattr(total, name) + tally[name])
        for reason, (documents, size) in tally["dropped"].items():
            counts = total.dropped.setdefault(reason, [0, 0])
            counts[0] += documents
            counts[1] += size
        for what, count in tally["notes"].items():
            total.notes[what] = total.notes.get(what, 0) + count
        for reason, samples in tally["samples"].items():
            known = total.samples.setdefault(reason, [])
            known.extend(samples[: SAMPLES - len(known)])
    return total.to_dict()
