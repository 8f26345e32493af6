"""What goes wrong with storage, as people are told it."""

from __future__ import annotations

from sqlalchemy.exc import DontWrapMixin

from herd.base.errors import ConfigError, HerdError, UsageError


class StorageError(HerdError):
    """The database or the disk failed in the middle of work: nothing of the change was kept."""

    code = "storage"


class ConflictError(HerdError):
    """A change that the object's state does not allow."""

    code = "conflict"


class SchemaError(ConfigError):
    """A database of a newer herd, or of none."""


class UnstorableTextError(UsageError, DontWrapMixin):
    """A text that not every database can hold: a NUL character, or half of a surrogate pair."""
