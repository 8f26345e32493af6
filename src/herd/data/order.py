"""Seeded orders that need no memory and no generator of random numbers: the same on every machine and with every version of numpy.

A permutation of n numbers is a Feistel network of six rounds over the smallest even number of bits that hold n, walked until it lands below
n (Black and Rogaway 2002). `keyed` is splitmix64 over a key and a counter.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6


def key_of(*parts: int | str) -> int:
    """A key of 64 bits from a seed and names."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def keyed(key: int, numbers: U64) -> U64:
    """A hash of every number under a key (splitmix64's finaliser)."""
    with np.errstate(over="ignore"):
        value = numbers * _GOLDEN + np.uint64(key)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def shuffled(key: int, items: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some items in the order of their places' hashes."""
    return items[np.argsort(keyed(key, np.arange(len(items), dtype=np.uint64)), kind="stable")]


def permuted(key: int, places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Where a permutation of 0..count-1 puts some places. Memory and time depend on the places alone."""
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    out = places.astype(np.uint64)
    outside = np.ones(len(out), dtype=np.bool_)
    while outside.any():
        left, right = out[outside] >> half, out[outside] & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (keyed(key ^ number, right) & mask)
        out[outside] = (left << half) | right
        outside = out >= np.uint64(count)
    return out.astype(np.int64)
