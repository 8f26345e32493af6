"""What the server keeps over a restart: rows of files and batches in SQLite, their bytes as plain files beside it.

    STATE/server.db       rows, in write-ahead mode
    STATE/files/ID        a file's bytes, under an id that the server made
    STATE/batches/ID.*    lines of a batch that is not finished
    STATE/lock            held while a server runs: two would both go on with the same batches

Every row has an owner, and no one finds another's: an id that is not yours does not exist. Methods are short, and for any thread.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import JSON, Select, create_engine, event, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from herd.base.errors import ConfigError
from herd.stack.errors import RequestError

SCHEMA_VERSION = 1
OPEN_STATES = ("validating", "in_progress", "finalizing", "cancelling")
"""Batches that are not at an end."""


class Base(DeclarativeBase):
    """Of all rows."""


class FileRow(Base):
    """A file that was uploaded, or that a batch wrote."""

    __tablename__ = "files"
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(index=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    size_bytes: Mapped[int]
    created: Mapped[float]


class BatchRow(Base):
    """A batch. Times are seconds since 1970; `ended` is that of the state which it ended in."""

    __tablename__ = "batches"
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(index=True)
    state: Mapped[str] = mapped_column(index=True)
    endpoint: Mapped[str]
    input_file_id: Mapped[str]
    window: Mapped[str]
    created: Mapped[float]
    expires: Mapped[float]
    begun: Mapped[float | None] = mapped_column(default=None)
    finalizing: Mapped[float | None] = mapped_column(default=None)
    cancelling: Mapped[float | None] = mapped_column(default=None)
    ended: Mapped[float | None] = mapped_column(default=None)
    output_file_id: Mapped[str | None] = mapped_column(default=None)
    error_file_id: Mapped[str | None] = mapped_column(default=None)
    outcome: Mapped[str] = mapped_column(default="completed")
    total: Mapped[int] = mapped_column(default=0)
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    meta: Mapped[dict[str, str] | None] = mapped_column(JSON, default=None)
    problems: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON, default=None)


_Row = TypeVar("_Row", FileRow, BatchRow)


class Storage:
    """The state directory of one server. Raises ConfigError where it cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            for path in (folder, self._files, self._batches):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot keep files in {folder}: {error.strerror}", hint="choose another --state-dir") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ConfigError(f"another server keeps its files in {folder}", hint="give each server a --state-dir of its own") from error
        self._engine = create_engine(f"sqlite:///{folder / 'server.db'}", connect_args={"timeout": 30})
        event.listen(self._engine, "connect", _prepare)
        self._create()
        self._sweep()

    def _sweep(self) -> None:
        """Remove bytes that no row names: uploads that a crash cut short."""
        named = {name for batch in self.open_batches() for name in (batch.output_file_id, batch.error_file_id)}
        with Session(self._engine) as session:
            named |= set(session.scalars(select(FileRow.id)))
        for path in self._files.iterdir():
            if path.name not in named:
                path.unlink()

    def _create(self) -> None:
        with self._engine.begin() as connection:
            version = connection.execute(text("PRAGMA user_version")).scalar_one()
            if version > SCHEMA_VERSION:
                raise ConfigError(
                    f"{self.folder} was written by a newer herd (schema {version}, this one knows {SCHEMA_VERSION})",
                    hint="update herd, or choose another --state-dir",
                )
            Base.metadata.create_all(connection)
            connection.execute(text(f"PRAGMA user_version = {SCHEMA_VERSION}"))

    def close(self) -> None:
        """Let go of the directory."""
        self._engine.dispose()
        os.close(self._lock)

    @property
    def _files(self) -> Path:
        return self.folder / "files"

    @property
    def _batches(self) -> Path:
        return self.folder / "batches"

    def file_path(self, file_id: str) -> Path:
        """Where a file's bytes are. Ids are the server's own; what a client sends is looked up first."""
        assert file_id.replace("-", "").isalnum(), file_id
        return self._files / file_id

    def lines_path(self, batch_id: str, kind: str) -> Path:
        """Where the lines of an open batch are written: `output` or `error`."""
        return self._batches / f"{batch_id}.{kind}.jsonl"

    def add(self, row: FileRow | BatchRow) -> None:
        """Keep a new row."""
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            session.add(row)

    def file(self, owner: str, file_id: str) -> FileRow:
        """A file. Raises RequestError where the owner has none of this id."""
        return self._get(FileRow, owner, file_id, "file", "files")

    def batch(self, owner: str, batch_id: str) -> BatchRow:
        """A batch. Raises RequestError where the owner has none of this id."""
        return self._get(BatchRow, owner, batch_id, "batch", "batches")

    def _get(self, kind: type[_Row], owner: str, row_id: str, what: str, many: str) -> _Row:
        with Session(self._engine) as session:
            row = session.get(kind, row_id)
        if row is None or row.owner != owner:
            raise RequestError("not_found", f"there is no {what} {row_id!r:.100}", hint=f"GET /v1/{many} lists yours")
        return row

    def files(self, owner: str, *, limit: int, after: str | None, newest_first: bool, purpose: str | None = None) -> list[FileRow]:
        """Files of an owner, a page of them."""
        query = select(FileRow).where(FileRow.owner == owner)
        if purpose is not None:
            query = query.where(FileRow.purpose == purpose)
        start = None if after is None else self.file(owner, after)
        return self._page(query, FileRow, start, limit, newest_first)

    def batches(self, owner: str, *, limit: int, after: str | None) -> list[BatchRow]:
        """Batches of an owner, newest first, a page of them."""
        start = None if after is None else self.batch(owner, after)
        return self._page(select(BatchRow).where(BatchRow.owner == owner), BatchRow, start, limit, True)

    def _page(self, query: Select[Any], kind: type[_Row], start: _Row | None, limit: int, newest_first: bool) -> list[_Row]:
        if start is not None:
            before = (kind.created < start.created) | ((kind.created == start.created) & (kind.id < start.id))
            after = (kind.created > start.created) | ((kind.created == start.created) & (kind.id > start.id))
            query = query.where(before if newest_first else after)
        order = (kind.created.desc(), kind.id.desc()) if newest_first else (kind.created, kind.id)
        with Session(self._engine) as session:
            return list(session.scalars(query.order_by(*order).limit(limit)))

    def open_batches(self, owner: str | None = None) -> Sequence[BatchRow]:
        """Batches that are not at an end, oldest first; of one owner, or all."""
        query = select(BatchRow).where(BatchRow.state.in_(OPEN_STATES)).order_by(BatchRow.created)
        with Session(self._engine) as session:
            return list(session.scalars(query if owner is None else query.where(BatchRow.owner == owner)))

    def stored_bytes(self, owner: str) -> int:
        """Size of all files of an owner."""
        with Session(self._engine) as session:
            return session.scalar(select(func.coalesce(func.sum(FileRow.size_bytes), 0)).where(FileRow.owner == owner)) or 0

    def delete_file(self, owner: str, file_id: str) -> None:
        """Forget a file. Raises RequestError while a batch reads it."""
        self.file(owner, file_id)
        if any(batch.input_file_id == file_id for batch in self.open_batches(owner)):
            raise RequestError("conflict", f"a batch reads {file_id!r}", hint="cancel the batch, or wait for its end")
        with Session(self._engine) as session, session.begin():
            row = session.get(FileRow, file_id)
            if row is not None:
                session.delete(row)
        self.file_path(file_id).unlink(missing_ok=True)

    def change(self, batch_id: str, *, only_from: Sequence[str] | None = None, **values: Any) -> BatchRow:
        """Set fields of a batch, if it is in one of these states; the row as it is then."""
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            row = session.get_one(BatchRow, batch_id)
            if only_from is None or row.state in only_from:
                for name, value in values.items():
                    setattr(row, name, value)
        return row

    def finish(self, batch_id: str, files: Sequence[FileRow], **values: Any) -> None:
        """End a batch and keep the files that it wrote, in one transaction."""
        with Session(self._engine) as session, session.begin():
            for row in files:
                session.merge(row)
            batch = session.get_one(BatchRow, batch_id)
            for name, value in {"ended": time.time(), **values}.items():
                setattr(batch, name, value)


def _prepare(connection: Any, _: Any) -> None:
    """Of every connection: readers do not wait for writers, and a commit outlives the machine's loss."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()
