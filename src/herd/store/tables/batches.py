"""Batches: many requests in a file, answered in the background."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON
from sqlalchemy.orm import Mapped, mapped_column

from herd.store.tables.base import Base, Owned


class BatchRow(Owned, Base):
    """A batch. Times are seconds since 1970; `ended` is that of the state which it ended in."""

    __tablename__ = "batches"
    state: Mapped[str] = mapped_column(index=True)
    endpoint: Mapped[str]
    input_file_id: Mapped[str]
    window: Mapped[str]
    expires: Mapped[float]
    begun: Mapped[float | None] = mapped_column(default=None)
    finalizing: Mapped[float | None] = mapped_column(default=None)
    cancelling: Mapped[float | None] = mapped_column(default=None)
    ended: Mapped[float | None] = mapped_column(default=None)
    output_file_id: Mapped[str | None] = mapped_column(default=None)
    error_file_id: Mapped[str | None] = mapped_column(default=None)
    outcome: Mapped[str] = mapped_column(default="completed")
    total: Mapped[int] = mapped_column(default=0)
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    meta: Mapped[dict[str, str] | None] = mapped_column(JSON, default=None)
    problems: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON, default=None)
