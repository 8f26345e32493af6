"""Chats of the page as they are kept: found by their owner alone, listed, searched, written in pieces, deleted. What is in them, the page
understands; here a chat is an object, and a message an object with a text and a time.

A write adds and replaces, and takes no message away: two browsers that write to one chat lose nothing of each other's, since each message
has an id of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, exists, func, or_, select, tuple_
from sqlalchemy.orm import Session

from herd.base.errors import NotFoundError, UsageError
from herd.store.database import Database
from herd.store.tables.page_chats import PageChatRow, PageMessageRow

Thing = Mapping[str, Any]
_HINT = "GET /v1/herd/chats lists yours"


def put(database: Database, owner: str, chat: Thing, messages: Sequence[Thing], *, room_bytes: int) -> None:
    """Keep a chat and some of its messages, in place of those of the same ids. All of it or nothing.

    Raises UsageError where all chats of the owner would take more than `room_bytes`, or something cannot be written as JSON.
    """
    fresh = {str(one["id"]): PageMessageRow(owner=owner, chat_id=chat["id"], made=float(one["made"]), **_told(one)) for one in messages}
    told = _told(chat)
    with database.write() as session:
        database.turn(session, "page_chats", owner)
        row = session.scalars(_one(owner, chat["id"]).with_for_update()).one_or_none()  # no turn keeps it from `remove`
        before = 0 if row is None else row.size_bytes
        own = told["size_bytes"] + sum(one.size_bytes for one in fresh.values()) + _others(session, owner, chat["id"], list(fresh))
        total = _total(session, owner) - before + own
        if total > room_bytes and own > before:
            raise UsageError(f"your chats would have {total:,} bytes, this server keeps {room_bytes:,}", hint="delete some first")
        if row is None:
            session.add(PageChatRow(owner=owner, created=time.time(), **told | {"size_bytes": own}))
        else:
            row.data, row.words, row.size_bytes = told["data"], told["words"], own
        session.flush()
        for message in fresh.values():
            session.merge(message)


def _told(thing: Thing) -> dict[str, Any]:
    """What a row keeps of a chat or a message. Raises UsageError for what JSON cannot write."""
    try:
        size_bytes = len(json.dumps(thing, allow_nan=False))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{thing['id']!r:.80} cannot be kept as JSON", hint="leave out numbers that are none, and nest less") from error
    words = str(thing.get("text", thing.get("title", ""))).replace("\0", " ").casefold().encode("utf-8", "replace").decode()
    return {"id": thing["id"], "data": dict(thing), "words": words, "size_bytes": size_bytes}


def _one(owner: str, chat_id: str) -> Any:
    return select(PageChatRow).where(PageChatRow.owner == owner, PageChatRow.id == chat_id)


def _others(session: Session, owner: str, chat_id: str, replaced: Sequence[str]) -> int:
    """Bytes of a chat's messages but these."""
    query = select(func.coalesce(func.sum(PageMessageRow.size_bytes), 0)).where(
        PageMessageRow.owner == owner, PageMessageRow.chat_id == chat_id, PageMessageRow.id.not_in(replaced)
    )
    return int(session.scalar(query) or 0)


def _total(session: Session, owner: str) -> int:
    return int(session.scalar(select(func.coalesce(func.sum(PageChatRow.size_bytes), 0)).where(PageChatRow.owner == owner)) or 0)


def get(database: Database, owner: str, chat_id: str) -> tuple[Thing, list[Thing]]:
    """A chat and all of its messages, oldest first. Raises NotFoundError where the owner has none of this id."""
    with database.read() as session:
        row = session.scalars(_one(owner, chat_id)).one_or_none()
        if row is None:
            raise NotFoundError(f"there is no chat {chat_id!r:.100}", hint=_HINT)
        query = select(PageMessageRow.data).where(PageMessageRow.owner == owner, PageMessageRow.chat_id == chat_id)
        return row.data, list(session.scalars(query.order_by(PageMessageRow.made, PageMessageRow.id)))


def page(database: Database, owner: str, *, after: str | None = None, limit: int = 100, words: str = "") -> tuple[list[Thing], bool]:
    """A page of an owner's chats in the order in which they came, and whether there are more. Of `words`, each has to be in a chat's title
    or in one of its messages. Raises NotFoundError for a cursor that is none of theirs.
    """
    place = tuple_(PageChatRow.created, PageChatRow.id)
    query = select(PageChatRow).where(PageChatRow.owner == owner, *(_has(word) for word in words.casefold().split()))
    with database.read() as session:
        if after is not None:
            edge = session.scalars(_one(owner, after)).one_or_none()
            if edge is None:
                raise NotFoundError(f"there is no chat {after!r:.100}", hint=_HINT)
            query = query.where(place > tuple_(edge.created, edge.id))
        rows = list(session.scalars(query.order_by(PageChatRow.created, PageChatRow.id).limit(limit + 1)))
    return [row.data for row in rows[:limit]], len(rows) > limit


def _has(word: str) -> Any:
    inside = exists().where(
        PageMessageRow.owner == PageChatRow.owner,
        PageMessageRow.chat_id == PageChatRow.id,
        PageMessageRow.words.contains(word, autoescape=True),
    )
    return or_(PageChatRow.words.contains(word, autoescape=True), inside)


def remove(database: Database, owner: str, chat_id: str) -> bool:
    """Forget a chat with its messages; whether it was there."""
    with database.write() as session:
        done = session.connection().execute(delete(PageChatRow).where(PageChatRow.owner == owner, PageChatRow.id == chat_id))
        return bool(done.rowcount)


def remove_all(database: Database, owner: str) -> int:
    """Forget all of an owner's chats; how many there were."""
    with database.write() as session:
        return session.connection().execute(delete(PageChatRow).where(PageChatRow.owner == owner)).rowcount


def count(session: Session) -> int:
    """How many chats there are, of all owners."""
    return session.scalar(select(func.count()).select_from(PageChatRow)) or 0


def problems(session: Session) -> Iterator[tuple[str, str]]:
    """Chats that do not count what they hold: the chat, and what is wrong with it."""
    sums = select(PageMessageRow.owner, PageMessageRow.chat_id, func.sum(PageMessageRow.size_bytes)).group_by(
        PageMessageRow.owner, PageMessageRow.chat_id
    )
    held = {(owner, chat_id): int(size) for owner, chat_id, size in session.execute(sums)}
    for row in session.scalars(select(PageChatRow)):
        size = len(json.dumps(row.data)) + held.get((row.owner, row.id), 0)
        if row.size_bytes != size:
            yield row.id, f"it counts {row.size_bytes:,} bytes and holds {size:,}"
