"""What all rows share: constraint names that migrations can refer to, an owner, and types that hold the same on every database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Dialect, Index, LargeBinary, MetaData, String, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column

from herd.store.errors import UnstorableTextError

Bytes = LargeBinary


class Words(TypeDecorator[str]):
    """Text. PostgreSQL holds no NUL and nothing holds half a surrogate pair: such a text is refused on every database alike."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Look before the driver does."""
        if value is not None and not is_storable(value):
            raise UnstorableTextError("a text holds a NUL character or half a character", hint="send whole UTF-8 without U+0000")
        return value


def is_storable(value: str) -> bool:
    """Whether every database can hold a text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


class Base(DeclarativeBase):
    """Of all rows."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: Words, bytes: LargeBinary}  # noqa: RUF012


class Owned:
    """A row that belongs to a key: an id that the server made, whose it is, and when it came (seconds since 1970)."""

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    created: Mapped[float]

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> Any:
        """Pages of one owner's objects are read in the order of this index."""
        return (Index(f"ix_{cls.__tablename__}_page", "owner", "created", "id"),)  # pyright: ignore[reportAttributeAccessIssue]
