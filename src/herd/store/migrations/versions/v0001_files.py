"""Files and batches. The tables of a `server.db` from before revisions are taken over with their rows."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables, or add to those that are there."""
    if "files" in sa.inspect(op.get_bind()).get_table_names():
        op.add_column("files", sa.Column("expires", sa.Float(), nullable=True))
        op.add_column("files", sa.Column("digest", sa.String(), nullable=True))
        op.drop_index("ix_files_owner", "files")
        op.drop_index("ix_batches_owner", "batches")
    else:
        _files()
        _batches()
        op.create_index("ix_batches_state", "batches", ["state"])
    op.create_index("ix_files_page", "files", ["owner", "created", "id"])
    op.create_index("ix_batches_page", "batches", ["owner", "created", "id"])


def _files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=True),
        sa.Column("digest", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_files"),
    )


def _batches() -> None:
    times = [sa.Column(name, sa.Float(), nullable=True) for name in ("begun", "finalizing", "cancelling", "ended")]
    counts = [sa.Column(name, sa.Integer(), nullable=False) for name in ("total", "completed", "failed")]
    op.create_table(
        "batches",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("input_file_id", sa.String(), nullable=False),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        *times,
        sa.Column("output_file_id", sa.String(), nullable=True),
        sa.Column("error_file_id", sa.String(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=False),
        *counts,
        sa.Column("meta", sa.JSON(), nullable=True),
        sa.Column("problems", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
    )
