"""Agents, their sessions, turns, steps, documents and files. What is inside of each is JSON as text, written by `herd.agents`."""

from __future__ import annotations

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from herd.store.tables.base import Base, Owned


class AgentRow(Owned, Base):
    """An agent: its config."""

    __tablename__ = "agents"
    config: Mapped[str]


class AgentSessionRow(Owned, Base):
    """A session. `open_turn` is the turn that is not over; `labels` and `grants` grow with its turns."""

    __tablename__ = "agent_sessions"
    agent_id: Mapped[str | None] = mapped_column(default=None, index=True)
    name: Mapped[str] = mapped_column(default="")
    config: Mapped[str | None] = mapped_column(default=None)
    meta: Mapped[str] = mapped_column(default="{}")
    labels: Mapped[str] = mapped_column(default="{}")
    grants: Mapped[str] = mapped_column(default="[]")
    open_turn: Mapped[str | None] = mapped_column(default=None, index=True)
    num_turns: Mapped[int] = mapped_column(default=0)
    used: Mapped[float] = mapped_column(default=0.0)


class AgentTurnRow(Owned, Base):
    """A turn: where it stands."""

    __tablename__ = "agent_turns"
    session_id: Mapped[str] = mapped_column(ForeignKey("agent_sessions.id", ondelete="CASCADE"), index=True)
    number: Mapped[int]
    status: Mapped[str]
    data: Mapped[str]


class AgentStepRow(Base):
    """A step of a turn, whose owner is its owner."""

    __tablename__ = "agent_steps"
    id: Mapped[str] = mapped_column(primary_key=True)
    turn_id: Mapped[str] = mapped_column(ForeignKey("agent_turns.id", ondelete="CASCADE"), index=True)
    number: Mapped[int]
    kind: Mapped[str]
    data: Mapped[str]


class AgentDocumentRow(Owned, Base):
    """A text that a session remembers."""

    __tablename__ = "agent_documents"
    session_id: Mapped[str] = mapped_column(ForeignKey("agent_sessions.id", ondelete="CASCADE"), index=True)
    title: Mapped[str]
    source: Mapped[str]
    mime_type: Mapped[str]
    text: Mapped[str]


class AgentFileRow(Owned, Base):
    """A file of a session, with its bytes: small, and kept or gone together with the step that names it."""

    __tablename__ = "agent_files"
    session_id: Mapped[str] = mapped_column(ForeignKey("agent_sessions.id", ondelete="CASCADE"), index=True)
    turn_id: Mapped[str | None] = mapped_column(default=None)
    step_id: Mapped[str | None] = mapped_column(default=None)
    name: Mapped[str]
    mime_type: Mapped[str]
    data: Mapped[bytes]
