"""One record for every key: the newest page of an address, the first of equal texts.

Search: the keys of all shards in order, in `partitions` parts by the key, so that a part's memory is what it is given.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from herd.base.errors import ConfigError
from herd.data.dedup.corpus_stage import Ids, Judge, Signatures, Signer, drop_judge, ids_of, save_drops
from herd.data.records import Record
from herd.data.units import stable_hash

_NO_KEY = 0
_DIGITS = re.compile(r"\d")


class KeySigner:
    """Keys and ranks of a shard's records; among equal keys the highest rank is kept, then the first."""

    def __init__(self, key_of: Callable[[Record], tuple[int, int]]) -> None:
        self._key_of = key_of
        self._keys: list[int] = []
        self._ranks: list[int] = []

    def add(self, record: Record | None) -> None:
        """The next record."""
        key, rank = (_NO_KEY, 0) if record is None else self._key_of(record)
        self._keys.append(key)
        self._ranks.append(rank)

    def save(self, folder: Path) -> None:
        """Two arrays."""
        np.save(folder / "keys.npy", np.array(self._keys, dtype=np.uint64))
        np.save(folder / "ranks.npy", np.array(self._ranks, dtype=np.int64))


@dataclass(frozen=True, kw_only=True, slots=True)
class _KeyDedup(ABC):
    """Keeps one record of every key. What the key is, and why the others go, is told by those that are made of it."""

    kind: ClassVar[str]
    reason: ClassVar[str]
    routes: tuple[str, ...] = ()
    partitions: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.partitions <= 65_536:
            raise ConfigError(f"partitions is {self.partitions}, it must be 1 to 65,536", hint="1 up to some hundred million records")

    @staticmethod
    @abstractmethod
    def key_of(record: Record) -> tuple[int, int]:
        """A record's key and its rank."""

    @property
    def parts(self) -> int:
        """One for every partition."""
        return self.partitions

    def files(self) -> tuple[str, ...]:
        """None."""
        return ()

    def signer(self) -> Signer:
        """Of keys and ranks."""
        return KeySigner(self.key_of)

    def find(self, signatures: Signatures, part: int, output: Path) -> Mapping[str, Any]:
        """Which records of a part go, since another of the same key stays."""
        found: list[tuple[Ids, Any, Ids]] = []
        for shard, folder in enumerate(signatures.folders):
            keys, ranks = np.load(folder / "keys.npy"), np.load(folder / "ranks.npy")
            mine = signatures.alive(shard) & (keys != _NO_KEY) & (keys % np.uint64(self.partitions) == part)
            found.append((keys[mine], ranks[mine], ids_of(shard, np.flatnonzero(mine))))
        keys, ranks, ids = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.lexsort((ids, -ranks, keys))
        keys, ids = keys[order], ids[order]
        first = np.ones(len(keys), dtype=np.bool_)
        first[1:] = keys[1:] != keys[:-1]
        leader = np.flatnonzero(first)[np.cumsum(first) - 1] if len(keys) else np.empty(0, np.int64)
        save_drops(output, ids[~first], ids[leader][~first])
        return {"keys": int(first.sum()), "dropped": int((~first).sum())}

    def merge(self, signatures: Signatures, parts: Sequence[Path], output: Path) -> Mapping[str, Any]:
        """The drops of all parts as one result."""
        dropped = np.concatenate([np.load(path / "drops.npy") for path in parts])
        save_drops(output, dropped, np.concatenate([np.load(path / "kept.npy") for path in parts]))
        return {"dropped": len(dropped)}

    def judge(self, result: Path, shard: int) -> Judge:
        """All but the one that is kept go."""
        return drop_judge(result, shard, self.reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class UrlDedup(_KeyDedup):
    """Keeps of every address the newest record by `date`, the first where dates are equal or missing. Records without `url` stay.

    Addresses that differ in scheme, capitals of the host, fragment or a last slash are one.
    """

    kind: ClassVar[str] = "url_dedup"
    reason: ClassVar[str] = "older page of the address"

    @staticmethod
    def key_of(record: Record) -> tuple[int, int]:
        """The address and the date."""
        url = record.get("url")
        if not isinstance(url, str) or not plain_url(url):
            return _NO_KEY, 0
        digits = "".join(_DIGITS.findall(str(record.get("date") or "")))[:14]
        return stable_hash(plain_url(url)) or 1, int(digits.ljust(14, "0")) if digits else 0


def plain_url(url: str) -> str:
    """An address without what makes no difference."""
    rest = url.strip().partition("#")[0]
    rest = rest.partition("://")[2] or rest
    host, slash, path = rest.partition("/")
    return (host.lower().removeprefix("www.") + slash + path).rstrip("/")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactDedup(_KeyDedup):
    """Keeps the first of texts that are equal but for white space."""

    kind: ClassVar[str] = "exact_dedup"
    reason: ClassVar[str] = "same text"

    @staticmethod
    def key_of(record: Record) -> tuple[int, int]:
        """The text."""
        return stable_hash(" ".join(record["text"].split())) or 1, 0
