"""Texts as hashed n-grams: what the detectors that ship with herd see. Knows no labels and no weights.

A text is made plain first: compatibility forms and look-alike letters become ordinary ones, invisible characters go, letters that are
spread out by spaces come together, digits and signs inside words become the letters they stand for. Then words, pairs and triples of them
and runs of 3 to 5 characters are hashed, each into one of `size` places; a text is the vector of the square roots of their counts, with
the length 1. Hashing is FNV-like over code points, the same on every machine.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_SPREAD = re.compile(r"(?<!\S)(?:\S[ \t]+){3,}\S(?!\S)")
_LEET = str.maketrans({"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i"})
_LEET_WORD = re.compile(r"\b(?=\w*[a-z])(?=[\w@$!]*[013457@$!])[a-z013457@$!]{3,}\b")
_LOOKALIKES = str.maketrans("аеорсухіјѕԁһԛԝɑοαεικνρτυχӏ", "aeopcyxijsdhqwaoaeiknptuxl")
_LATIN = re.compile(r"[a-z]")
_MIXED = re.compile(r"[^\W\d_]+")
_PRIME = np.uint32(16777619)
_BASIS = np.uint32(2166136261)
_WORD_SALT, _PAIR_SALT, _TRIPLE_SALT = np.uint32(0x9E3779B9), np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
CHARACTER_RUNS = (3, 4, 5)


def plain(text: str) -> str:
    """A text made plain: what an attacker does to letters undone, case folded, white space single.

    >>> plain("I G N O R E  the\u200b ru1es")
    'ignore the ruies'
    """
    text = unicodedata.normalize("NFKC", text)
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    text = _SPREAD.sub(lambda match: "".join(match[0].split()) + " ", text).casefold()
    text = _MIXED.sub(_one_script, text)
    text = _LEET_WORD.sub(lambda match: match[0].translate(_LEET), text)
    return " ".join(text.split())


def _one_script(match: re.Match[str]) -> str:
    """A word that mixes Latin letters with look-alikes of other scripts, in Latin alone."""
    word = match[0]
    return word.translate(_LOOKALIKES) if not word.isascii() and _LATIN.search(word) else word


def _mix(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Spread hashes over all bits, so that a remainder of them is as good as any."""
    values = values ^ (values >> np.uint32(16))
    values = values * np.uint32(0x7FEB352D)
    values = values ^ (values >> np.uint32(15))
    values = values * np.uint32(0x846CA68B)
    return values ^ (values >> np.uint32(16))


def _runs(codes: NDArray[np.uint32], length: int) -> NDArray[np.uint32]:
    """The hash of every run of `length` characters."""
    count = len(codes) - length + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint32)
    hashes = np.full(count, _BASIS + np.uint32(length), dtype=np.uint32)
    for offset in range(length):
        hashes = (hashes ^ codes[offset : offset + count]) * _PRIME
    return hashes


def _word_hash(word: str) -> int:
    value = int(_BASIS)
    for character in word:
        value = ((value ^ ord(character)) * int(_PRIME)) & 0xFFFFFFFF
    return value


def hashes(text: str) -> NDArray[np.uint32]:
    """The hashes of all n-grams of a text, with repetitions."""
    text = plain(text)
    words = np.array([_word_hash(word) for word in _WORD.findall(text)], dtype=np.uint32)
    codes = np.frombuffer(f" {text} ".encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    pairs = words[:-1] * _PRIME ^ words[1:]
    triples = pairs[:-1] * _PRIME ^ words[2:]
    parts = [words ^ _WORD_SALT, pairs ^ _PAIR_SALT, triples ^ _TRIPLE_SALT, *(_runs(codes, length) for length in CHARACTER_RUNS)]
    return _mix(np.concatenate(parts))


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Texts as rows of a sparse matrix: the places of row i are `places[starts[i]:starts[i + 1]]`, with `values` beside them."""

    starts: NDArray[np.int64]
    places: NDArray[np.int32]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def dot(self, weights: NDArray[np.floating]) -> NDArray[np.float64]:
        """Each row times the weights; an empty row is 0."""
        products = self.values * weights[self.places]
        totals = np.concatenate([[0.0], np.cumsum(products, dtype=np.float64)])
        return totals[self.starts[1:]] - totals[self.starts[:-1]]

    def spread(self, by_row: NDArray[np.floating], size: int) -> NDArray[np.float64]:
        """The transposed product: the sum of the rows, each times its number."""
        repeated = np.repeat(by_row, np.diff(self.starts))
        return np.bincount(self.places, weights=self.values * repeated, minlength=size).astype(np.float64)

    def take(self, rows: Sequence[int] | NDArray[np.integer]) -> Rows:
        """Some rows, in their order."""
        chosen = np.asarray(rows, dtype=np.int64)
        lengths = np.diff(self.starts)[chosen]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        where = np.repeat(self.starts[chosen] - starts[:-1], lengths) + np.arange(starts[-1])
        return Rows(starts=starts, places=self.places[where], values=self.values[where])


def rows_of(texts: Sequence[str], size: int) -> Rows:
    """Texts as rows with `size` places."""
    places: list[NDArray[np.int32]] = []
    values: list[NDArray[np.float32]] = []
    for text in texts:
        found, counts = np.unique(hashes(text) % np.uint32(size), return_counts=True)
        weights = np.sqrt(counts)
        places.append(found.astype(np.int32))
        values.append((weights / max(float(np.linalg.norm(weights)), 1e-12)).astype(np.float32))
    starts = np.concatenate([[0], np.cumsum([len(row) for row in places])]).astype(np.int64)
    return Rows(
        starts=starts,
        places=np.concatenate(places) if places else np.empty(0, dtype=np.int32),
        values=np.concatenate(values).astype(np.float32) if values else np.empty(0, dtype=np.float32),
    )
