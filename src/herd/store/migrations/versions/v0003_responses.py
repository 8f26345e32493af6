"""Responses, their items and events, conversations and their items."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables."""
    _responses()
    _conversations()


def _owned() -> list[sa.Column]:
    names = (("id", sa.String()), ("owner", sa.String()), ("created", sa.Float()))
    return [sa.Column(name, kind, nullable=False) for name, kind in names]


def _part_of(table: str, one: str, many: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([f"{one}_id"], [f"{many}.id"], name=f"fk_{table}_{one}_id_{many}", ondelete="CASCADE")


def _responses() -> None:
    op.create_table(
        "responses",
        *_owned(),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("previous_id", sa.String(), nullable=True),
        sa.Column("conversation_id", sa.String(), nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_responses"),
    )
    op.create_index("ix_responses_page", "responses", ["owner", "created", "id"])
    op.create_index("ix_responses_state", "responses", ["state"])
    op.create_index("ix_responses_expires", "responses", ["expires"])
    op.create_table(
        "response_items",
        sa.Column("response_id", sa.String(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("item_id", sa.String(), nullable=False),
        sa.Column("output", sa.Boolean(), nullable=False),
        sa.Column("item", sa.JSON(), nullable=False),
        _part_of("response_items", "response", "responses"),
        sa.PrimaryKeyConstraint("response_id", "place", name="pk_response_items"),
    )
    op.create_index("ix_response_items_item", "response_items", ["owner", "item_id"])
    op.create_table(
        "response_events",
        sa.Column("response_id", sa.String(), nullable=False),
        sa.Column("first", sa.Integer(), nullable=False),
        sa.Column("num", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        _part_of("response_events", "response", "responses"),
        sa.PrimaryKeyConstraint("response_id", "first", name="pk_response_events"),
    )


def _conversations() -> None:
    op.create_table(
        "conversations",
        *_owned(),
        sa.Column("meta", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_conversations"),
    )
    op.create_index("ix_conversations_page", "conversations", ["owner", "created", "id"])
    op.create_table(
        "conversation_items",
        sa.Column("conversation_id", sa.String(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("item_id", sa.String(), nullable=False),
        sa.Column("item", sa.JSON(), nullable=False),
        _part_of("conversation_items", "conversation", "conversations"),
        sa.PrimaryKeyConstraint("conversation_id", "place", name="pk_conversation_items"),
        sa.UniqueConstraint("conversation_id", "item_id", name="uq_conversation_items_item"),
    )
    op.create_index("ix_conversation_items_item", "conversation_items", ["owner", "item_id"])
