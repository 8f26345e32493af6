"""Vectors of chunks in a column of pgvector's, where PostgreSQL offers the extension; else nothing, and usearch's indexes are used."""

from alembic import op

from herd.store import pgvector

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the column and fill it."""
    pgvector.adopt(op.get_bind())
