"""Chat completions as they are kept: found by their owner alone, gone when they expire. What is in them, the routes understand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, func, literal, select

from herd.store.database import Database
from herd.store.paging import Cursor, Page, owned, page_of
from herd.store.tables.chat_completions import ChatCompletionRow

_WHAT = "stored chat completion"
_HINT = "GET /v1/chat/completions lists yours; those are kept that were asked for with store: true"


def add(database: Database, row: ChatCompletionRow) -> None:
    """Keep a completion."""
    with database.write() as session:
        session.add(row)


def get(database: Database, owner: str, completion_id: str) -> ChatCompletionRow:
    """A completion. Raises NotFoundError where the owner has none of this id."""
    with database.read() as session:
        return owned(session, ChatCompletionRow, owner, completion_id, what=_WHAT, hint=_HINT)


def page(
    database: Database, owner: str, cursor: Cursor, *, model: str | None = None, meta: Mapping[str, str] | None = None
) -> Page[ChatCompletionRow]:
    """A page of an owner's completions: of a model, with these metadata."""
    where = [_has(key, value, sqlite=database.is_sqlite) for key, value in (meta or {}).items()]
    if model is not None:
        where.append(ChatCompletionRow.model == model)
    with database.read() as session:
        return page_of(session, ChatCompletionRow, owner, cursor, what=_WHAT, where=where, hint=_HINT)


def _has(key: str, value: str, *, sqlite: bool) -> Any:
    """Whether a completion has this pair. A path of SQLite's cannot spell every key, so its pairs are looked through."""
    if not sqlite:
        return ChatCompletionRow.meta[key].as_string() == value
    pairs = func.json_each(ChatCompletionRow.meta).table_valued("key", "value").alias()
    found = select(literal(1)).select_from(pairs).where(pairs.c.key == key, pairs.c.value == value)
    return found.correlate(ChatCompletionRow.__table__).exists()


def update(database: Database, owner: str, completion_id: str, meta: dict[str, str]) -> ChatCompletionRow:
    """Change what is told of it."""
    with database.write() as session:
        row = owned(session, ChatCompletionRow, owner, completion_id, what=_WHAT, hint=_HINT, lock=True)
        row.meta = meta
        return row


def remove(database: Database, owner: str, completion_id: str) -> None:
    """Forget it."""
    with database.write() as session:
        session.delete(owned(session, ChatCompletionRow, owner, completion_id, what=_WHAT, hint=_HINT, lock=True))


def expire(database: Database, now: float) -> int:
    """Delete what is too old; how many there were."""
    with database.write() as session:
        return session.connection().execute(delete(ChatCompletionRow).where(ChatCompletionRow.expires <= now)).rowcount
