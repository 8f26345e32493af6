"""One record for every key: the newest page of an address, the first of equal texts.

Search: the keys of all shards in order, in `partitions` parts by the key, so that a part's memory is what it is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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

    def __init__(self, key: Any) -> None:
        self._key = key
        self._keys: list[int] = []
        self._ranks: list[int] = []

    def add(self, record: Record | None) -> None:
        """The next record."""
        key, rank = (_NO_KEY, 0) if record is None else self._key(record)
        self._keys.append(key)
        self._ranks.append(rank)

    def save(self, folder: Path) -> None:
        """Two arrays."""
        np.save(folder / "keys.npy", np.array(self._keys, dtype=np.uint64))
        np.save(folder / "ranks.npy", np.array(self._ranks, dtype=np.int64))


def find_equal(signatures: Signatures, part: int, parts: int, output: Path) -> dict[str, Any]:
    """Write which records of a part go, since another of the same key stays."""
    found: list[tuple[Ids, Any, Ids]] = []
    for shard, folder in enumerate(signatures.folders):
        keys, ranks = np.load(folder / "keys.npy"), np.load(folder / "ranks.npy")
        mine = signatures.alive(shard) & (keys != _NO_KEY) & (keys % np.uint64(parts) == part)
        found.append((keys[mine], ranks[mine], ids_of(shard, np.flatnonzero(mine))))
    keys, ranks, ids = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((ids, -ranks, keys))
    keys, ids = keys[order], ids[order]
    first = np.ones(len(keys), dtype=np.bool_)
    first[1:] = keys[1:] != keys[:-1]
    leader = np.flatnonzero(first)[np.cumsum(first) - 1] if len(keys) else np.empty(0, np.int64)
    save_drops(output, ids[~first], ids[leader][~first])
    return {"keys": int(first.sum()), "dropped": int((~first).sum())}


def merge_parts(parts: Sequence[Path], output: Path) -> dict[str, Any]:
    """The drops of all parts as one result."""
    dropped = np.concatenate([np.load(path / "drops.npy") for path in parts])
    save_drops(output, dropped, np.concatenate([np.load(path / "kept.npy") for path in parts]))
    return {"dropped": len(dropped)}


def _check(partitions: int) -> None:
    if not 1 <= partitions <= 65_536:
        raise ConfigError(f"partitions is {partitions}, it must be 1 to 65,536", hint="1 up to some hundred million records")


@dataclass(frozen=True, kw_only=True, slots=True)
class UrlDedup:
    """Keeps of every address the newest record by `date`, the first where dates are equal or missing. Records without `url` stay.

    Addresses that differ in scheme, capitals of the host, fragment or a last slash are one.
    """

    kind: ClassVar[str] = "url_dedup"
    routes: tuple[str, ...] = ()
    partitions: int = 1

    def __post_init__(self) -> None:
        _check(self.partitions)

    @property
    def parts(self) -> int:
        """One for every partition."""
        return self.partitions

    def files(self) -> tuple[str, ...]:
        """None."""
        return ()

    def signer(self) -> Signer:
        """Of addresses and dates."""
        return KeySigner(_url_key)

    def find(self, signatures: Signatures, part: int, output: Path) -> Mapping[str, Any]:
        """Equal addresses."""
        return find_equal(signatures, part, self.partitions, output)

    def merge(self, signatures: Signatures, parts: Sequence[Path], output: Path) -> Mapping[str, Any]:
        """All parts."""
        return merge_parts(parts, output)

    def judge(self, result: Path, shard: int) -> Judge:
        """Older pages of an address go."""
        return drop_judge(result, shard, "older page of the address")


def plain_url(url: str) -> str:
    """An address without what makes no difference."""
    rest = url.strip().partition("#")[0]
    rest = rest.partition("://")[2] or rest
    host, slash, path = rest.partition("/")
    return (host.lower().removeprefix("www.") + slash + path).rstrip("/")


def _url_key(record: Record) -> tuple[int, int]:
    url = record.get("url")
    if not isinstance(url, str) or not plain_url(url):
        return _NO_KEY, 0
    digits = "".join(_DIGITS.findall(str(record.get("date") or "")))[:14]
    return stable_hash(plain_url(url)) or 1, int(digits.ljust(14, "0")) if digits else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactDedup:
    """Keeps the first of texts that are equal but for white space."""

    kind: ClassVar[str] = "exact_dedup"
    routes: tuple[str, ...] = ()
    partitions: int = 1

    def __post_init__(self) -> None:
        _check(self.partitions)

    @property
    def parts(self) -> int:
        """One for every partition."""
        return self.partitions

    def files(self) -> tuple[str, ...]:
        """None."""
        return ()

    def signer(self) -> Signer:
        """Of texts."""
        return KeySigner(_text_key)

    def find(self, signatures: Signatures, part: int, output: Path) -> Mapping[str, Any]:
        """Equal texts."""
        return find_equal(signatures, part, self.partitions, output)

    def merge(self, signatures: Signatures, parts: Sequence[Path], output: Path) -> Mapping[str, Any]:
        """All parts."""
        return merge_parts(parts, output)

    def judge(self, result: Path, shard: int) -> Judge:
        """All but the first go."""
        return drop_judge(result, shard, "same text")


def _text_key(record: Record) -> tuple[int, int]:
    return stable_hash(" ".join(record["text"].split())) or 1, 0
