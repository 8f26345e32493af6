"""Retrieval as a whole: files into stores, and questions to them. What the routes, the `file_search` tool and agents stand on.

`Retrieval` answers; `indexer.Indexer` works in the background on what it is given.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from herd.base.errors import UsageError
from herd.store.errors import ConflictError
from herd.store.files import Files
from herd.store.filters import Filter
from herd.store.ranking import Ranking
from herd.store.search import Hit, Mode, search
from herd.store.state import State
from herd.store.tables.files import FileRow
from herd.store.tables.vector_stores import FileBatchRow, VectorStoreFileRow, VectorStoreRow
from herd.store.vector_stores import NewChunk, NewFile, VectorStores
from herd.store.vectors import Vectors
from herd.tools.retrieval.chunking import Chunking, cut, read_chunking
from herd.tools.retrieval.embedder import Embedder
from herd.tools.retrieval.extract import ExtractLimits, extract_text

MAX_RESULTS = 50
MAX_CHUNK_CHARS = 100_000
_EMBED_AT_ONCE = 16


class Retrieval:
    """The vector stores of a state and the model that reads for them. For one event loop."""

    def __init__(
        self, state: State, files: Files, embedder: Embedder, *, limits: ExtractLimits | None = None, vectors: Vectors | None = None
    ) -> None:
        self.stores = VectorStores(state)
        self.files, self.embedder = files, embedder
        self.vectors = vectors or Vectors(state.indexes_dir)
        self._database = state.database
        self._limits = limits or ExtractLimits()
        self.wake = asyncio.Event()
        """Set when there is something to index."""

    @property
    def auto_chunking(self) -> Chunking:
        """How files are cut where nobody says how: as OpenAI does, but no more than the model reads."""
        return Chunking().within(self.most_tokens)

    @property
    def most_tokens(self) -> int:
        """Of a passage; one place is that of <|begin_of_text|>."""
        return self.embedder.max_tokens - 1

    async def create(
        self,
        owner: str,
        *,
        name: str | None = None,
        description: str | None = None,
        metadata: dict[str, str] | None = None,
        expires_days: int | None = None,
        alias: str | None = None,
    ) -> VectorStoreRow:
        """A new store, empty. Raises ConflictError for an alias that the owner has."""
        now = time.time()
        row = VectorStoreRow(
            id="vs_" + secrets.token_hex(12),
            alias=alias,
            owner=owner,
            created=now,
            name=name,
            description=description,
            meta=metadata,
            expires_days=expires_days,
            last_active=now,
            embedding_model=self.embedder.name,
            dimensions=self.embedder.dimensions,
        )
        return await asyncio.to_thread(self.stores.add, row)

    async def add_files(self, owner: str, store_id: str, files: Sequence[NewFile], *, as_batch: bool = False) -> list[VectorStoreFileRow]:
        """Put files into a store; they are indexed in the background."""
        batch = None
        if as_batch:
            batch = FileBatchRow(id="vsfb_" + secrets.token_hex(12), owner=owner, created=time.time(), store_id=store_id, cancelled=False)
        rows = await asyncio.to_thread(partial(self.stores.add_files, owner, store_id, files, batch=batch))
        self.wake.set()
        return rows

    async def delete(self, owner: str, store_id: str) -> None:
        """Forget a store."""
        await asyncio.to_thread(self.stores.delete, owner, store_id)
        await asyncio.to_thread(self.vectors.forget, store_id)

    async def index(self, row: VectorStoreFileRow) -> int:
        """Index one file: read, cut, embed, keep all at once; the number of passages. Raises HerdError."""
        file = await asyncio.to_thread(self.files.get, row.owner, row.id)
        text = await asyncio.to_thread(self._read, file)
        chunking = read_chunking(row.chunking)
        if chunking.max_tokens > self.most_tokens:
            raise UsageError(
                f"passages of {chunking.max_tokens:,} tokens are asked for, {self.embedder.name!r} reads {self.most_tokens:,} at most",
                hint="choose a smaller max_chunk_size_tokens, or leave it at auto",
            )
        spans = await asyncio.to_thread(cut, text, chunking, self.embedder.tokenizer)
        chunks: list[NewChunk] = []
        for first in range(0, len(spans), _EMBED_AT_ONCE):
            group = spans[first : first + _EMBED_AT_ONCE]
            texts = [text[span.start : span.end] for span in group]
            rows = await self.embedder.embed(texts, owner=row.owner, in_background=True)
            chunks += [
                NewChunk(text=piece, start=span.start, end=span.end, vector=vector)
                for piece, span, vector in zip(texts, group, rows, strict=True)
            ]
        kept = await asyncio.to_thread(self.stores.complete, row, chunks)
        if kept:
            await asyncio.to_thread(self._refresh, row.owner, row.store_id)
        return len(chunks) if kept else 0

    def _read(self, file: FileRow) -> str:
        with self.files.open(file.id) as opened:
            data = opened.read(self._limits.file_bytes + 1)
        return extract_text(file.filename, data, self._limits)

    def _refresh(self, owner: str, store_id: str) -> None:
        store = self.stores.get(owner, store_id)
        with self._database.read() as session:
            self.vectors.refresh(session, store)

    async def insert(self, owner: str, store_id: str, documents: Mapping[str, Sequence[tuple[str, dict[str, Any]]]]) -> None:
        """Keep passages that a client cut itself, by the names of its documents, each with its metadata."""
        await asyncio.to_thread(self.stores.touch, owner, store_id)
        chunks: dict[str, list[NewChunk]] = {}
        for name, passages in documents.items():
            place, found = 0, []
            for first in range(0, len(passages), _EMBED_AT_ONCE):
                group = passages[first : first + _EMBED_AT_ONCE]
                vectors = await self.embedder.embed([text for text, _ in group], owner=owner, in_background=False)
                for (text, meta), vector in zip(group, vectors, strict=True):
                    found.append(NewChunk(text=text, start=place, end=place + len(text), vector=vector, meta=meta, attributes=_seen(meta)))
                    place += len(text) + 1
            chunks[name] = found
        await asyncio.to_thread(self.stores.insert, owner, store_id, chunks)

    async def search(
        self,
        owner: str,
        store_ids: Sequence[str],
        queries: Sequence[str],
        *,
        mode: Mode = "hybrid",
        limit: int = 10,
        wanted: Filter | None = None,
        ranking: Ranking | None = None,
    ) -> list[Hit]:
        """The best passages of some stores for some queries, best first; a passage that several queries find counts once."""
        stores = [await asyncio.to_thread(self.stores.touch, owner, store_id) for store_id in dict.fromkeys(store_ids)]
        if mode != "keyword":
            self._refuse_foreign(stores)
        vectors: Any = [None] * len(queries)
        if mode != "keyword" and any(store.num_chunks for store in stores):
            vectors = await self.embedder.embed(queries, owner=owner, in_background=False)
        found: dict[tuple[str, str, int], Hit] = {}
        for query, vector in zip(queries, vectors, strict=True):
            ask = partial(self._search, stores, query, vector, mode=mode, limit=limit, wanted=wanted, ranking=ranking)
            for hit in await asyncio.to_thread(ask):
                key = (hit.store_id, hit.file_id, hit.ordinal)
                if key not in found or found[key].score < hit.score:
                    found[key] = hit
        return sorted(found.values(), key=lambda hit: -hit.score)[:limit]

    def _refuse_foreign(self, stores: Sequence[VectorStoreRow]) -> None:
        """Vectors of two models say nothing of each other, even where they are of one width."""
        for store in stores:
            if store.num_chunks and store.embedding_model != self.embedder.name:
                raise ConflictError(
                    f"the vector store {store.id!r} was made with {store.embedding_model!r:.100}, {self.embedder.name!r:.100} is served",
                    hint="serve that model (--name is what counts), search by keyword, or make the store again",
                )

    def _search(self, stores: Sequence[VectorStoreRow], query: str, vector: Any, **how: Any) -> list[Hit]:
        with self._database.read() as session:
            return [hit for store in stores for hit in search(session, self.vectors, store, text=query, vector=vector, **how)]


def _seen(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What filters see of a client's metadata: its plain values."""
    plain = {key: value for key, value in meta.items() if isinstance(value, str | int | float | bool) and 0 < len(key) <= 64}
    return {key: value for key, value in list(plain.items())[:16] if not isinstance(value, str) or len(value) <= 512}
