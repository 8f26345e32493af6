"""Nearest vectors of a store: exact while it is small, usearch's HNSW above; where PostgreSQL has pgvector, that.

Rows are the truth. What is held in memory, and the file that outlives a restart, follow them: before a search the store's `stamp` is
compared, and where it moved, numbers that came are read and numbers that went are dropped. A file is used only if it is whole (its SHA-256
stands beside it) and of this database (the last chunk it knows is still the same); else it is built again. Scores are cosines.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from herd.base.atomic import atomic_file
from herd.base.log import get_logger
from herd.store import pgvector
from herd.store.errors import ConflictError
from herd.store.tables.vector_stores import ChunkRow, VectorStoreRow

log = get_logger(__name__)

EXACT_ROWS = 10_000
"""Chunks up to which every one is looked at."""
CACHE_BYTES = 512 * 2**20
_PIECE = 2_000
_SAVE_AFTER = 2_000
"""Changes after which an index is written to its file again."""
_EXPANSION = 128
_LINKED = 2_000
"""Vectors that one thread adds: the first of a graph, added by several at once, do not see each other and stay badly linked."""
_VERSION = 1

Floats = NDArray[np.float32]
Vector = Sequence[float] | NDArray[np.floating[Any]]
Numbers = NDArray[np.int64]


def packed(vector: Vector) -> bytes:
    """A vector as a row holds it: of length one, float32, little-endian. One of length zero stays so."""
    found = np.asarray(vector, dtype=np.float64)
    length = float(np.linalg.norm(found))
    return (found / length if length > 0 else found).astype("<f4").tobytes()


def unpacked(data: bytes) -> Floats:
    """A row's vector."""
    return np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)


class _Exact:
    """A matrix, row by row. As `_Hnsw` it takes numbers that are larger than all before."""

    def __init__(self, width: int) -> None:
        self.numbers: Numbers = np.zeros(0, dtype=np.int64)
        self._matrix: Floats = np.zeros((0, width), dtype=np.float32)

    @property
    def size_bytes(self) -> int:
        return self._matrix.nbytes + self.numbers.nbytes

    def add(self, numbers: Numbers, vectors: Floats) -> None:
        self.numbers = np.concatenate([self.numbers, numbers])
        self._matrix = np.concatenate([self._matrix, vectors])

    def remove(self, numbers: Numbers) -> None:
        kept = ~np.isin(self.numbers, numbers)
        self.numbers, self._matrix = self.numbers[kept], self._matrix[kept]

    def nearest(self, query: Floats, limit: int) -> list[tuple[int, float]]:
        return best(self.numbers, self._matrix @ query, limit)


class _Hnsw:
    """usearch's graph. It may miss a neighbour; the cosines that it gives are computed again."""

    def __init__(self, width: int, loaded: Any = None, numbers: Numbers | None = None) -> None:
        from usearch.index import Index

        self._width = width
        self.index: Any = loaded or Index(ndim=width, metric="ip", dtype="f32", expansion_add=_EXPANSION, expansion_search=_EXPANSION)
        self.numbers: Numbers = np.zeros(0, dtype=np.int64) if numbers is None else numbers

    @property
    def size_bytes(self) -> int:
        return int(self.index.memory_usage)

    def add(self, numbers: Numbers, vectors: Floats) -> None:
        alone = max(0, _LINKED - len(self.numbers))
        for some, threads in ((slice(None, alone), 1), (slice(alone, None), 0)):
            if len(numbers[some]):
                self.index.add(numbers[some].astype(np.uint64), vectors[some], threads=threads)
        self.numbers = np.concatenate([self.numbers, numbers])

    def remove(self, numbers: Numbers) -> None:
        self.index.remove(numbers.astype(np.uint64))
        self.numbers = self.numbers[~np.isin(self.numbers, numbers)]

    def nearest(self, query: Floats, limit: int) -> list[tuple[int, float]]:
        found = self.index.search(query, min(limit, len(self.numbers)))
        numbers = np.asarray(found.keys).astype(np.int64).reshape(-1)
        return best(numbers, 1.0 - np.asarray(found.distances, dtype=np.float32).reshape(-1), limit)


_Index = _Exact | _Hnsw


def best(numbers: Numbers, scores: Floats, limit: int) -> list[tuple[int, float]]:
    """The largest scores, of the same score the smaller number first."""
    if len(numbers) > limit:
        edge = np.partition(scores, len(scores) - limit)[len(scores) - limit]
        kept = scores >= edge
        numbers, scores = numbers[kept], scores[kept]
    order = np.lexsort((numbers, -scores))[:limit]
    return [(int(numbers[place]), float(scores[place])) for place in order]


@dataclass(slots=True)
class _Held:
    """An index of one store, the stamp that it is of, and changes since it was written."""

    index: _Index
    stamp: str
    unsaved: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """What stands beside an index's file."""

    version: int
    dimensions: int
    count: int
    sha256: str
    last: int
    last_digest: str


