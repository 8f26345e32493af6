"""Conversations and responses. Reserved: its tables are not here yet."""

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Nothing yet."""
