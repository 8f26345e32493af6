"""What clients register by name: prompts, shields, tool groups, names of models. Of each kind an owner has one thing of a name."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from herd.store.tables.base import Base


class RegistrationRow(Base):
    """A thing that was registered. `number` is the order in which they came; a thing that changes keeps its own."""

    __tablename__ = "registrations"
    __table_args__ = (UniqueConstraint("owner", "kind", "name", name="uq_registrations_name"), {"sqlite_autoincrement": True})
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    owner: Mapped[str]
    kind: Mapped[str]
    name: Mapped[str]
    created: Mapped[float]
    thing: Mapped[dict[str, Any]] = mapped_column(JSON)
