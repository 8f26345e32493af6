"""Vector stores of owners, the files in them and their chunks: every change is one transaction, and counts change with what they count.

A file in a store is `in_progress` until its chunks are there, all at once: `completed`; or it `failed`; or was `cancelled`.
What a crash leaves `in_progress` has no chunks, and is indexed again. A store whose time is over is told as `expired`, and not searched.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from herd.base.errors import NotFoundError
from herd.store import pgvector
from herd.store.errors import ConflictError
from herd.store.filters import check_attributes
from herd.store.paging import Cursor, Page, owned, page_of
from herd.store.state import State
from herd.store.tables.base import is_storable
from herd.store.tables.files import FileRow
from herd.store.tables.vector_stores import ChunkRow, FileBatchRow, VectorStoreFileRow, VectorStoreRow
from herd.store.vectors import Vector, packed
from herd.store.words import words_of

DAY_S = 24 * 3600
STATUSES = ("in_progress", "completed", "cancelled", "failed")
_HINT = "GET /v1/vector_stores lists yours"
_FILE_HINT = "GET /v1/vector_stores/{vector_store_id}/files lists those in the store"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewChunk:
    """A passage that is to be kept."""

    text: str
    start: int
    end: int
    vector: Vector
    meta: dict[str, Any] | None = None
    attributes: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewFile:
    """A file that is to be indexed."""

    file_id: str
    attributes: Mapping[str, Any] | None
    chunking: dict[str, Any]


def expires_at(row: VectorStoreRow) -> float | None:
    """When a store's time is over."""
    return None if row.expires_days is None else row.last_active + row.expires_days * DAY_S


def is_expired(row: VectorStoreRow) -> bool:
    """Whether it is."""
    end = expires_at(row)
    return end is not None and end <= time.time()


def _stamp() -> str:
    return secrets.token_hex(8)


