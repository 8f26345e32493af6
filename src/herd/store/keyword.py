"""Chunks by their words: candidates from FTS5 or a tsvector, scored by BM25 with the counts of their own store.

The databases' own scores will not do: FTS5 counts the words of every owner's texts, so a score would tell of others' documents, and
PostgreSQL's rank knows no rarity. Scores are shares of the best that the query could get, between 0 and 1.

    score(d) = sum over terms of idf(t) * tf * (k1 + 1) / (tf + k1 * (1 - b + b * |d| / mean))  /  sum of idf(t) * (k1 + 1)
    idf(t)   = ln(1 + (N - n + 1/2) / (n + 1/2))
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, case, cast, column, func, literal, literal_column, select, table, text
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.orm import Session

from herd.store.tables.vector_stores import ChunkRow, VectorStoreRow
from herd.store.words import terms_of

K1, B = 1.2, 0.75
_FTS = table("chunk_words", column("rowid"))
MAX_CANDIDATES = 400
"""Chunks that are scored; the database's own rank chooses them."""


def search_words(
    session: Session, store: VectorStoreRow, query: str, limit: int, where: Sequence[ColumnElement[bool]] = ()
) -> list[tuple[int, float]]:
    """Numbers and scores of the chunks of a store that hold words of the query, best first."""
    terms = terms_of(query)
    if not terms or not store.num_chunks:
        return []
    found = _Fts5(session, store) if session.get_bind().dialect.name == "sqlite" else _Tsvector(session, store)
    candidates = found.candidates(terms, max(limit, MAX_CANDIDATES), where)
    if not candidates:
        return []
    mean = max(1.0, store.num_words / store.num_chunks)
    idf = {term: _idf(store.num_chunks, found.count(term)) for term in terms}
    best = sum(idf.values()) * (K1 + 1)
    scored = [(number, _score(words, idf, mean) / best) for number, words in candidates]
    return sorted(scored, key=lambda one: (-one[1], one[0]))[:limit]


def _idf(num_chunks: int, num_with: int) -> float:
    return math.log1p((max(num_chunks, num_with) - num_with + 0.5) / (num_with + 0.5))


def _score(words: str, idf: dict[str, float], mean: float) -> float:
    counts = Counter(words.split(" "))
    norm = K1 * (1 - B + B * counts.total() / mean)
    return sum(weight * counts[term] * (K1 + 1) / (counts[term] + norm) for term, weight in idf.items())


class _Fts5:
    """The store's id is a column of the index, so that other stores' chunks are never walked through."""

    def __init__(self, session: Session, store: VectorStoreRow) -> None:
        self._session, self._store = session, f'store_id : "{store.id}"'

    def candidates(self, terms: Sequence[str], limit: int, where: Sequence[ColumnElement[bool]]) -> list[tuple[int, str]]:
        wanted = " OR ".join(f'"{term}"' for term in terms)
        query = (
            select(ChunkRow.number, ChunkRow.words)
            .join(_FTS, _FTS.c.rowid == ChunkRow.number)
            .where(literal_column("chunk_words").op("MATCH")(f"{self._store} AND words : ({wanted})"), *where)
            .order_by(text("bm25(chunk_words, 0.0, 1.0)"), ChunkRow.number)
            .limit(limit)
        )
        return [(number, words) for number, words in self._session.execute(query)]

    def count(self, term: str) -> int:
        query = text("SELECT count(*) FROM chunk_words WHERE chunk_words MATCH :wanted")
        return int(self._session.execute(query, {"wanted": f'{self._store} AND words : "{term}"'}).scalar_one())


class _Tsvector:
    """Words are lexemes as they are; none holds a quote or a backslash."""

    def __init__(self, session: Session, store: VectorStoreRow) -> None:
        self._session, self._store_id = session, store.id

    def candidates(self, terms: Sequence[str], limit: int, where: Sequence[ColumnElement[bool]]) -> list[tuple[int, str]]:
        held = sum((case((_holds(f"'{term}'"), 1), else_=0) for term in terms), literal(0))
        query = (
            select(ChunkRow.number, ChunkRow.words)
            .where(ChunkRow.store_id == self._store_id, _holds(" | ".join(f"'{term}'" for term in terms)), *where)
            .order_by(held.desc(), ChunkRow.number)
            .limit(limit)
        )
        return [(number, words) for number, words in self._session.execute(query)]

    def count(self, term: str) -> int:
        query = select(func.count()).select_from(ChunkRow).where(ChunkRow.store_id == self._store_id, _holds(f"'{term}'"))
        return int(self._session.scalar(query) or 0)


def _holds(wanted: str) -> Any:
    return literal_column("chunks.word_vector").op("@@")(cast(literal(wanted), TSQUERY))
