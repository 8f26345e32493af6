"""Responses as they are kept: written whole or not at all, found by their owner alone, gone when they expire.

Items and data are JSON that the routes understand; here they are only kept. A response in the background has a row from the moment that it
was taken; one that a client waits for has one when it has ended.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from herd.base.errors import NotFoundError
from herd.store.conversations import append
from herd.store.database import Database
from herd.store.errors import ConflictError
from herd.store.paging import Cursor, Page, owned, page_of
from herd.store.tables.responses import ResponseEventsRow, ResponseItemRow, ResponseRow

OPEN_STATES = ("queued", "in_progress")
MAX_DEPTH = 10_000
"""Responses of one chain at most."""
_HINT = "GET /v1/responses lists yours; they are kept for 30 days"
Item = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredResponse:
    """A response and what it made."""

    row: ResponseRow
    output: list[Item]


def _rows(row: ResponseRow, items: Sequence[Item], *, first: int, output: bool) -> list[ResponseItemRow]:
    return [
        ResponseItemRow(response_id=row.id, place=first + number, owner=row.owner, item_id=item["id"], output=output, item=item)
        for number, item in enumerate(items)
    ]


def add(database: Database, row: ResponseRow, items: Sequence[Item], output: Sequence[Item] = ()) -> None:
    """Keep a new response with its input, and with its output where it has ended; its conversation, if it has one, grows with it."""
    with database.write() as session:
        session.add(row)
        session.flush()
        session.add_all(_rows(row, items, first=0, output=False))
        session.add_all(_rows(row, output, first=len(items), output=True))
        if row.conversation_id is not None and row.state not in OPEN_STATES:
            append(session, row.owner, row.conversation_id, [*items, *output])


def begin(database: Database, response_id: str, data: dict[str, Any]) -> bool:
    """A queued response is at work now. False where it is not queued any more."""
    with database.write() as session:
        row = session.get(ResponseRow, response_id, with_for_update=True)
        if row is None or row.state != "queued":
            return False
        row.state, row.data = "in_progress", data
        return True


def finish(database: Database, response_id: str, data: dict[str, Any], output: Sequence[Item]) -> bool:
    """A response has ended, with this output. False where it had already, or is gone: then nothing is changed."""
    with database.write() as session:
        row = session.get(ResponseRow, response_id, with_for_update=True)
        if row is None or row.state not in OPEN_STATES:
            return False
        mine = select(ResponseItemRow).where(ResponseItemRow.response_id == response_id).order_by(ResponseItemRow.place)
        items = [found.item for found in session.scalars(mine)]
        row.state, row.data, row.body = data["status"], data, None
        session.add_all(_rows(row, output, first=len(items), output=True))
        if row.conversation_id is not None:
            append(session, row.owner, row.conversation_id, [*items, *output], missing_ok=True)
        return True


def _output(session: Session, response_id: str) -> list[Item]:
    query = select(ResponseItemRow.item).where(ResponseItemRow.response_id == response_id, ResponseItemRow.output)
    return list(session.scalars(query.order_by(ResponseItemRow.place)))


def get(database: Database, owner: str, response_id: str) -> StoredResponse:
    """A response. Raises NotFoundError where the owner has none of this id."""
    with database.read() as session:
        row = owned(session, ResponseRow, owner, response_id, what="response", hint=_HINT)
        return StoredResponse(row=row, output=_output(session, response_id))


def page(database: Database, owner: str, cursor: Cursor, *, model: str | None = None) -> tuple[list[StoredResponse], bool]:
    """A page of an owner's responses, and whether there are more."""
    where = () if model is None else (ResponseRow.model == model,)
    with database.read() as session:
        found: Page[ResponseRow] = page_of(session, ResponseRow, owner, cursor, what="response", where=where, hint=_HINT)
        return [StoredResponse(row=row, output=_output(session, row.id)) for row in found.rows], found.has_more


def input_items(database: Database, owner: str, response_id: str, cursor: Cursor) -> tuple[list[Item], bool]:
    """A page of the items that came in with a response, and whether there are more."""
    with database.read() as session:
        owned(session, ResponseRow, owner, response_id, what="response", hint=_HINT)
        query = select(ResponseItemRow.item).where(ResponseItemRow.response_id == response_id, ~ResponseItemRow.output)
        query = query.order_by(ResponseItemRow.place if cursor.order == "asc" else ResponseItemRow.place.desc())
        return cut(list(session.scalars(query)), cursor)