class VectorStores:
    """The vector stores of a state."""

    def __init__(self, state: State) -> None:
        self._database = state.database

    def add(self, row: VectorStoreRow) -> VectorStoreRow:
        """Keep a new store."""
        row.stamp, row.num_chunks, row.num_words = _stamp(), 0, 0
        with self._database.write() as session:
            same = select(VectorStoreRow.id).where(VectorStoreRow.owner == row.owner, VectorStoreRow.alias == row.alias)
            if row.alias is not None and session.scalar(same) is not None:
                raise ConflictError(f"there is a vector store {row.alias!r:.100}", hint="delete it first, or choose another name")
            session.add(row)
        return row

    def get(self, owner: str, store_id: str) -> VectorStoreRow:
        """A store. Raises NotFoundError where the owner has none of this id."""
        with self._database.read() as session:
            return _store(session, owner, store_id)

    def resolve(self, owner: str, name: str) -> VectorStoreRow:
        """A store by its id, or by the alias that its owner gave it."""
        query = select(VectorStoreRow).where(VectorStoreRow.owner == owner, VectorStoreRow.alias == name)
        with self._database.read() as session:
            found = session.scalars(query).one_or_none() if is_storable(name) else None
            return found or _store(session, owner, name)

    def page(self, owner: str, cursor: Cursor) -> Page[VectorStoreRow]:
        """A page of an owner's stores."""
        with self._database.read() as session:
            return page_of(session, VectorStoreRow, owner, cursor, what="vector store", hint=_HINT)

    def change(self, owner: str, store_id: str, **values: Any) -> VectorStoreRow:
        """Set fields of a store."""
        with self._database.write() as session:
            row = _store(session, owner, store_id, lock=True)
            for name, value in values.items():
                setattr(row, name, value)
        return row

    def touch(self, owner: str, store_id: str) -> VectorStoreRow:
        """Note that a store is used now, if its time depends on that. Raises ConflictError where its time is over."""
        row = self.get(owner, store_id)
        if is_expired(row):
            raise ConflictError(f"the vector store {store_id!r} is expired", hint="make a new one of its files")
        if row.expires_days is not None and row.last_active < time.time() - 60:
            row = self.change(owner, store_id, last_active=time.time())
        return row

    def delete(self, owner: str, store_id: str) -> None:
        """Forget a store and all in it; its files stay."""
        with self._database.write() as session:
            row = _store(session, owner, store_id, lock=True)
            for kind in (ChunkRow, VectorStoreFileRow, FileBatchRow):
                session.execute(delete(kind).where(kind.store_id == store_id))
            session.delete(row)

    def ids(self) -> list[str]:
        """Of all stores of all owners."""
        with self._database.read() as session:
            return list(session.scalars(select(VectorStoreRow.id)))

    def count(self, owner: str) -> int:
        """How many stores an owner has."""
        with self._database.read() as session:
            return session.scalar(select(func.count()).select_from(VectorStoreRow).where(VectorStoreRow.owner == owner)) or 0

    def counts(self, store_ids: Sequence[str]) -> dict[str, dict[str, int]]:
        """How many files of each status the stores have, and the bytes that they take."""
        with self._database.read() as session:
            return _counts(session, VectorStoreFileRow.store_id, store_ids)

    # Files

    def add_files(
        self, owner: str, store_id: str, files: Sequence[NewFile], *, batch: FileBatchRow | None = None
    ) -> list[VectorStoreFileRow]:
        """Put files into a store, to be indexed; one that is there is indexed anew. All, or none: raises NotFoundError, ConflictError."""
        now = time.time()
        with self._database.write() as session:
            store = _store(session, owner, store_id, lock=True)
            if is_expired(store):
                raise ConflictError(f"the vector store {store_id!r} is expired", hint="make a new one")
            if batch is not None:
                session.add(batch)
                session.flush()
            rows = [self._add_file(session, store, file, now, batch) for file in files]
            store.last_active = now
        return rows

    def _add_file(
        self, session: Session, store: VectorStoreRow, file: NewFile, now: float, batch: FileBatchRow | None
    ) -> VectorStoreFileRow:
        owned(session, FileRow, store.owner, file.file_id, what="file", hint="GET /v1/files lists yours")
        old = session.get(VectorStoreFileRow, {"store_id": store.id, "id": file.file_id})
        if old is not None:
            _drop(session, store, file.file_id)
            session.delete(old)
            session.flush()
        row = VectorStoreFileRow(
            store_id=store.id,
            id=file.file_id,
            owner=store.owner,
            created=now,
            status="in_progress",
            attributes=check_attributes(file.attributes),
            chunking=file.chunking,
            batch_id=None if batch is None else batch.id,
            usage_bytes=0,
        )
        session.add(row)
        return row

    def file(self, owner: str, store_id: str, file_id: str) -> VectorStoreFileRow:
        """A file in a store. Raises NotFoundError."""
        with self._database.read() as session:
            _store(session, owner, store_id)
            return _file(session, owner, store_id, file_id)

    def files(
        self, owner: str, store_id: str, cursor: Cursor, *, status: str | None = None, batch_id: str | None = None
    ) -> Page[VectorStoreFileRow]:
        """A page of the files in a store, or of one batch of them."""
        where = [VectorStoreFileRow.store_id == store_id]
        if status is not None:
            where.append(VectorStoreFileRow.status == status)
        if batch_id is not None:
            where.append(VectorStoreFileRow.batch_id == batch_id)
        with self._database.read() as session:
            _store(session, owner, store_id)
            return page_of(session, VectorStoreFileRow, owner, cursor, what="file in the vector store", where=where, hint=_FILE_HINT)

    def set_attributes(self, owner: str, store_id: str, file_id: str, attributes: Mapping[str, Any] | None) -> VectorStoreFileRow:
        """Change what filters see of a file."""
        checked = check_attributes(attributes)
        with self._database.write() as session:
            _store(session, owner, store_id)
            row = _file(session, owner, store_id, file_id, lock=True)
            row.attributes = checked
            session.execute(update(ChunkRow).where(ChunkRow.store_id == store_id, ChunkRow.file_id == file_id).values(attributes=checked))
        return row

    def remove_file(self, owner: str, store_id: str, file_id: str) -> None:
        """Take a file out of a store; the file itself stays."""
        with self._database.write() as session:
            store = _store(session, owner, store_id, lock=True)
            session.delete(_file(session, owner, store_id, file_id))
            _drop(session, store, file_id)

    def chunks(self, owner: str, store_id: str, file_id: str) -> Sequence[ChunkRow]:
        """The passages of a file in a store, in order."""
        with self._database.read() as session:
            _store(session, owner, store_id)
            _file(session, owner, store_id, file_id)
            query = select(ChunkRow).where(ChunkRow.store_id == store_id, ChunkRow.file_id == file_id).order_by(ChunkRow.ordinal)
            return session.scalars(query).all()

    # Batches of files

    def batch(self, owner: str, store_id: str, batch_id: str) -> tuple[FileBatchRow, dict[str, int]]:
        """A batch of files, and how many of each status it has."""
        with self._database.read() as session:
            _store(session, owner, store_id)
            row = _batch(session, owner, store_id, batch_id)
            return row, _counts(session, VectorStoreFileRow.batch_id, [batch_id])[batch_id]

    def cancel_batch(self, owner: str, store_id: str, batch_id: str) -> None:
        """Files of a batch that are not indexed yet will not be."""
        with self._database.write() as session:
            _store(session, owner, store_id)
            row = _batch(session, owner, store_id, batch_id, lock=True)
            row.cancelled = True
            session.execute(
                update(VectorStoreFileRow)
                .where(VectorStoreFileRow.batch_id == batch_id, VectorStoreFileRow.status == "in_progress")
                .values(status="cancelled")
            )

    # Indexing

    def pending(self, limit: int) -> Sequence[VectorStoreFileRow]:
        """Files of all owners that wait to be indexed, oldest first."""
        query = select(VectorStoreFileRow).where(VectorStoreFileRow.status == "in_progress")
        with self._database.read() as session:
            return session.scalars(query.order_by(VectorStoreFileRow.created, VectorStoreFileRow.id).limit(limit)).all()

    def complete(self, row: VectorStoreFileRow, chunks: Sequence[NewChunk]) -> bool:
        """Keep the chunks of a file, and that it is done, at once. False where it was cancelled or taken out meanwhile."""
        with self._database.write() as session:
            store = session.get(VectorStoreRow, row.store_id, with_for_update=True)
            file = session.get(VectorStoreFileRow, {"store_id": row.store_id, "id": row.id}, with_for_update=True)
            # `created` tells this row from one of a file that was taken out and put in again.
            if store is None or file is None or (file.status, file.created) != ("in_progress", row.created):
                return False
            _insert(session, store, file.id, chunks, file.attributes)
            file.status, file.error_code, file.error_message = "completed", None, None
            file.usage_bytes = sum(len(chunk.text.encode()) + 4 * (store.dimensions or 0) for chunk in chunks)
        return True

    def fail(self, row: VectorStoreFileRow, code: str, message: str) -> None:
        """Note why a file cannot be indexed."""
        with self._database.write() as session:
            session.execute(
                update(VectorStoreFileRow)
                .where(
                    VectorStoreFileRow.store_id == row.store_id,
                    VectorStoreFileRow.id == row.id,
                    VectorStoreFileRow.created == row.created,
                    VectorStoreFileRow.status == "in_progress",
                )
                .values(status="failed", error_code=code, error_message=message[:1000])
            )

    def insert(self, owner: str, store_id: str, chunks: Mapping[str, Sequence[NewChunk]]) -> None:
        """Add passages to a client's own documents, by their names; a passage that the document has is not added again."""
        with self._database.write() as session:
            store = _store(session, owner, store_id, lock=True)
            for name, found in chunks.items():
                where = (ChunkRow.store_id == store_id, ChunkRow.file_id == name)
                known = {text: ordinal for text, ordinal in session.execute(select(ChunkRow.text, ChunkRow.ordinal).where(*where))}  # noqa: C416
                fresh = [chunk for chunk in {chunk.text: chunk for chunk in found}.values() if chunk.text not in known]
                _insert(session, store, name, fresh, None, first=max(known.values(), default=-1) + 1)
            store.last_active = time.time()

    def forget_file(self, session: Session, owner: str, file_id: str) -> None:
        """Take a file that is being deleted out of all stores of its owner."""
        rows = session.scalars(select(VectorStoreFileRow).where(VectorStoreFileRow.id == file_id, VectorStoreFileRow.owner == owner)).all()
        for row in rows:
            store = session.get_one(VectorStoreRow, row.store_id, with_for_update=True)
            _drop(session, store, file_id)
            session.delete(row)


