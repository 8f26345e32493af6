"""Is what is kept whole: the database by its own checks, every file's bytes, counts against rows, indexes against rows.

Nothing is changed, and a server may run meanwhile.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from herd.base.errors import NotFoundError
from herd.store import check_sessions, page_chats, registrations
from herd.store.blobs import Blobs
from herd.store.database import Database
from herd.store.files import OPEN_STATES
from herd.store.migrate import current, revisions
from herd.store.tables.batches import BatchRow
from herd.store.tables.files import FileRow
from herd.store.tables.vector_stores import ChunkRow, VectorStoreFileRow, VectorStoreRow
from herd.store.vectors import Vectors

Report = Callable[[int, str], None]
_SETTLE_S = 1.0
"""What an upload needs between its bytes and its row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that is wrong: its kind, the object, and a sentence."""

    kind: str
    subject: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What was looked at, and what is wrong with it."""

    revision: str | None
    counts: dict[str, int]
    problems: list[Problem]


def check(database: Database, blobs: Blobs, vectors: Vectors, *, deep: bool = False, report: Report = lambda _, __: None) -> Findings:
    """Look at everything; `deep` reads every byte of every file against its SHA-256."""
    with database.read() as session:
        revision = current(session.connection())
    newest = revisions()[-1]
    if revision != newest:
        told = f"the database is at revision {revision or 'none'}, this herd's is {newest}: herd db upgrade"
        return Findings(revision=revision, counts={}, problems=[Problem(kind="revision", subject="database", message=told)])
    problems = list(_database(database))
    present = set(blobs.ids())
    with database.read() as session:
        files = list(session.scalars(select(FileRow)))
        pending = _pending(session)
        problems += _vector_stores(session, vectors)
        problems += [Problem(kind="registration", subject=one, message=told) for one, told in registrations.problems(session)]
        problems += [Problem(kind="session", subject=one, message=told) for one, told in check_sessions.problems(session)]
        problems += [Problem(kind="chat", subject=one, message=told) for one, told in page_chats.problems(session)]
        counts = {
            "files": len(files),
            "blobs": len(present),
            "vector_stores": session.scalar(select(func.count()).select_from(VectorStoreRow)) or 0,
            "chunks": session.scalar(select(func.count()).select_from(ChunkRow)) or 0,
            "registrations": registrations.count(session),
            "sessions": check_sessions.count(session),
            "chats": page_chats.count(session),
        }
    for number, row in enumerate(files, start=1):
        problems += _file(row, blobs, deep)
        report(number, row.id)
    orphans = present - {row.id for row in files} - pending
    if orphans:
        time.sleep(_SETTLE_S)
        with database.read() as session:
            orphans -= set(session.scalars(select(FileRow.id))) | _pending(session)
        orphans &= set(blobs.ids())
    problems += [
        Problem(kind="orphan", subject=one, message="bytes that no file names; the server's next start removes them")
        for one in sorted(orphans)
    ]
    return Findings(revision=revision, counts=counts, problems=problems)


def _pending(session: Session) -> set[str]:
    """Files that open batches are about to write."""
    rows = session.execute(select(BatchRow.output_file_id, BatchRow.error_file_id).where(BatchRow.state.in_(OPEN_STATES)))
    return {name for row in rows for name in row if name}


def _database(database: Database) -> Iterator[Problem]:
    """The database's own checks."""
    if not database.is_sqlite:
        return
    with database.read() as session:
        for row in session.execute(text("PRAGMA integrity_check")):
            if row[0] != "ok":
                yield Problem(kind="database", subject="database", message=str(row[0])[:300])
        for row in session.execute(text("PRAGMA foreign_key_check")):
            yield Problem(kind="database", subject=str(row[0]), message=f"row {row[1]} names a row of {row[2]} that is not there")
    damaged = _words(database)
    if damaged is not None:
        yield damaged


def _words(database: Database) -> Problem | None:
    """FTS5 compares its index with the chunks; the command is spelled as a write, and writes nothing."""
    from sqlalchemy.exc import DatabaseError

    try:
        with database.connect() as connection:
            connection.exec_driver_sql("INSERT INTO chunk_words (chunk_words, rank) VALUES ('integrity-check', 1)")
    except DatabaseError as error:
        return Problem(kind="index", subject="chunk_words", message=f"the index of words is not that of the chunks: {error.orig}")
    return None


def _file(row: FileRow, blobs: Blobs, deep: bool) -> Iterator[Problem]:
    size = blobs.size(row.id)
    if size is None:
        yield Problem(kind="missing", subject=row.id, message=f"the bytes of {row.filename!r:.80} are gone")
    elif size != row.size_bytes:
        yield Problem(kind="damaged", subject=row.id, message=f"it has {size:,} bytes, its row says {row.size_bytes:,}")
    elif deep and row.digest is not None:
        try:
            with blobs.open(row.id) as file:
                digest = hashlib.sha256()
                while piece := file.read(2**20):
                    digest.update(piece)
        except NotFoundError:
            return
        if digest.hexdigest() != row.digest:
            yield Problem(kind="damaged", subject=row.id, message="its bytes are not those that were uploaded (SHA-256 differs)")


def _vector_stores(session: Session, vectors: Vectors) -> Iterator[Problem]:
    """Counts, files and indexes of every store."""
    sums: dict[str, Any] = {
        store_id: (count, int(words), widths)
        for store_id, count, words, widths in session.execute(
            select(
                ChunkRow.store_id,
                func.count(),
                func.coalesce(func.sum(ChunkRow.num_words), 0),
                func.count(func.distinct(func.length(ChunkRow.vector))),
            ).group_by(ChunkRow.store_id)
        )
    }
    for store in session.scalars(select(VectorStoreRow)).all():
        count, words, widths = sums.get(store.id, (0, 0, 0))
        if (store.num_chunks, store.num_words) != (count, words):
            told = f"it counts {store.num_chunks:,} chunks of {store.num_words:,} words, there are {count:,} of {words:,}"
            yield Problem(kind="counts", subject=store.id, message=told)
        if widths > 1:
            yield Problem(kind="vectors", subject=store.id, message="its vectors are not all of one width")
        for message in vectors.problems(session, store):
            yield Problem(kind="index", subject=store.id, message=message)
    lost = (
        select(VectorStoreFileRow.store_id, VectorStoreFileRow.id)
        .outerjoin(FileRow, FileRow.id == VectorStoreFileRow.id)
        .where(FileRow.id.is_(None))
    )
    for store_id, file_id in session.execute(lost):
        yield Problem(kind="missing", subject=file_id, message=f"the vector store {store_id} names it, and there is no such file")
    yield from _stray_chunks(session)


def _stray_chunks(session: Session) -> Iterator[Problem]:
    """Chunks of a file that is not in their store. (Those of a client's own documents have no file.)"""
    query = (
        select(ChunkRow.store_id, ChunkRow.file_id, func.count())
        .outerjoin(VectorStoreFileRow, (VectorStoreFileRow.store_id == ChunkRow.store_id) & (VectorStoreFileRow.id == ChunkRow.file_id))
        .where(ChunkRow.file_id.startswith("file-"), (VectorStoreFileRow.id.is_(None)) | (VectorStoreFileRow.status != "completed"))
        .group_by(ChunkRow.store_id, ChunkRow.file_id)
    )
    for store_id, file_id, count in session.execute(query):
        yield Problem(kind="orphan", subject=file_id, message=f"{count:,} chunks in {store_id} of a file that is not completed there")
