"""The state of one server: its directory, its database, its bytes, and the lock that makes it the only one.

STATE/server.db       rows, unless the database is elsewhere
STATE/files/ID        a file's bytes, under an id that the server made, unless files are elsewhere
STATE/batches/ID.*    lines of a batch that is not finished
STATE/indexes/ID.*    indexes of vectors, which can be made again from the rows
STATE/lock            held while a server runs: two would both go on with the same work
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from herd.base.errors import ConfigError
from herd.store.blobs import Blobs, open_blobs
from herd.store.database import Database, sqlite_url
from herd.store.migrate import upgrade

DATABASE_FILE = "server.db"


def database_of(folder: Path, url: str | None) -> Database:
    """The database of a state directory."""
    return Database(url or sqlite_url(folder / DATABASE_FILE))


def blobs_of(folder: Path, url: str | None) -> Blobs:
    """The bytes of a state directory."""
    return open_blobs(url or str(folder / "files"), folder / "staging")


class State:
    """Opened: locked, and its schema up to date. Raises ConfigError where it cannot be used."""

    def __init__(self, folder: Path, *, database_url: str | None = None, files_url: str | None = None) -> None:
        self.folder = folder
        try:
            for path in (folder, self.batches_dir, self.indexes_dir):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot keep files in {folder}: {error.strerror}", hint="choose another --state-dir") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ConfigError(f"another server keeps its files in {folder}", hint="give each server a --state-dir of its own") from error
        database: Database | None = None
        try:
            self.blobs = blobs_of(folder, files_url)
            self.database = database = database_of(folder, database_url)
            self.database.hold()
            self.revisions = upgrade(self.database)
            """The revisions before this start, and now."""
        except BaseException:
            if database is not None:
                database.close()
            os.close(self._lock)
            raise

    @property
    def batches_dir(self) -> Path:
        """Where lines of open batches are written."""
        return self.folder / "batches"

    @property
    def indexes_dir(self) -> Path:
        """Where indexes of vectors are kept."""
        return self.folder / "indexes"

    def close(self) -> None:
        """Let go of all."""
        self.database.close()
        os.close(self._lock)