def _store(session: Session, owner: str, store_id: str, *, lock: bool = False) -> VectorStoreRow:
    return owned(session, VectorStoreRow, owner, store_id, what="vector store", hint=_HINT, lock=lock)


def _file(session: Session, owner: str, store_id: str, file_id: str, *, lock: bool = False) -> VectorStoreFileRow:
    where = (VectorStoreFileRow.store_id == store_id,)
    return owned(session, VectorStoreFileRow, owner, file_id, what="file in the vector store", hint=_FILE_HINT, where=where, lock=lock)


def _batch(session: Session, owner: str, store_id: str, batch_id: str, *, lock: bool = False) -> FileBatchRow:
    row = owned(session, FileBatchRow, owner, batch_id, what="file batch", hint="make one with POST .../file_batches", lock=lock)
    if row.store_id != store_id:
        raise NotFoundError(f"there is no file batch {batch_id!r:.100} of {store_id!r:.100}", hint="name the store that it was made in")
    return row


def _counts(session: Session, column: Any, ids: Sequence[str]) -> dict[str, dict[str, int]]:
    query = (
        select(column, VectorStoreFileRow.status, func.count(), func.coalesce(func.sum(VectorStoreFileRow.usage_bytes), 0))
        .where(column.in_(ids))
        .group_by(column, VectorStoreFileRow.status)
    )
    found = {one: {**dict.fromkeys(STATUSES, 0), "total": 0, "bytes": 0} for one in ids}
    for one, status, count, size_bytes in session.execute(query):
        found[one][status] = count
        found[one]["total"] += count
        found[one]["bytes"] += int(size_bytes)
    return found


