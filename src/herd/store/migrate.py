"""The schema: brought up to this herd's at every start, in one transaction, by Alembic's revisions in `migrations/`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from herd.base.log import get_logger
from herd.store import pgvector
from herd.store.database import Database
from herd.store.errors import SchemaError

if TYPE_CHECKING:
    from alembic.config import Config

log = get_logger(__name__)

_FOLDER = Path(__file__).parent / "migrations"
_OLDEST = "unversioned"
_UPGRADE_LOCK = 0x68657265
SQLITE_VERSION = 2
"""`user_version` of a file with revisions; herds before them knew 1, and refuse what is newer."""


def config(connection: Connection | None = None) -> Config:
    """Alembic's settings, over a connection."""
    from alembic.config import Config

    made = Config()
    made.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def revisions() -> list[str]:
    """All revisions that this herd knows, oldest first."""
    from alembic.script import ScriptDirectory

    return [script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()][::-1]


def current(connection: Connection) -> str | None:
    """The revision of a database; None is an empty one, "unversioned" a file of a herd before revisions."""
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return _OLDEST if "files" in tables and "batches" in tables else None


def upgrade(database: Database) -> tuple[str | None, str]:
    """Bring the schema up to date; the revisions before and after. Raises SchemaError where a newer herd made it."""
    from alembic import command

    known = revisions()
    with database.connect() as connection:
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        before = current(connection)
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one() if database.is_sqlite else 0
        if before not in (None, _OLDEST, *known) or version > SQLITE_VERSION:
            raise SchemaError(
                f"{database.told_url} was written by a newer herd (schema {before or version}, this one knows {known[-1]})",
                hint="update herd, or choose another --state-dir or --database",
            )
        if before != known[-1]:
            command.upgrade(config(connection), "head")
            if database.is_sqlite:
                connection.exec_driver_sql(f"PRAGMA user_version = {SQLITE_VERSION}")
            log.info("the database is brought from revision %s to %s", before or "none", known[-1])
        if not database.is_sqlite:
            pgvector.adopt(connection)  # an extension that came after revision 0007
    return before, known[-1]
