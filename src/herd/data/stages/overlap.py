"""Decontamination: documents that hold a piece of an evaluation set go, by n-grams of words that they share with it.

Two sizes, as the field uses them: a run of 13 words in common is enough; runs of 8 count by the share of one evaluation text that they make
up, which is what finds questions shorter than 13 words (section 5.1.4 of the Llama 3 paper measures contamination by 8-grams). N-grams that
more than `max_items` evaluation texts hold are their template, not their content, and do not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import ConfigError
from herd.data.records import Record, read_records
from herd.data.sources import expand
from herd.data.stages.stage import Drop, Note
from herd.data.units import Hashes, ngrams, word_hashes


@dataclass(frozen=True, kw_only=True, slots=True)
class Decontaminate:
    """Drops documents that share a `long`-gram with the files `against`, or `min_share` of one of their texts' `short`-grams.

    Every string of every record there counts as a text, or those of `fields` alone.
    """

    kind: ClassVar[str] = "decontaminate"
    routes: tuple[str, ...] = ()
    against: tuple[str, ...]
    fields: tuple[str, ...] = ()
    long: int = 13
    short: int = 8
    min_share: float = 0.5
    max_items: int = 10

    def __post_init__(self) -> None:
        if not self.against:
            raise ConfigError("nothing to decontaminate against", hint="name the files of the evaluation sets in `against`")
        if not 1 <= self.short <= self.long or not 0 < self.min_share <= 1:
            raise ConfigError(f"short {self.short}, long {self.long}, min_share {self.min_share}", hint="8, 13 and 0.5 are usual")

    def files(self) -> tuple[str, ...]:
        """The evaluation sets."""
        return tuple(expand(self.against))

    def apply(self, record: Record, note: Note) -> Record | Drop:
        """By the record's `text`."""
        index = overlap_index(self)
        hashes = word_hashes(record["text"])
        item = index.long_hit(ngrams(hashes, self.long))
        if item is not None:
            return Drop(f"{self.long}-gram of an evaluation set", index.about(item))
        item = index.short_hit(ngrams(hashes, self.short), self.min_share)
        if item is not None:
            return Drop(f"{self.short}-grams of an evaluation text", index.about(item))
        return record


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for member in cast("dict[str, Any]", value).values():
            yield from _strings(member)
    elif isinstance(value, list):
        for member in cast("list[Any]", value):
            yield from _strings(member)


class _Sieve:
    """Which n-grams can be in a set at all, by a table of their upper bits: nearly all of a document's cannot, and are not looked for."""

    def __init__(self, grams: Hashes) -> None:
        bits = max(10, (16 * len(grams)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(2**bits, dtype=np.bool_)
        self._table[grams >> self._shift] = True

    def left(self, grams: Hashes) -> Hashes:
        """Those that may be in the set, in their order."""
        return grams[self._table[grams >> self._shift]]


class OverlapIndex:
    """The n-grams of evaluation texts, sorted, each with a text that holds it; `totals` counts the short ones of every text."""

    def __init__(self, stage: Decontaminate) -> None:
        self._texts: list[tuple[str, str]] = []
        long: list[Hashes] = []
        short: list[Hashes] = []
        for file in stage.files():
            for record in read_records(file):
                wanted = {name: record.get(name) for name in stage.fields} if stage.fields else record
                for text in dict.fromkeys(_strings(wanted)):
                    hashes = word_hashes(text)
                    if len(hashes) >= stage.short:
                        self._texts.append((file.rsplit("/", 1)[-1], text[:120]))
                        long.append(np.unique(ngrams(hashes, stage.long)))
                        short.append(np.unique(ngrams(hashes, stage.short)))
        self.long, self.long_items = _sorted_grams(long, stage.max_items, once=True)
        self.short, self.short_items = _sorted_grams(short, stage.max_items, once=False)
        self.totals = np.bincount(self.short_items, minlength=len(self._texts))
        self._long_sieve, self._short_sieve = _Sieve(self.long), _Sieve(self.short)

    def __len__(self) -> int:
        return len(self._texts)

    def about(self, item: int) -> str:
        """Where an evaluation text is from, and how it begins."""
        file, text = self._texts[item]
        return f"{file}: {text}"

    def long_hit(self, grams: Hashes) -> int | None:
        """The text that holds the first of the document's long n-grams that any holds."""
        grams = self._long_sieve.left(grams)
        if len(grams) == 0:
            return None
        places = np.searchsorted(self.long, grams).clip(max=len(self.long) - 1)
        hits = np.flatnonzero(self.long[places] == grams)
        return int(self.long_items[places[hits[0]]]) if len(hits) else None

    def short_hit(self, grams: Hashes, min_share: float) -> int | None:
        """The text of whose short n-grams the document holds the largest share, if that is at least `min_share`."""
        grams = np.unique(self._short_sieve.left(grams))
        if len(grams) == 0:
            return None
        first, last = np.searchsorted(self.short, grams, "left"), np.searchsorted(self.short, grams, "right")
        found = np.flatnonzero(last > first)
        if len(found) == 0:
            return None
        items = np.concatenate([self.short_items[first[n] : last[n]] for n in found])
        names, counts = np.unique(items, return_counts=True)
        shares = counts / self.totals[names]
        best = int(shares.argmax())
        return int(names[best]) if shares[best] >= min_share else None


def _sorted_grams(by_item: list[Hashes], max_items: int, *, once: bool) -> tuple[Hashes, NDArray[np.int32]]:
    """All n-grams in order, with the item that each is of; without those of more than `max_items`; `once` keeps one item for each."""
    if not by_item:
        return np.empty(0, np.uint64), np.empty(0, np.int32)
    grams = np.concatenate(by_item)
    items = np.repeat(np.arange(len(by_item), dtype=np.int32), [len(part) for part in by_item])
    order = np.argsort(grams, kind="stable")
    grams, items = grams[order], items[order]
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    kept = counts <= max_items
    if once:
        return grams[first[kept]], items[first[kept]]
    mask = np.repeat(kept, counts)
    return grams[mask], items[mask]


@lru_cache(maxsize=2)
def overlap_index(stage: Decontaminate) -> OverlapIndex:
    """The index of a stage, made once a process."""
    return OverlapIndex(stage)
