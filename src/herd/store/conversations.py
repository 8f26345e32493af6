"""Conversations and their items, as they are kept. An item has a place that no other gets; pages go by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from herd.base.errors import NotFoundError
from herd.store.database import Database
from herd.store.paging import Cursor, owned
from herd.store.tables.responses import ConversationItemRow, ConversationRow

Item = dict[str, Any]
_HINT = "POST /v1/conversations begins one"


def add(database: Database, row: ConversationRow, items: Sequence[Item]) -> None:
    """Keep a new conversation."""
    with database.write() as session:
        session.add(row)
        session.flush()
        append(session, row.owner, row.id, items)


def get(database: Database, owner: str, conversation_id: str) -> ConversationRow:
    """A conversation. Raises NotFoundError where the owner has none of this id."""
    with database.read() as session:
        return owned(session, ConversationRow, owner, conversation_id, what="conversation", hint=_HINT)


def update(database: Database, owner: str, conversation_id: str, meta: dict[str, str]) -> ConversationRow:
    """Change what is told of it."""
    with database.write() as session:
        row = owned(session, ConversationRow, owner, conversation_id, what="conversation", hint=_HINT, lock=True)
        row.meta = meta
        return row


def delete_conversation(database: Database, owner: str, conversation_id: str) -> None:
    """Delete it with its items. Responses that were made in it stay."""
    with database.write() as session:
        owned(session, ConversationRow, owner, conversation_id, what="conversation", hint=_HINT, lock=True)
        session.execute(delete(ConversationRow).where(ConversationRow.id == conversation_id))


def append(session: Session, owner: str, conversation_id: str, items: Sequence[Item], *, missing_ok: bool = False) -> list[Item]:
    """Add items at the end, those whose id is there already not again; those that were added.

    Raises NotFoundError where the owner has none of this id, unless that is fine.
    """
    try:
        owned(session, ConversationRow, owner, conversation_id, what="conversation", hint=_HINT, lock=True)
    except NotFoundError:
        if missing_ok:
            return []
        raise
    mine = ConversationItemRow.conversation_id == conversation_id
    last = session.scalar(select(func.max(ConversationItemRow.place)).where(mine))
    place = 0 if last is None else last + 1
    ids = [item["id"] for item in items]
    known = set(session.scalars(select(ConversationItemRow.item_id).where(mine, ConversationItemRow.item_id.in_(ids)))) if ids else set()
    added: list[Item] = []
    for item in items:
        if item["id"] not in known:
            known.add(item["id"])
            added.append(item)
    session.add_all(
        ConversationItemRow(conversation_id=conversation_id, place=place + number, owner=owner, item_id=item["id"], item=item)
        for number, item in enumerate(added)
    )
    return added


def add_items(database: Database, owner: str, conversation_id: str, items: Sequence[Item]) -> list[Item]:
    """Add items at the end; those that were not there."""
    with database.write() as session:
        return append(session, owner, conversation_id, items)


def num_items(database: Database, conversation_id: str) -> int:
    """How many items it has."""
    query = select(func.count()).select_from(ConversationItemRow).where(ConversationItemRow.conversation_id == conversation_id)
    with database.read() as session:
        return session.scalar(query) or 0


def page(database: Database, owner: str, conversation_id: str, cursor: Cursor) -> tuple[list[Item], bool]:
    """A page of items, and whether there are more. Raises NotFoundError for a cursor that is none of them."""
    with database.read() as session:
        owned(session, ConversationRow, owner, conversation_id, what="conversation", hint=_HINT)
        place = ConversationItemRow.place
        query = select(ConversationItemRow.item).where(ConversationItemRow.conversation_id == conversation_id)
        forward = cursor.order == "asc"
        if cursor.after is not None:
            edge = _item(session, conversation_id, cursor.after).place
            query = query.where(place > edge if forward else place < edge)
        query = query.order_by(place if forward else place.desc()).limit(cursor.limit + 1)
        found = list(session.scalars(query))
    return found[: cursor.limit], len(found) > cursor.limit


def _item(session: Session, conversation_id: str, item_id: str) -> ConversationItemRow:
    query = select(ConversationItemRow).where(
        ConversationItemRow.conversation_id == conversation_id, ConversationItemRow.item_id == item_id
    )
    row = session.scalars(query).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no item {item_id!r:.100} in this conversation", hint="its items are listed with GET")
    return row


def item(database: Database, owner: str, conversation_id: str, item_id: str) -> Item:
    """One item. Raises NotFoundError."""
    with database.read() as session:
        owned(session, ConversationRow, owner, conversation_id, what="conversation", hint=_HINT)
        return _item(session, conversation_id, item_id).item


def items(database: Database, owner: str, conversation_id: str) -> list[Item]:
    """All items, oldest first."""
    with database.read() as session:
        owned(session, ConversationRow, owner, conversation_id, what="conversation", hint=_HINT)
        query = select(ConversationItemRow.item).where(ConversationItemRow.conversation_id == conversation_id)
        return list(session.scalars(query.order_by(ConversationItemRow.place)))


def delete_item(database: Database, owner: str, conversation_id: str, item_id: str) -> ConversationRow:
    """Delete one item; the conversation."""
    with database.write() as session:
        row = owned(session, ConversationRow, owner, conversation_id, what="conversation", hint=_HINT, lock=True)
        session.delete(_item(session, conversation_id, item_id))
        return row


def find_item(database: Database, owner: str, item_id: str) -> Item | None:
    """An item of an owner's conversations."""
    query = select(ConversationItemRow.item).where(ConversationItemRow.owner == owner, ConversationItemRow.item_id == item_id).limit(1)
    with database.read() as session:
        return session.scalars(query).first()
