"""Near-duplicate documents by MinHash and locality-sensitive hashing (Broder 1997; Lee et al., arXiv 2107.06499).

A document is its set of word n-grams; a signature is `bands` x `rows` minima of random permutations of the set (by rensa); two documents
meet if all rows of a band agree, with probability 1 - (1 - s^rows)^bands at similarity s. Pairs that meet are compared by their whole
signatures; those that agree in `min_similarity` of the places are duplicates, and of every cluster of duplicates the first stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import ConfigError
from herd.data.dedup.corpus_stage import Ids, Judge, Signatures, Signer, drop_judge, ids_of, save_drops
from herd.data.records import Record
from herd.data.units import Hashes, mixed, ngrams, word_hashes

_BATCH = 256


class MinHashSigner:
    """Signatures of a shard's documents, a batch of them at a time."""

    def __init__(self, size: int, num_perm: int, seed: int) -> None:
        self._size, self._num_perm, self._seed = size, num_perm, seed
        self._waiting: list[Hashes] = []
        self._signed: list[NDArray[np.uint32]] = []

    def add(self, record: Record | None) -> None:
        """The next document; fewer words than an n-gram has are no set, and such a document meets no other."""
        self._waiting.append(np.empty(0, np.uint64) if record is None else mixed(ngrams(word_hashes(record["text"]), self._size)))
        if len(self._waiting) == _BATCH:
            self._flush()

    def _flush(self) -> None:
        rensa: Any = import_module("rensa")
        if self._waiting:
            offsets = np.cumsum([0, *map(len, self._waiting)]).astype(np.uint64)
            make = rensa.RMinHash.digest_matrix_from_flat_token_hashes
            matrix = make(np.concatenate(self._waiting), offsets, self._num_perm, self._seed)
            self._signed.append(np.array(matrix.to_rows(), dtype=np.uint32))
            self._waiting = []

    def save(self, folder: Path) -> None:
        """One array, a row a document."""
        self._flush()
        np.save(folder / "minhash.npy", np.concatenate([np.empty((0, self._num_perm), np.uint32), *self._signed]))


@dataclass(frozen=True, kw_only=True, slots=True)
class MinHashDedup:
    """Keeps the first of documents that share about `min_similarity` of their `words`-grams; `partitions` searches run apart."""

    kind: ClassVar[str] = "minhash_dedup"
    routes: tuple[str, ...] = ()
    words: int = 5
    bands: int = 14
    rows: int = 8
    min_similarity: float = 0.7
    seed: int = 1
    partitions: int = 1

    def __post_init__(self) -> None:
        for name in ("words", "bands", "rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1", hint=f"leave {name} at its default")
        if not 0 < self.min_similarity <= 1:
            raise ConfigError(f"min_similarity is {self.min_similarity}, it must be over 0 and at most 1", hint="0.7 is usual")
        if not 1 <= self.partitions <= self.bands:
            raise ConfigError(
                f"partitions is {self.partitions}, with {self.bands} bands it must be 1 to {self.bands}", hint="one a band at most"
            )

    @property
    def parts(self) -> int:
        """One for every partition of the bands."""
        return self.partitions

    def files(self) -> tuple[str, ...]:
        """None."""
        return ()

    def signer(self) -> Signer:
        """Of documents."""
        return MinHashSigner(self.words, self.bands * self.rows, self.seed)

    def find(self, signatures: Signatures, part: int, output: Path) -> Mapping[str, Any]:
        """Pairs that meet in one of the part's bands and are alike: each with the first document that it met."""
        table = _Table(signatures)
        pairs = [np.empty((0, 2), np.int64)]
        num_met = 0
        for band in range(part, self.bands, self.partitions):
            met = _met(table.band(band * self.rows, self.rows))
            num_met += len(met)
            pairs.append(met[table.similarity(met) >= self.min_similarity])
        found = np.unique(np.concatenate(pairs), axis=0)
        np.save(output / "pairs.npy", table.ids[found] if len(found) else np.empty((0, 2), np.uint64))
        return {"met": num_met, "alike": len(found)}

    def merge(self, signatures: Signatures, parts: Sequence[Path], output: Path) -> Mapping[str, Any]:
        """Clusters of pairs; of each the first document stays."""
        pairs = np.concatenate([np.load(path / "pairs.npy") for path in parts])
        nodes, places = np.unique(pairs, return_inverse=True)
        first = clusters(places.reshape(-1, 2), len(nodes))
        gone = first != np.arange(len(nodes))
        save_drops(output, nodes[gone], nodes[first[gone]])
        return {"clusters": len(np.unique(first)), "dropped": int(gone.sum())}

    def judge(self, result: Path, shard: int) -> Judge:
        """All but the first of a cluster go."""
        return drop_judge(result, shard, "near duplicate")


