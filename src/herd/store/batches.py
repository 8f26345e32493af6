"""Batches of owners: rows whose state goes one way, each step in a transaction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select

from herd.store.files import OPEN_STATES
from herd.store.paging import Cursor, Page, owned, page_of
from herd.store.state import State
from herd.store.tables.batches import BatchRow
from herd.store.tables.files import FileRow

_HINT = "GET /v1/batches lists yours"


class Batches:
    """The batches of a state."""

    def __init__(self, state: State) -> None:
        self._database = state.database

    def add(self, row: BatchRow) -> None:
        """Keep a new batch."""
        with self._database.write() as session:
            session.add(row)

    def get(self, owner: str, batch_id: str) -> BatchRow:
        """A batch. Raises NotFoundError where the owner has none of this id."""
        with self._database.read() as session:
            return owned(session, BatchRow, owner, batch_id, what="batch", hint=_HINT)

    def page(self, owner: str, cursor: Cursor) -> Page[BatchRow]:
        """A page of an owner's batches."""
        with self._database.read() as session:
            return page_of(session, BatchRow, owner, cursor, what="batch", hint=_HINT)

    def open(self, owner: str | None = None) -> Sequence[BatchRow]:
        """Batches that are not at an end, oldest first; of one owner, or all."""
        query = select(BatchRow).where(BatchRow.state.in_(OPEN_STATES)).order_by(BatchRow.created)
        with self._database.read() as session:
            return list(session.scalars(query if owner is None else query.where(BatchRow.owner == owner)))

    def change(self, batch_id: str, *, only_from: Sequence[str] | None = None, **values: Any) -> BatchRow:
        """Set fields of a batch, if it is in one of these states; the row as it is then."""
        with self._database.write() as session:
            row = session.get_one(BatchRow, batch_id, with_for_update=True)
            if only_from is None or row.state in only_from:
                for name, value in values.items():
                    setattr(row, name, value)
        return row

    def finish(self, batch_id: str, files: Sequence[FileRow], **values: Any) -> None:
        """End a batch and keep the files that it wrote, in one transaction."""
        with self._database.write() as session:
            for row in files:
                session.merge(row)
            batch = session.get_one(BatchRow, batch_id, with_for_update=True)
            for name, value in {"ended": time.time(), **values}.items():
                setattr(batch, name, value)