class Vectors:
    """The indexes of all stores. For any thread; of one store one thread at a time."""

    def __init__(self, folder: Path, *, exact_rows: int = EXACT_ROWS, cache_bytes: int = CACHE_BYTES) -> None:
        self._folder, self._exact_rows, self._cache_bytes = folder, exact_rows, cache_bytes
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def search(
        self, session: Session, store: VectorStoreRow, query: Vector, limit: int, allowed: Sequence[int] | None = None
    ) -> list[tuple[int, float]]:
        """Numbers and cosines of the nearest chunks, of those that are `allowed`. Raises ConflictError for a vector of another width."""
        wanted = unpacked(packed(query))
        if store.dimensions is None or not store.num_chunks or limit < 1 or (allowed is not None and not len(allowed)):
            return []
        if len(wanted) != store.dimensions:
            raise ConflictError(
                f"the query's vector has {len(wanted):,} numbers, those of {store.id!r} have {store.dimensions:,}",
                hint=f"ask with the model that the store was made with: {store.embedding_model}",
            )
        if pgvector.serves(session):
            return pgvector.nearest(session, store.id, wanted, limit, allowed, exact=store.num_chunks <= self._exact_rows)
        if allowed is not None and len(allowed) <= self._exact_rows:
            return self._among(session, store, wanted, limit, allowed)
        with self._lock(store.id):
            held = self._current(session, store)
            if allowed is None:
                return held.index.nearest(wanted, limit)
            return _filtered(held.index, wanted, limit, frozenset(allowed))

    def refresh(self, session: Session, store: VectorStoreRow) -> None:
        """Bring a store's index up to its rows now, so that no search has to."""
        if store.dimensions is not None and store.num_chunks > self._exact_rows and not pgvector.serves(session):
            with self._lock(store.id):
                self._current(session, store)

    def _among(self, session: Session, store: VectorStoreRow, query: Floats, limit: int, allowed: Sequence[int]) -> list[tuple[int, float]]:
        found: list[tuple[int, float]] = []
        for numbers, vectors in _rows(session, store, np.asarray(sorted(allowed), dtype=np.int64)):
            found += best(numbers, vectors @ query, limit)
        return sorted(found, key=lambda one: (-one[1], one[0]))[:limit]

    def _lock(self, store_id: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(store_id, threading.Lock())

    def _current(self, session: Session, store: VectorStoreRow) -> _Held:
        """The index as the rows are."""
        assert store.dimensions is not None
        held = self._held.get(store.id)
        if held is None or isinstance(held.index, _Exact) != (store.num_chunks <= self._exact_rows):
            held = self._opened(session, store)
        if held.stamp != store.stamp:
            held.unsaved += _follow(session, store, held.index)
            held.stamp = store.stamp
        if isinstance(held.index, _Hnsw) and held.unsaved >= _SAVE_AFTER:
            self._save(session, store, held, held.index)
        with self._guard:
            self._held[store.id] = held
            self._held.move_to_end(store.id)
            while len(self._held) > 1 and sum(one.index.size_bytes for one in self._held.values()) > self._cache_bytes:
                self._held.popitem(last=False)
        return held

    def _opened(self, session: Session, store: VectorStoreRow) -> _Held:
        assert store.dimensions is not None
        if store.num_chunks <= self._exact_rows:
            self._remove_files(store.id)
            return _Held(_Exact(store.dimensions), "")
        return _Held(self._loaded(session, store) or _Hnsw(store.dimensions), "")

    def _paths(self, store_id: str) -> tuple[Path, Path]:
        return self._folder / f"{store_id}.usearch", self._folder / f"{store_id}.json"

    def _remove_files(self, store_id: str) -> None:
        for path in self._paths(store_id):
            path.unlink(missing_ok=True)

    def _loaded(self, session: Session, store: VectorStoreRow) -> _Hnsw | None:
        """The index of the file, if it is whole and this store's. usearch trusts what it reads: so nothing else may reach it."""
        path, header_path = self._paths(store.id)
        try:
            header = _Header(**json.loads(header_path.read_bytes()))
            with path.open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == header.sha256
        except (OSError, ValueError, TypeError):
            return None
        if not whole or (header.version, header.dimensions) != (_VERSION, store.dimensions):
            log.warning("the index of %s is damaged or of another kind; it is built again", store.id)
            return None
        if _digest(session, store, header.last) != header.last_digest:
            return None
        from usearch.index import Index

        loaded = Index.restore(str(path))
        numbers = np.sort(np.asarray(loaded.keys).astype(np.int64)) if loaded is not None else np.zeros(0, dtype=np.int64)
        return _Hnsw(header.dimensions, loaded, numbers) if len(numbers) == header.count else None

    def _save(self, session: Session, store: VectorStoreRow, held: _Held, index: _Hnsw) -> None:
        path, header_path = self._paths(store.id)
        last = int(index.numbers.max())
        with atomic_file(path) as temporary:
            index.index.save(str(temporary))
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        header = _Header(
            version=_VERSION,
            dimensions=index._width,  # pyright: ignore[reportPrivateUsage]
            count=len(index.numbers),
            sha256=digest,
            last=last,
            last_digest=_digest(session, store, last) or "",
        )
        with atomic_file(header_path) as temporary:
            temporary.write_text(json.dumps(asdict(header)))
        held.unsaved = 0

    def forget(self, store_id: str) -> None:
        """Of a store that is deleted."""
        with self._lock(store_id):
            with self._guard:
                self._held.pop(store_id, None)
            self._remove_files(store_id)
        with self._guard:
            self._locks.pop(store_id, None)

    def sweep(self, store_ids: Sequence[str]) -> int:
        """Remove the files of stores that are gone, and what was never finished; how many."""
        kept = {path.name for store_id in store_ids for path in self._paths(store_id)}
        gone = [path for path in self._folder.iterdir() if path.name not in kept]
        for path in gone:
            path.unlink()
        return len(gone)

    def problems(self, session: Session, store: VectorStoreRow) -> list[str]:
        """What is wrong with an index's file, held against the rows."""
        path, header_path = self._paths(store.id)
        if not header_path.exists() and not path.exists():
            return []
        try:
            header = _Header(**json.loads(header_path.read_bytes()))
            with path.open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == header.sha256
        except (OSError, ValueError, TypeError) as error:
            return [f"the index of {store.id} cannot be read: {error}"]
        if not whole:
            return [f"the index of {store.id} is damaged"]
        index = self._loaded(session, store)
        if index is None:
            return [f"the index of {store.id} is of another database"]
        wrong = 0
        for numbers, vectors in _rows(session, store, index.numbers):
            held = np.asarray(index.index.get(numbers.astype(np.uint64)), dtype=np.float32).reshape(len(numbers), -1)
            wrong += int((~np.isclose(held, vectors, atol=1e-5).all(axis=1)).sum())
        return [f"{wrong} vectors in the index of {store.id} are not those of its rows"] if wrong else []


def _filtered(index: _Index, query: Floats, limit: int, allowed: frozenset[int]) -> list[tuple[int, float]]:
    """Ask for more until enough of them are allowed."""
    asked = limit * 4
    while True:
        found = [one for one in index.nearest(query, asked) if one[0] in allowed]
        if len(found) >= limit or asked >= len(index.numbers):
            return found[:limit]
        asked *= 4


def _follow(session: Session, store: VectorStoreRow, index: _Index) -> int:
    """Bring an index up to the rows; the number of changes."""
    known = index.numbers
    ours = select(ChunkRow.number).where(ChunkRow.store_id == store.id)
    last = int(known.max()) if len(known) else -1
    fresh = np.asarray(session.scalars(ours.where(ChunkRow.number > last).order_by(ChunkRow.number)).all(), dtype=np.int64)
    count = session.scalar(select(func.count()).select_from(ChunkRow).where(ChunkRow.store_id == store.id)) or 0
    gone = np.zeros(0, dtype=np.int64)
    if count != len(known) + len(fresh):
        rows = np.asarray(session.scalars(ours.order_by(ChunkRow.number)).all(), dtype=np.int64)
        gone, fresh = np.setdiff1d(known, rows), np.setdiff1d(rows, known)
        index.remove(gone)
    for numbers, vectors in _rows(session, store, fresh):
        index.add(numbers, vectors)
    return len(gone) + len(fresh)


def _rows(session: Session, store: VectorStoreRow, numbers: Numbers) -> Iterator[tuple[Numbers, Floats]]:
    """Vectors of these chunks of the store, in order, a piece at a time."""
    for start in range(0, len(numbers), _PIECE):
        piece = numbers[start : start + _PIECE]
        query = (
            select(ChunkRow.number, ChunkRow.vector)
            .where(ChunkRow.store_id == store.id, ChunkRow.number.in_(piece.tolist()))
            .order_by(ChunkRow.number)
        )
        rows = session.execute(query).all()
        if rows:
            found = np.asarray([row.number for row in rows], dtype=np.int64)
            yield found, np.frombuffer(b"".join(row.vector for row in rows), dtype="<f4").reshape(len(rows), -1).astype(np.float32)


def _digest(session: Session, store: VectorStoreRow, number: int) -> str | None:
    """Of a chunk's vector, None where it is gone."""
    row = session.scalar(select(ChunkRow.vector).where(ChunkRow.store_id == store.id, ChunkRow.number == number))
    return None if row is None else hashlib.sha256(row).hexdigest()
