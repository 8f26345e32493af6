"""Vector stores, the files in them, and the chunks that are searched.

A chunk's row is the truth: its text, its words as they are looked up, and its vector. Indexes are made from rows and can be made again.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from herd.store.tables.base import Base, Owned

Attributes = JSON().with_variant(JSONB(), "postgresql")
Number = BigInteger().with_variant(Integer(), "sqlite")


class VectorStoreRow(Owned, Base):
    """A store. `stamp` changes with every change of its chunks; the counts are those of its chunks.

    `alias` is a name that a client chose for it, one of a kind among its owner's.
    """

    __tablename__ = "vector_stores"
    __table_args__ = (  # pyright: ignore[reportAssignmentType]
        Index("ix_vector_stores_page", "owner", "created", "id"),
        Index("uq_vector_stores_owner_alias", "owner", "alias", unique=True),
    )
    alias: Mapped[str | None] = mapped_column(default=None)
    name: Mapped[str | None]
    description: Mapped[str | None]
    meta: Mapped[dict[str, str] | None] = mapped_column(JSON, default=None)
    expires_days: Mapped[int | None] = mapped_column(default=None)
    last_active: Mapped[float]
    embedding_model: Mapped[str]
    dimensions: Mapped[int | None] = mapped_column(default=None)
    stamp: Mapped[str] = mapped_column(default="")
    num_chunks: Mapped[int] = mapped_column(default=0)
    num_words: Mapped[int] = mapped_column(BigInteger, default=0)


class VectorStoreFileRow(Owned, Base):
    """A file in a store: how far its indexing is, and what filters see. Its id is the file's."""

    __tablename__ = "vector_store_files"
    __table_args__ = (  # pyright: ignore[reportAssignmentType]
        Index("ix_vector_store_files_page", "store_id", "created", "id"),
        Index("ix_vector_store_files_status", "status", "created"),
        Index("ix_vector_store_files_id", "id"),
    )
    store_id: Mapped[str] = mapped_column(ForeignKey("vector_stores.id", ondelete="CASCADE"), primary_key=True)
    status: Mapped[str]
    error_code: Mapped[str | None] = mapped_column(default=None)
    error_message: Mapped[str | None] = mapped_column(default=None)
    attributes: Mapped[dict[str, Any] | None] = mapped_column(Attributes, default=None)
    chunking: Mapped[dict[str, Any]] = mapped_column(JSON)
    batch_id: Mapped[str | None] = mapped_column(index=True, default=None)
    usage_bytes: Mapped[int] = mapped_column(BigInteger, default=0)


class FileBatchRow(Owned, Base):
    """Files that were added to a store at once."""

    __tablename__ = "vector_file_batches"
    store_id: Mapped[str] = mapped_column(ForeignKey("vector_stores.id", ondelete="CASCADE"), index=True)
    cancelled: Mapped[bool] = mapped_column(default=False)


class ChunkRow(Base):
    """A passage. `start` and `end` are places in the file's extracted text; `vector` is float32, of length one."""

    __tablename__ = "chunks"
    __table_args__ = (
        Index("ix_chunks_store_id_number", "store_id", "number"),
        Index("ix_chunks_store_id_file_id", "store_id", "file_id"),
        {"sqlite_autoincrement": True},
    )
    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    store_id: Mapped[str] = mapped_column(ForeignKey("vector_stores.id", ondelete="CASCADE"))
    file_id: Mapped[str]
    """The file's id, or the name that a client gave its document."""
    ordinal: Mapped[int]
    text: Mapped[str]
    words: Mapped[str]
    num_words: Mapped[int]
    start: Mapped[int]
    end: Mapped[int]
    attributes: Mapped[dict[str, Any] | None] = mapped_column(Attributes, default=None)
    meta: Mapped[dict[str, Any] | None] = mapped_column(JSON, default=None)
    vector: Mapped[bytes]
