"""Agents, their sessions, turns and memory. Reserved: its tables are not here yet."""

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Nothing yet."""