def cut(items: list[Item], cursor: Cursor) -> tuple[list[Item], bool]:
    """A page of items that are all there. Raises NotFoundError for a cursor that is none of them."""
    for name in ("after", "before"):
        item_id = getattr(cursor, name)
        if item_id is None:
            continue
        place = next((place for place, item in enumerate(items) if item["id"] == item_id), None)
        if place is None:
            raise NotFoundError(f"there is no item {item_id!r:.100}", hint="give the id of an item of this list")
        items = items[place + 1 :] if name == "after" else items[:place]
    if cursor.before is not None and cursor.after is None:
        return items[-cursor.limit :], len(items) > cursor.limit
    return items[: cursor.limit], len(items) > cursor.limit


def history(database: Database, owner: str, response_id: str, *, max_items: int) -> list[Item]:
    """What was said up to a response and in it, oldest first. Raises NotFoundError where a part of that was deleted."""
    pieces: list[list[Item]] = []
    num = 0
    wanted: str | None = response_id
    with database.read() as session:
        while wanted is not None:
            row = session.scalars(select(ResponseRow).where(ResponseRow.id == wanted, ResponseRow.owner == owner)).one_or_none()
            if row is None:
                if not pieces:
                    raise NotFoundError(f"there is no response {wanted!r:.100}", hint=_HINT)
                message = f"the conversation of {response_id!r:.100} goes back to {wanted!r:.100}, which is not there any more"
                raise NotFoundError(message, hint="begin anew with the items themselves")
            if row.state in OPEN_STATES:
                raise ConflictError(f"the response {wanted!r} is {row.state}", hint="wait until it has ended")
            query = select(ResponseItemRow.item).where(ResponseItemRow.response_id == wanted).order_by(ResponseItemRow.place)
            pieces.append(list(session.scalars(query)))
            num += len(pieces[-1])
            if num > max_items or len(pieces) > MAX_DEPTH:
                raise ConflictError(f"the conversation has more than {max_items:,} items", hint="begin a new one with a summary")
            wanted = row.previous_id
    return [item for piece in reversed(pieces) for item in piece]


def find_item(database: Database, owner: str, item_id: str) -> Item | None:
    """An item of an owner's responses."""
    query = select(ResponseItemRow.item).where(ResponseItemRow.owner == owner, ResponseItemRow.item_id == item_id).limit(1)
    with database.read() as session:
        return session.scalars(query).first()


def delete_response(database: Database, owner: str, response_id: str) -> None:
    """Delete a response with its items and events. Raises NotFoundError where the owner has none of this id."""
    with database.write() as session:
        owned(session, ResponseRow, owner, response_id, what="response", hint=_HINT, lock=True)
        session.execute(delete(ResponseRow).where(ResponseRow.id == response_id))


def num_open(database: Database, owner: str) -> int:
    """Responses of an owner that have not ended."""
    query = select(func.count()).select_from(ResponseRow).where(ResponseRow.owner == owner, ResponseRow.state.in_(OPEN_STATES))
    with database.read() as session:
        return session.scalar(query) or 0


def open_responses(database: Database) -> list[tuple[ResponseRow, list[Item]]]:
    """Responses of all owners that have not ended, oldest first, with their input."""
    with database.read() as session:
        rows = session.scalars(select(ResponseRow).where(ResponseRow.state.in_(OPEN_STATES)).order_by(ResponseRow.created))
        query = select(ResponseItemRow.item).order_by(ResponseItemRow.place)
        return [(row, list(session.scalars(query.where(ResponseItemRow.response_id == row.id)))) for row in rows.all()]


def expire(database: Database, now: float) -> int:
    """Delete what is too old; how many there were. What is at work stays until it has ended."""
    query = delete(ResponseRow).where(ResponseRow.expires <= now, ResponseRow.state.not_in(OPEN_STATES))
    with database.write() as session:
        return session.connection().execute(query).rowcount


def save_events(database: Database, response_id: str, first: int, events: Sequence[bytes]) -> None:
    """Keep a piece of a response's events; nothing where the response is gone."""
    packed = zlib.compress(b"\0".join(events))
    with database.write() as session:
        if session.get(ResponseRow, response_id) is not None:
            session.merge(ResponseEventsRow(response_id=response_id, first=first, num=len(events), data=packed))


def events(database: Database, response_id: str) -> list[bytes]:
    """The events that were kept, in order."""
    query = select(ResponseEventsRow).where(ResponseEventsRow.response_id == response_id).order_by(ResponseEventsRow.first)
    with database.read() as session:
        return [event for row in session.scalars(query) for event in zlib.decompress(row.data).split(b"\0")]