def _insert(
    session: Session, store: VectorStoreRow, file_id: str, chunks: Iterable[NewChunk], attributes: dict[str, Any] | None, *, first: int = 0
) -> None:
    rows: list[dict[str, Any]] = []
    for ordinal, chunk in enumerate(chunks, start=first):
        width = len(chunk.vector)
        if store.dimensions is None:
            store.dimensions = width
        if width != store.dimensions:
            raise ConflictError(
                f"a vector has {width:,} numbers, those of {store.id!r} have {store.dimensions:,}",
                hint=f"use the model that the store was made with: {store.embedding_model}",
            )
        words = words_of(chunk.text)
        rows.append(
            {
                "store_id": store.id,
                "file_id": file_id,
                "ordinal": ordinal,
                "text": chunk.text,
                "words": " ".join(words),
                "num_words": len(words),
                "start": chunk.start,
                "end": chunk.end,
                "attributes": check_attributes(chunk.attributes) if chunk.attributes is not None else attributes,
                "meta": chunk.meta,
                "vector": packed(chunk.vector),
            }
        )
    if rows:
        last = session.scalar(select(func.max(ChunkRow.number)).where(ChunkRow.store_id == store.id))
        session.execute(ChunkRow.__table__.insert(), rows)  # pyright: ignore[reportAttributeAccessIssue]
        if pgvector.serves(session):
            pgvector.keep(session, store.id, -1 if last is None else last, store.dimensions or 0)
        store.num_chunks += len(rows)
        store.num_words += sum(row["num_words"] for row in rows)
    store.stamp = _stamp()


def _drop(session: Session, store: VectorStoreRow, file_id: str) -> None:
    where = (ChunkRow.store_id == store.id, ChunkRow.file_id == file_id)
    count, num_words = session.execute(select(func.count(), func.coalesce(func.sum(ChunkRow.num_words), 0)).where(*where)).one()
    if count:
        session.execute(delete(ChunkRow).where(*where))
        store.num_chunks -= count
        store.num_words -= int(num_words)
        store.stamp = _stamp()
