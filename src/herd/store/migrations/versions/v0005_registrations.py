"""Prompts, shields and tool groups, which were files of JSON before."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the table. Its first rows come from those files, when the server starts."""
    op.create_table(
        "registrations",
        sa.Column("number", sa.Integer(), nullable=False, autoincrement=True),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("thing", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_registrations"),
        sa.UniqueConstraint("owner", "kind", "name", name="uq_registrations_name"),
        sqlite_autoincrement=True,
    )
