"""Chunks of a store by a query: by vectors, by words, or both ranked together; filters are part of the SQL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from herd.store.filters import Filter, condition
from herd.store.keyword import search_words
from herd.store.ranking import Ranking, fuse
from herd.store.tables.files import FileRow
from herd.store.tables.vector_stores import ChunkRow, VectorStoreRow
from herd.store.vectors import Vector, Vectors

Mode = Literal["vector", "keyword", "hybrid"]
_DEEPER = 4
"""Each ranking goes so many times deeper than what is asked for, before the two become one."""
_LEAST = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A chunk that was found, where it stands, and how well it fits: between 0 and 1."""

    store_id: str
    file_id: str
    filename: str
    text: str
    start: int
    end: int
    ordinal: int
    score: float
    attributes: dict[str, Any]
    meta: dict[str, Any]


def search(
    session: Session,
    vectors: Vectors,
    store: VectorStoreRow,
    *,
    mode: Mode,
    limit: int,
    text: str = "",
    vector: Vector | None = None,
    wanted: Filter | None = None,
    ranking: Ranking | None = None,
) -> list[Hit]:
    """The best chunks of a store, best first. `text` is for words, `vector` for vectors."""
    ranking = ranking or Ranking()
    where = [] if wanted is None else [condition(wanted, ChunkRow.attributes, sqlite=session.get_bind().dialect.name == "sqlite")]
    deep = limit if mode != "hybrid" else max(limit * _DEEPER, _LEAST)
    near: list[tuple[int, float]] = []
    worded: list[tuple[int, float]] = []
    if mode != "keyword" and vector is not None:
        allowed = None
        if where:
            allowed = session.scalars(select(ChunkRow.number).where(ChunkRow.store_id == store.id, *where)).all()
        near = [(number, max(0.0, min(1.0, score))) for number, score in vectors.search(session, store, vector, deep, allowed)]
    if mode != "vector":
        worded = search_words(session, store, text, deep, where)
    found = fuse(near, worded, ranking) if mode == "hybrid" else near or worded
    kept = [(number, score) for number, score in found if score >= ranking.threshold][:limit]
    return _hits(session, store, kept)


def _hits(session: Session, store: VectorStoreRow, found: list[tuple[int, float]]) -> list[Hit]:
    query = (
        select(ChunkRow, FileRow.filename)
        .outerjoin(FileRow, (FileRow.id == ChunkRow.file_id) & (FileRow.owner == store.owner))
        .where(ChunkRow.store_id == store.id, ChunkRow.number.in_([number for number, _ in found]))
    )
    rows = {chunk.number: (chunk, filename) for chunk, filename in session.execute(query)}
    return [
        Hit(
            store_id=store.id,
            file_id=chunk.file_id,
            filename=filename or chunk.file_id,
            text=chunk.text,
            start=chunk.start,
            end=chunk.end,
            ordinal=chunk.ordinal,
            score=score,
            attributes=chunk.attributes or {},
            meta=chunk.meta or {},
        )
        for number, score in found
        if number in rows
        for chunk, filename in [rows[number]]
    ]
