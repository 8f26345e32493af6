"""Repetition inside a document: lines and paragraphs that come again, and the share of the words that lie in repeated n-grams.

Section 3.1.1 of the Llama 3 paper: the coverage of duplicated n-grams removes long repeated lines that line dedup cannot see since each
copy differs elsewhere. The limits are Gopher's (arXiv 2112.11446, table A1); shares are of words rather than of characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from herd.base.errors import ConfigError
from herd.data.records import Record
from herd.data.stages.stage import Drop, Note
from herd.data.units import UNPARTED, Hashes, ngrams, word_hashes

_RUNS = 3
"""Runs to a word where words are not parted: an n-gram has that many times as many of them."""


def _repeated_share(parts: list[str]) -> float:
    """The share of the characters that lie in parts seen before."""
    total = sum(map(len, parts))
    first = sum(map(len, set(parts)))
    return 1 - first / total if total else 0.0


def most_frequent(grams: Hashes) -> int:
    """How often the commonest of some n-grams occurs."""
    if len(grams) == 0:
        return 0
    ordered = np.sort(grams)
    edges = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    return int(np.diff(edges).max())


def top_coverage(hashes: Hashes, size: int) -> float:
    """The share of the words that the commonest n-gram covers; its overlapping copies are counted whole, up to 1."""
    most = most_frequent(ngrams(hashes, size))
    return min(1.0, most * size / len(hashes)) if most > 1 else 0.0


def repeated_coverage(hashes: Hashes, size: int, *, at_least: float = 0.0) -> float:
    """The share of the words that lie in an n-gram which has occurred before; 0 where it must be `at_least` or less."""
    grams = ngrams(hashes, size)
    if len(grams) < 2:
        return 0.0
    ordered = np.sort(grams)
    repeats = int(np.count_nonzero(ordered[1:] == ordered[:-1]))
    if repeats == 0 or repeats * size <= at_least * len(hashes):
        return 0.0
    first = np.zeros(len(grams), dtype=bool)
    first[np.unique(grams, return_index=True)[1]] = True
    edges = np.zeros(len(hashes) + 1, dtype=np.int32)
    starts = np.flatnonzero(~first)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + size, -1)
    return float(np.count_nonzero(np.cumsum(edges[:-1]))) / len(hashes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Repetition:
    """Drops texts that repeat themselves. `top` limits the commonest 2-, 3-, 4-gram, `repeated` all repeated n-grams from 5 on."""

    kind: ClassVar[str] = "repetition"
    routes: tuple[str, ...] = ("prose", "maths")
    max_repeated_lines: float = 0.2
    max_repeated_paragraphs: float = 0.2
    top: tuple[float, ...] = (0.20, 0.18, 0.16)
    repeated: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)

    def __post_init__(self) -> None:
        for limit in (self.max_repeated_lines, self.max_repeated_paragraphs, *self.top, *self.repeated):
            if not 0 <= limit <= 1:
                raise ConfigError(f"a limit of repetition is {limit}, it must be between 0 and 1", hint="limits are shares of the text")

    def files(self) -> tuple[str, ...]:
        """None."""
        return ()

    def apply(self, record: Record, note: Note) -> Record | Drop:
        """By the record's `text`."""
        text = record["text"]
        for what, parts, limit in (
            ("repeated lines", [line for line in map(str.strip, text.split("\n")) if line], self.max_repeated_lines),
            ("repeated paragraphs", [part for part in map(str.strip, text.split("\n\n")) if part], self.max_repeated_paragraphs),
        ):
            if len(parts) > 1 and (share := _repeated_share(parts)) > limit:
                return Drop(what, f"{share:.0%} of the characters")
        hashes = word_hashes(text)
        scale = _RUNS if record.get("lang") in UNPARTED else 1
        most = len(hashes)
        for size, limit in enumerate(self.top, start=2):
            if most * size * scale <= limit * len(hashes):
                continue  # a longer n-gram is no commoner than the shorter one that begins it
            most = most_frequent(ngrams(hashes, size * scale))
            if most > 1 and (share := min(1.0, most * size * scale / len(hashes))) > limit:
                return Drop(f"one {size}-gram again and again", f"{share:.0%} of the words")
        lowest = min(self.repeated, default=1.0)
        if repeated_coverage(hashes, 5 * scale, at_least=lowest) > lowest:
            for size, limit in enumerate(self.repeated, start=5):
                if (share := repeated_coverage(hashes, size * scale)) > limit:
                    return Drop(f"repeated {size}-grams", f"{share:.0%} of the words")
        return record
