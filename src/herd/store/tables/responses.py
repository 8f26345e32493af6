"""Responses with their items and events, and conversations with theirs.

A response's own items, those that came in before those that it made, are numbered by `place`. Its events are kept in pieces, compressed,
as long as the response is: a stream that broke off is taken up again from them, also after a restart.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from herd.store.tables.base import Base, Owned


class ResponseRow(Owned, Base):
    """A response. `data` is what is told of it, without its output; `body` is what was asked, while it is not at an end."""

    __tablename__ = "responses"
    state: Mapped[str] = mapped_column(index=True)
    expires: Mapped[float] = mapped_column(index=True)
    model: Mapped[str]
    previous_id: Mapped[str | None] = mapped_column(default=None)
    conversation_id: Mapped[str | None] = mapped_column(default=None)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    body: Mapped[dict[str, Any] | None] = mapped_column(JSON, default=None)


class ResponseItemRow(Base):
    """An item of a response; `output` where the response made it."""

    __tablename__ = "response_items"
    response_id: Mapped[str] = mapped_column(ForeignKey("responses.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    item_id: Mapped[str]
    output: Mapped[bool]
    item: Mapped[dict[str, Any]] = mapped_column(JSON)
    __table_args__ = (Index("ix_response_items_item", "owner", "item_id"),)


class ResponseEventsRow(Base):
    """A piece of a response's events: `num` of them from `first` on, as the stream sent them, compressed."""

    __tablename__ = "response_events"
    response_id: Mapped[str] = mapped_column(ForeignKey("responses.id", ondelete="CASCADE"), primary_key=True)
    first: Mapped[int] = mapped_column(primary_key=True)
    num: Mapped[int]
    data: Mapped[bytes]


class ConversationRow(Owned, Base):
    """A conversation; it stays until it is deleted."""

    __tablename__ = "conversations"
    meta: Mapped[dict[str, str]] = mapped_column(JSON)


class ConversationItemRow(Base):
    """An item of a conversation."""

    __tablename__ = "conversation_items"
    conversation_id: Mapped[str] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    item_id: Mapped[str]
    item: Mapped[dict[str, Any]] = mapped_column(JSON)
    __table_args__ = (
        UniqueConstraint("conversation_id", "item_id", name="uq_conversation_items_item"),
        Index("ix_conversation_items_item", "owner", "item_id"),
    )
