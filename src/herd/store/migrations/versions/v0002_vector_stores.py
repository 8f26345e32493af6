"""Vector stores, their files and chunks, and the words of chunks: FTS5 on SQLite, a tsvector on PostgreSQL."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

# Words are cut by `store.words`, the same for every database: FTS5 must not cut them again at a vowel sign.
_FTS = (
    "CREATE VIRTUAL TABLE chunk_words USING fts5(store_id, words, content = 'chunks', content_rowid = 'number', "
    "tokenize = \"unicode61 remove_diacritics 0 categories 'L* N* M* Co'\")",
    "CREATE TRIGGER chunk_words_insert AFTER INSERT ON chunks BEGIN "
    "INSERT INTO chunk_words (rowid, store_id, words) VALUES (new.number, new.store_id, new.words); END",
    "CREATE TRIGGER chunk_words_delete AFTER DELETE ON chunks BEGIN "
    "INSERT INTO chunk_words (chunk_words, rowid, store_id, words) VALUES ('delete', old.number, old.store_id, old.words); END",
)
_TSVECTOR = (
    "ALTER TABLE chunks ADD COLUMN word_vector tsvector GENERATED ALWAYS AS (array_to_tsvector(string_to_array(words, ' '))) STORED",
    "CREATE INDEX ix_chunks_word_vector ON chunks USING gin (word_vector)",
)


def upgrade() -> None:
    """Make the tables."""
    attributes = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    owned = [("id", sa.String()), ("owner", sa.String()), ("created", sa.Float())]
    op.create_table(
        "vector_stores",
        *(sa.Column(name, kind, nullable=False) for name, kind in owned),
        sa.Column("alias", sa.String()),
        sa.Column("name", sa.String()),
        sa.Column("description", sa.String()),
        sa.Column("meta", sa.JSON()),
        sa.Column("expires_days", sa.Integer()),
        sa.Column("last_active", sa.Float(), nullable=False),
        sa.Column("embedding_model", sa.String(), nullable=False),
        sa.Column("dimensions", sa.Integer()),
        sa.Column("stamp", sa.String(), nullable=False),
        sa.Column("num_chunks", sa.Integer(), nullable=False),
        sa.Column("num_words", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_vector_stores"),
    )
    op.create_index("ix_vector_stores_page", "vector_stores", ["owner", "created", "id"])
    op.create_index("uq_vector_stores_owner_alias", "vector_stores", ["owner", "alias"], unique=True)

    def of_store(table: str) -> sa.ForeignKeyConstraint:
        name = f"fk_{table}_store_id_vector_stores"
        return sa.ForeignKeyConstraint(["store_id"], ["vector_stores.id"], name=name, ondelete="CASCADE")

    op.create_table(
        "vector_store_files",
        sa.Column("store_id", sa.String(), nullable=False),
        *(sa.Column(name, kind, nullable=False) for name, kind in owned),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("error_code", sa.String()),
        sa.Column("error_message", sa.String()),
        sa.Column("attributes", attributes),
        sa.Column("chunking", sa.JSON(), nullable=False),
        sa.Column("batch_id", sa.String()),
        sa.Column("usage_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("store_id", "id", name="pk_vector_store_files"),
        of_store("vector_store_files"),
    )
    op.create_index("ix_vector_store_files_page", "vector_store_files", ["store_id", "created", "id"])
    op.create_index("ix_vector_store_files_status", "vector_store_files", ["status", "created"])
    op.create_index("ix_vector_store_files_id", "vector_store_files", ["id"])
    op.create_index("ix_vector_store_files_batch_id", "vector_store_files", ["batch_id"])
    op.create_table(
        "vector_file_batches",
        *(sa.Column(name, kind, nullable=False) for name, kind in owned),
        sa.Column("store_id", sa.String(), nullable=False),
        sa.Column("cancelled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_vector_file_batches"),
        of_store("vector_file_batches"),
    )
    op.create_index("ix_vector_file_batches_page", "vector_file_batches", ["owner", "created", "id"])
    op.create_index("ix_vector_file_batches_store_id", "vector_file_batches", ["store_id"])
    op.create_table(
        "chunks",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False, autoincrement=True),
        sa.Column("store_id", sa.String(), nullable=False),
        sa.Column("file_id", sa.String(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("words", sa.String(), nullable=False),
        sa.Column("num_words", sa.Integer(), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("end", sa.Integer(), nullable=False),
        sa.Column("attributes", attributes),
        sa.Column("meta", sa.JSON()),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_chunks"),
        of_store("chunks"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_chunks_store_id_number", "chunks", ["store_id", "number"])
    op.create_index("ix_chunks_store_id_file_id", "chunks", ["store_id", "file_id"])
    for statement in _FTS if op.get_bind().dialect.name == "sqlite" else _TSVECTOR:
        op.execute(statement)
