"""Files that were uploaded, or that a batch, a tool or a turn wrote. Their bytes are a blob of the same id."""

from __future__ import annotations

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from herd.store.tables.base import Base, Owned


class FileRow(Owned, Base):
    """A file. `expires` is when it goes by itself; `digest` the SHA-256 of its bytes, where it is known."""

    __tablename__ = "files"
    filename: Mapped[str]
    purpose: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    expires: Mapped[float | None] = mapped_column(default=None)
    digest: Mapped[str | None] = mapped_column(default=None)
