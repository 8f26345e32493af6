"""Vector stores, their files and chunks. Reserved: its tables are not here yet."""

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Nothing yet."""
