"""A copy of a server's state while it runs: the database as it was at one moment, then the bytes that its rows name.

Bytes never change once they are there, so only a deletion in between can miss: such a row is taken out of the copy of a SQLite database,
as it is gone by now, and named in the manifest where the copy is PostgreSQL's dump. The copy is a state directory: serve from it, or copy
it back.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import select, text

from herd.base.atomic import atomic_directory
from herd.base.errors import ConfigError, NotFoundError
from herd.store.blobs import Blobs
from herd.store.database import Database
from herd.store.errors import StorageError
from herd.store.migrate import current
from herd.store.state import DATABASE_FILE
from herd.store.tables.files import FileRow

DUMP_FILE = "database.dump"
MANIFEST_FILE = "backup.json"
Report = Callable[[int, str], None]


def back_up(database: Database, blobs: Blobs, folder: Path, target: Path, *, report: Report = lambda _, __: None) -> dict[str, Any]:
    """Copy it all to a new folder; what was copied. Raises UsageError where `target` holds something, StorageError where a copy fails."""
    with atomic_directory(target) as made:
        if database.is_sqlite:
            ids = _copy_sqlite(database, made / DATABASE_FILE)
        else:
            ids = _dump_postgresql(database, made / DUMP_FILE)
        missing, size_bytes = _copy_blobs(blobs, ids, made / "files", report)
        if missing and database.is_sqlite:
            _forget(made / DATABASE_FILE, missing)
        if (folder / "batches").is_dir():
            shutil.copytree(folder / "batches", made / "batches")
        with database.read() as session:
            revision = current(session.connection())
        manifest = {
            "created": time.time(),
            "revision": revision,
            "database": DATABASE_FILE if database.is_sqlite else DUMP_FILE,
            "num_files": len(ids) - len(missing),
            "size_bytes": size_bytes,
            "deleted_meanwhile": missing,
        }
        (made / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _copy_sqlite(database: Database, target: Path) -> list[str]:
    """SQLite's own online copy, which sees one moment whatever is written meanwhile; the ids of its files."""
    source = database.path
    if source is None or not source.is_file():
        raise NotFoundError(f"there is no database at {source}", hint="name the server's --state-dir")
    try:
        with closing(sqlite3.connect(source, timeout=60)) as there, closing(sqlite3.connect(target)) as here:
            there.backup(here)
            here.execute("PRAGMA journal_mode = DELETE")
            return [row[0] for row in here.execute("SELECT id FROM files")]
    except sqlite3.Error as error:
        raise StorageError(f"{source} cannot be copied: {error}", hint="`herd db check` tells what is wrong with it") from error


def _dump_postgresql(database: Database, target: Path) -> list[str]:
    """pg_dump over a snapshot that we read the ids of files in, too."""
    program = shutil.which("pg_dump")
    if program is None:
        raise ConfigError("a copy of a PostgreSQL database needs pg_dump, which is not here", hint="install PostgreSQL's client programs")
    with database.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        snapshot = connection.execute(text("SELECT pg_export_snapshot()")).scalar_one()
        ids = list(connection.execute(select(FileRow.id)).scalars())
        url = database.url.set(drivername="postgresql", password=None).render_as_string()
        words = [program, "--format=custom", f"--snapshot={snapshot}", f"--file={target}", f"--dbname={url}"]
        environment = dict(os.environ) | ({"PGPASSWORD": str(database.url.password)} if database.url.password else {})
        done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise StorageError(f"pg_dump failed: {done.stderr.strip()[:300]}", hint="is it at least as new as the server?")
    return ids


def _copy_blobs(blobs: Blobs, ids: Sequence[str], target: Path, report: Report) -> tuple[list[str], int]:
    """Copy the bytes of these files; those that are gone, and the size of the rest."""
    target.mkdir()
    missing: list[str] = []
    size = 0
    for number, blob_id in enumerate(ids, start=1):
        try:
            with blobs.open(blob_id) as source, (target / blob_id).open("wb") as file:
                shutil.copyfileobj(source, file)
            size += (target / blob_id).stat().st_size
        except NotFoundError:
            missing.append(blob_id)
        report(number, blob_id)
    return missing, size


def _forget(path: Path, ids: Sequence[str]) -> None:
    """Take files out of a copy, as their deletion did."""
    with closing(sqlite3.connect(path)) as database, database:
        for file_id in ids:
            stores = [row[0] for row in database.execute("SELECT store_id FROM vector_store_files WHERE id = ?", (file_id,))]
            for store_id in stores:
                count, words = database.execute(
                    "SELECT count(*), coalesce(sum(num_words), 0) FROM chunks WHERE store_id = ? AND file_id = ?", (store_id, file_id)
                ).fetchone()
                database.execute("DELETE FROM chunks WHERE store_id = ? AND file_id = ?", (store_id, file_id))
                database.execute(
                    "UPDATE vector_stores SET num_chunks = num_chunks - ?, num_words = num_words - ?, stamp = 'copied' WHERE id = ?",
                    (count, words, store_id),
                )
            database.execute("DELETE FROM vector_store_files WHERE id = ?", (file_id,))
            database.execute("DELETE FROM files WHERE id = ?", (file_id,))
