"""Chats of the page: each with its messages, which are a tree. Ids are the page's own, so two owners may have the same ones."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from herd.store.tables.base import Base


class PageChatRow(Base):
    """A chat. `words` are what it is searched by, `size_bytes` what it and its messages take as JSON."""

    __tablename__ = "page_chats"
    owner: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    created: Mapped[float]
    size_bytes: Mapped[int]
    words: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    __table_args__ = (Index("ix_page_chats_page", "owner", "created", "id"),)


class PageMessageRow(Base):
    """A message of a chat, on any of its branches."""

    __tablename__ = "page_messages"
    owner: Mapped[str] = mapped_column(primary_key=True)
    chat_id: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    made: Mapped[float]
    size_bytes: Mapped[int]
    words: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    __table_args__ = (
        ForeignKeyConstraint(["owner", "chat_id"], ["page_chats.owner", "page_chats.id"], name="fk_page_messages_chat", ondelete="CASCADE"),
    )
