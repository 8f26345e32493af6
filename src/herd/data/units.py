"""Words as numbers: what overlap, repetition, near-duplicates and classifiers count. The same text gives the same numbers everywhere.

A word is a run of letters, their marks, digits and _ in lower case. Thai, which does not part its words, falls into the shorter runs
between its marks: the same ones on both sides of every comparison, two or three to a word. An n-gram's number is a polynomial of its
words' modulo 2^64.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_WORD = re.compile("[\\w\u0300-\u036f\u0900-\u0963\u0966-\u0dff]+")
UNPARTED = ("th", "lo", "km", "my", "zh", "ja")
"""Languages that do not part their words."""

_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_KNOWN_WORDS = 2**18


class _Numbers(dict[str, int]):
    """Words with their numbers, which are made when they are first asked for."""

    def __missing__(self, word: str) -> int:
        number = self[word] = stable_hash(word)
        return number


_known = _Numbers()


def stable_hash(text: str) -> int:
    """64 bits of a text, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@lru_cache(maxsize=2)
def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, in lower case. Kept for the text at hand, since several stages ask for the same."""
    return tuple(_WORD.findall(text.lower()))


@lru_cache(maxsize=2)
def word_hashes(text: str) -> Hashes:
    """The number of every word of a text. Kept for the text at hand, since several stages ask for the same."""
    if len(_known) > _KNOWN_WORDS:
        _known.clear()
    words = words_of(text)
    hashes = np.fromiter(map(_known.__getitem__, words), dtype=np.uint64, count=len(words))
    hashes.setflags(write=False)
    return hashes


def ngrams(hashes: Hashes, size: int) -> Hashes:
    """The number of every run of `size` words; none if there are fewer words."""
    count = len(hashes) - size + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    total = hashes[:count].copy()
    for offset in range(1, size):
        total *= _BASE
        total += hashes[offset : offset + count]
    return total


def mixed(hashes: Hashes) -> Hashes:
    """Numbers whose every bit depends on all bits of the given ones: for taking some of them."""
    return ((hashes ^ (hashes >> np.uint64(32))) * _MIX) ^ (hashes >> np.uint64(29))
