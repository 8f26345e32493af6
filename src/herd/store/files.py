"""Files of owners: rows, and their bytes as blobs.

An upload is written beside, made a blob, and then a row: what has a row is complete. A deletion takes the row first. A file whose time is
over is no longer found at once, and goes with the next `expire`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from herd.store.errors import ConflictError
from herd.store.paging import Cursor, Page, owned, page_of
from herd.store.state import State
from herd.store.tables.batches import BatchRow
from herd.store.tables.files import FileRow

_HINT = "GET /v1/files lists yours"
OPEN_STATES = ("validating", "in_progress", "finalizing", "cancelling")
"""Batches that are not at an end."""

OnDelete = Callable[[Session, str, str], None]
"""Called in the transaction that deletes a file, with its owner and id: to let go of what was made of it, or to object."""


def _alive() -> Any:
    return or_(FileRow.expires.is_(None), FileRow.expires > time.time())


class Files:
    """The files of a state."""

    def __init__(self, state: State, *, on_delete: Sequence[OnDelete] = ()) -> None:
        self._database, self._blobs = state.database, state.blobs
        self._on_delete = on_delete

    def keep(self, row: FileRow, source: Path | bytes) -> FileRow:
        """Make a local file, or bytes, a file of the row's owner. After an error there is neither row nor blob."""
        try:
            if isinstance(source, bytes):
                self._blobs.put(source, row.id)
            else:
                self._blobs.adopt(source, row.id)
            self.add(row)
        except BaseException:
            self._blobs.delete(row.id)
            raise
        return row

    def add(self, row: FileRow) -> None:
        """Keep the row of a blob that is there."""
        with self._database.write() as session:
            session.add(row)

    def get(self, owner: str, file_id: str) -> FileRow:
        """A file. Raises NotFoundError where the owner has none of this id."""
        with self._database.read() as session:
            return owned(session, FileRow, owner, file_id, what="file", hint=_HINT, where=(_alive(),))

    def page(self, owner: str, cursor: Cursor, *, purpose: str | None = None) -> Page[FileRow]:
        """A page of an owner's files."""
        where = [_alive()] if purpose is None else [_alive(), FileRow.purpose == purpose]
        with self._database.read() as session:
            return page_of(session, FileRow, owner, cursor, what="file", where=where, hint=_HINT)

    def open(self, file_id: str) -> BinaryIO:
        """The bytes of a file that was looked up. Raises NotFoundError where they are lost."""
        return self._blobs.open(file_id)

    def stored_bytes(self, owner: str) -> int:
        """Size of all files of an owner."""
        with self._database.read() as session:
            return int(session.scalar(select(func.coalesce(func.sum(FileRow.size_bytes), 0)).where(FileRow.owner == owner)) or 0)

    def delete(self, owner: str, file_id: str) -> None:
        """Forget a file and what was made of it. Raises ConflictError while a batch reads it."""
        with self._database.write() as session:
            row = owned(session, FileRow, owner, file_id, what="file", hint=_HINT, lock=True)
            reading = select(BatchRow.id).where(BatchRow.input_file_id == file_id, BatchRow.state.in_(OPEN_STATES)).limit(1)
            if session.scalar(reading) is not None:
                raise ConflictError(f"a batch reads {file_id!r}", hint="cancel the batch, or wait for its end")
            for act in self._on_delete:
                act(session, owner, file_id)
            session.delete(row)
        self._blobs.delete(file_id)

    def expire(self) -> int:
        """Delete the files whose time is over; how many. Those that a batch reads wait."""
        with self._database.read() as session:
            rows = list(session.scalars(select(FileRow).where(FileRow.expires <= time.time())))
        count = 0
        for row in rows:
            with contextlib.suppress(ConflictError):
                self.delete(row.owner, row.id)
                count += 1
        return count
