"""One database, SQLite or PostgreSQL, and its two kinds of sessions: `read` and `write`.

SQLite has one writer at a time. A transaction that begins by reading and then writes fails at once when another wrote in between, however
long it is told to wait ("database is locked"); so a write begins with BEGIN IMMEDIATE, which waits its turn, and the writers of one process
queue on a lock of their own, which is fair. In WAL mode readers wait for nobody. A commit is on the disk when it returns.

PostgreSQL runs READ COMMITTED: whoever changes a row that was read asks for it with `with_for_update()`, which SQLite ignores. Whoever
decides by rows that are not there yet, or by a sum of several, asks for a `turn`.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, TimeoutError
from sqlalchemy.orm import Session

from herd.base.errors import ConfigError
from herd.base.log import get_logger
from herd.store.errors import StorageError

log = get_logger(__name__)

BUSY_S = 60.0
"""What a writer waits for writers of other processes."""
_WRITE = "herd_write"
_SERVER_LOCK = 0x68657264
"""The advisory lock of the one server of a PostgreSQL database: "herd" in ASCII."""


def sqlite_url(path: Path) -> str:
    """The URL of a database file."""
    return f"sqlite:///{path.absolute()}"


class Database:
    """An engine and its sessions; for any thread. Raises ConfigError where the URL is none, or its driver is missing."""

    def __init__(self, url: str, *, busy_s: float = BUSY_S) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise ConfigError(f"{url[:40]!r} is no database URL", hint="write sqlite:///FILE or postgresql://HOST/NAME") from error
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.url = parsed
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if not self.is_sqlite and parsed.drivername != "postgresql+psycopg":
            raise ConfigError(f"herd keeps nothing in {parsed.drivername!r}", hint="use sqlite:///FILE or postgresql://HOST/NAME")
        self._writer = threading.Lock()
        self._writing = threading.local()
        options: dict[str, Any] = {"pool_size": 20, "max_overflow": 20, "pool_timeout": busy_s}
        if self.is_sqlite:
            options["connect_args"] = {"timeout": busy_s, "check_same_thread": False}
        else:
            options["pool_pre_ping"] = True
        try:
            self.engine = create_engine(parsed, **options)
        except ImportError as error:
            raise ConfigError("PostgreSQL needs its driver, which is not installed", hint="pip install 'llama-herd[postgres]'") from error
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare)
            event.listen(self.engine, "begin", _begin)
        self._write_engine = self.engine.execution_options(**{_WRITE: True})
        self._lock_holder: Connection | None = None

    @property
    def path(self) -> Path | None:
        """The file of a SQLite database."""
        return Path(self.url.database) if self.is_sqlite and self.url.database else None

    @property
    def told_url(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def read(self) -> Generator[Session, None, None]:
        """A session that sees one state of the database and changes nothing. Its rows live on after it."""
        with _told(), Session(self.engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Generator[Session, None, None]:
        """A transaction, committed at the end, gone after an error. Keep it short: on SQLite nobody else writes meanwhile."""
        with _told(), self._queued(), Session(self._write_engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def connect(self) -> Generator[Connection, None, None]:
        """A connection in a write transaction, for migrations and what is not rows."""
        with _told(), self._queued(), self._write_engine.begin() as connection:
            yield connection

    def turn(self, session: Session, *names: str) -> None:
        """Wait in a `write` until no other has a turn of the same names; it ends with the transaction. On SQLite every write has it."""
        if not self.is_sqlite:
            key = hashlib.blake2b("\0".join(names).encode("utf-8", "surrogatepass"), digest_size=8).digest()
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": int.from_bytes(key, "big", signed=True)})

    @contextlib.contextmanager
    def _queued(self) -> Iterator[None]:
        assert not getattr(self._writing, "now", False), "a write within a write would wait for itself"
        if not self.is_sqlite:
            yield
            return
        with self._writer:
            self._writing.now = True
            try:
                yield
            finally:
                self._writing.now = False

    def hold(self) -> None:
        """Be the one server of a PostgreSQL database until `close`. (That of a file holds the state directory's lock.)"""
        if self.is_sqlite:
            return
        with _told():
            connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _SERVER_LOCK}).scalar_one():
                connection.close()
                raise ConfigError(f"another server uses {self.told_url}", hint="give each server a database of its own")
        self._lock_holder = connection

    def close(self) -> None:
        """Let go of it."""
        if self._lock_holder is not None:
            self._lock_holder.detach()  # to be closed, not to go back into the pool with its lock
            self._lock_holder.close()
            self._lock_holder = None
        self.engine.dispose()


def _prepare(connection: Any, _: Any) -> None:
    """Of every SQLite connection: readers do not wait for writers, a commit outlives the machine's loss, and we begin transactions."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITE) else "BEGIN")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What the driver says goes to the log; the error says that nothing was changed."""
    try:
        yield
    except (OperationalError, TimeoutError) as error:
        log.exception("the database failed")
        reason = str(getattr(error, "orig", None) or "no connection came free")[:200]
        raise StorageError(f"the database cannot be used: {reason}", hint="is it there, and has its disk room?") from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise StorageError("the connection to the database broke; nothing was changed", hint="ask again") from error
