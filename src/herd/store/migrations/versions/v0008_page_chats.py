"""Chats of the page, and their messages."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "page_chats",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        *_told(),
        sa.PrimaryKeyConstraint("owner", "id", name="pk_page_chats"),
    )
    op.create_index("ix_page_chats_page", "page_chats", ["owner", "created", "id"])
    op.create_table(
        "page_messages",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("chat_id", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("made", sa.Float(), nullable=False),
        *_told(),
        sa.PrimaryKeyConstraint("owner", "chat_id", "id", name="pk_page_messages"),
        sa.ForeignKeyConstraint(
            ["owner", "chat_id"], ["page_chats.owner", "page_chats.id"], name="fk_page_messages_chat", ondelete="CASCADE"
        ),
    )


def _told() -> list[sa.Column]:
    kinds = (("size_bytes", sa.Integer()), ("words", sa.String()), ("data", sa.JSON()))
    return [sa.Column(name, kind, nullable=False) for name, kind in kinds]