class _Table:
    """The signatures of all documents that can meet: their ids in order, and columns or rows of the arrays on disk."""

    def __init__(self, signatures: Signatures) -> None:
        self._arrays = [np.load(folder / "minhash.npy", mmap_mode="r") for folder in signatures.folders]
        self._places: list[NDArray[np.int64]] = []
        ids: list[Ids] = []
        for shard, array in enumerate(self._arrays):
            empty = (array[:, :4] == np.uint32(2**32 - 1)).all(axis=1) if len(array) else np.empty(0, np.bool_)
            self._places.append(np.flatnonzero(signatures.alive(shard) & ~empty))
            ids.append(ids_of(shard, self._places[-1]))
        self.ids: Ids = np.concatenate(ids) if ids else np.empty(0, np.uint64)
        self._ends = np.cumsum([len(places) for places in self._places])

    def band(self, first: int, rows: int) -> Hashes:
        """One number for a band of every document."""
        columns = [array[:, first : first + rows][places] for array, places in zip(self._arrays, self._places, strict=True)]
        total = np.zeros(len(self.ids), np.uint64)
        values = np.concatenate(columns).astype(np.uint64) if columns else np.empty((0, rows), np.uint64)
        for row in range(rows):
            total = total * np.uint64(0x9E3779B97F4A7C15) + values[:, row] + np.uint64(1)
        return total

    def _rows(self, numbers: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The signatures of documents by their number in `ids`."""
        shards = np.searchsorted(self._ends, numbers, side="right")
        out = np.empty((len(numbers), self._arrays[0].shape[1]), np.uint32)
        for shard in np.unique(shards):
            mine = shards == shard
            start = self._ends[shard] - len(self._places[shard])
            out[mine] = self._arrays[shard][self._places[shard][numbers[mine] - start]]
        return out

    def similarity(self, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
        """The share of the places in which the signatures of each pair agree."""
        out = np.empty(len(pairs))
        for start in range(0, len(pairs), 65_536):
            chunk = pairs[start : start + 65_536]
            out[start : start + 65_536] = (self._rows(chunk[:, 0]) == self._rows(chunk[:, 1])).mean(axis=1)
        return out


def _met(band: Hashes) -> NDArray[np.int64]:
    """Pairs of the first document with a number and every other that has it."""
    order = np.argsort(band, kind="stable")
    ordered = band[order]
    first = np.ones(len(band), dtype=np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    if len(band) == 0:
        return np.empty((0, 2), np.int64)
    leader = order[np.flatnonzero(first)[np.cumsum(first) - 1]]
    return np.stack([leader[~first], order[~first]], axis=1)


def clusters(pairs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """For each of `count` nodes the smallest node that pairs lead to. Labels shrink until nothing changes."""
    labels = np.arange(count)
    while len(pairs):
        low = np.minimum(labels[pairs[:, 0]], labels[pairs[:, 1]])
        new = labels.copy()
        for column in (0, 1):
            np.minimum.at(new, pairs[:, column], low)
            np.minimum.at(new, labels[pairs[:, column]], low)
        new = new[new]
        if (new == labels).all():
            break
        labels = new
    return labels
