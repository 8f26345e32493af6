"""Agents, their sessions, turns, steps, documents and files."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_TEXTS = {
    "agents": ("config",),
    "agent_sessions": ("name", "meta", "labels", "grants"),
    "agent_turns": ("status", "data"),
    "agent_documents": ("title", "source", "mime_type", "text"),
    "agent_files": ("name", "mime_type"),
}


def upgrade() -> None:
    """Make the tables."""
    _owned("agents")
    _owned(
        "agent_sessions",
        sa.Column("agent_id", sa.String(), nullable=True),
        sa.Column("config", sa.String(), nullable=True),
        sa.Column("open_turn", sa.String(), nullable=True),
        sa.Column("num_turns", sa.Integer(), nullable=False),
        sa.Column("used", sa.Float(), nullable=False),
    )
    op.create_index("ix_agent_sessions_agent_id", "agent_sessions", ["agent_id"])
    op.create_index("ix_agent_sessions_open_turn", "agent_sessions", ["open_turn"])
    _owned("agent_turns", sa.Column("number", sa.Integer(), nullable=False), of="agent_sessions")
    op.create_table(
        "agent_steps",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("turn_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("data", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_agent_steps"),
        sa.ForeignKeyConstraint(["turn_id"], ["agent_turns.id"], name="fk_agent_steps_turn_id_agent_turns", ondelete="CASCADE"),
    )
    op.create_index("ix_agent_steps_turn_id", "agent_steps", ["turn_id"])
    _owned("agent_documents", of="agent_sessions")
    names = [sa.Column(name, sa.String(), nullable=True) for name in ("turn_id", "step_id")]
    _owned("agent_files", *names, sa.Column("data", sa.LargeBinary(), nullable=False), of="agent_sessions")


def _owned(table: str, *columns: sa.Column, of: str | None = None) -> None:
    """A table of rows with an owner, in a session where `of` names its table."""
    parts: list = [
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in _TEXTS[table]),
        *columns,
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
    ]
    if of is not None:
        parts.append(sa.Column("session_id", sa.String(), nullable=False))
        name = f"fk_{table}_session_id_{of}"
        parts.append(sa.ForeignKeyConstraint(["session_id"], [f"{of}.id"], name=name, ondelete="CASCADE"))
    op.create_table(table, *parts)
    op.create_index(f"ix_{table}_page", table, ["owner", "created", "id"])
    if of is not None:
        op.create_index(f"ix_{table}_session_id", table, ["session_id"])
