"""Pages of an owner's objects by cursor, oldest or newest first, with a true `has_more`.

A cursor is the id of an object; pages go by (created, id), so an object that comes or goes meanwhile moves no other across a border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import Select, select, tuple_
from sqlalchemy.orm import Session

from herd.base.errors import NotFoundError
from herd.store.tables.base import Owned, is_storable

Order = Literal["asc", "desc"]
Row = TypeVar("Row", bound=Owned)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """Which page: up to `limit` objects behind `after` or in front of `before`, in this order."""

    limit: int = 20
    after: str | None = None
    before: str | None = None
    order: Order = "desc"


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[Row]):
    """Objects in their order, and whether there are more in the direction that was asked for."""

    rows: Sequence[Row]
    has_more: bool


def owned(
    session: Session,
    kind: type[Row],
    owner: str,
    row_id: str,
    *,
    what: str,
    hint: str | None = None,
    where: Sequence[Any] = (),
    lock: bool = False,
) -> Row:
    """An object of an owner. Raises NotFoundError where they have none of this id, whoever else has. `lock` it to change it."""
    query = select(kind).where(kind.id == row_id, kind.owner == owner, *where)
    # An id that no database could hold is nobody's.
    row = session.scalars(query.with_for_update() if lock else query).one_or_none() if is_storable(row_id) else None
    if row is None:
        raise NotFoundError(f"there is no {what} {row_id!r:.100}", hint=hint)
    return row


def page_of(
    session: Session, kind: type[Row], owner: str, cursor: Cursor, *, what: str, where: Sequence[Any] = (), hint: str | None = None
) -> Page[Row]:
    """A page of an owner's objects, of those that fulfil `where`. Raises NotFoundError for a cursor that is none of theirs."""
    query: Select[Any] = select(kind).where(kind.owner == owner, *where)
    forward = cursor.order == "asc"
    place = tuple_(kind.created, kind.id)
    for name in ("after", "before"):
        row_id = getattr(cursor, name)
        if row_id is not None:
            row = owned(session, kind, owner, row_id, what=what, hint=hint, where=where)
            edge = tuple_(row.created, row.id)
            query = query.where(place > edge if (name == "after") == forward else place < edge)
    backwards = cursor.before is not None and cursor.after is None
    ascending = forward != backwards
    keys = (kind.created, kind.id) if ascending else (kind.created.desc(), kind.id.desc())
    found = list(session.scalars(query.order_by(*keys).limit(cursor.limit + 1)))
    kept = found[: cursor.limit]
    return Page(rows=kept[::-1] if backwards else kept, has_more=len(found) > cursor.limit)
