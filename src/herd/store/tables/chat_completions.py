"""Chat completions that their clients asked to be kept: what came in, and what was answered."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON
from sqlalchemy.orm import Mapped, mapped_column

from herd.store.tables.base import Base, Owned


class ChatCompletionRow(Owned, Base):
    """A completion. `data` is what was answered, `messages` what came in, as it came."""

    __tablename__ = "chat_completions"
    expires: Mapped[float] = mapped_column(index=True)
    model: Mapped[str]
    meta: Mapped[dict[str, str]] = mapped_column(JSON)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    messages: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
