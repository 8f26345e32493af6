"""The database: writers in line, revisions, texts that not every database holds, what an earlier herd left."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select, text

from herd.base.errors import ConfigError, NotFoundError
from herd.store.batches import Batches
from herd.store.database import Database, sqlite_url
from herd.store.errors import ConflictError, SchemaError, StorageError, UnstorableTextError
from herd.store.files import Files
from herd.store.migrate import current, revisions, upgrade
from herd.store.paging import Cursor
from herd.store.state import State
from herd.store.tables import Base, load
from herd.store.tables.batches import BatchRow
from herd.store.tables.files import FileRow

OLD = Path(__file__).parents[1] / "golden" / "server_v1.sql"
"""What `iterdump` wrote of a server.db of the herd before revisions, with two files and two batches."""


def file_row(file_id: str, owner: str = "ann", **fields: object) -> FileRow:
    values = {"filename": "a.txt", "purpose": "batch", "size_bytes": 3, "created": time.time()}
    return FileRow(id=file_id, owner=owner, **{**values, **fields})


def old_state(folder: Path) -> Path:
    folder.mkdir()
    (folder / "files").mkdir()
    (folder / "files" / "file-1").write_bytes(b'{"custom_id": "a"}\n')
    (folder / "files" / "file-2").write_bytes(b"{}\n")
    (folder / "files" / "file-3.part").write_bytes(b"half an upload")
    with closing(sqlite3.connect(folder / "server.db")) as database:
        database.executescript(OLD.read_text(encoding="utf-8"))
    return folder


def test_threads_that_read_and_then_write_wait_their_turn(state: State) -> None:
    """Each of them reads a count and writes it back, one larger: none is lost, and no database is locked."""
    database = state.database
    with database.write() as session:
        session.add(file_row("file-0", size_bytes=0))

    def add(_: int) -> None:
        with database.write() as session:
            row = session.get_one(FileRow, "file-0", with_for_update=True)
            row.size_bytes += 1
        with database.read() as session:
            assert session.get_one(FileRow, "file-0").size_bytes > 0

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(add, range(200)))
    with database.read() as session:
        assert session.get_one(FileRow, "file-0").size_bytes == 200


WRITER = """
import sys
from herd.store.database import Database
from herd.store.tables.files import FileRow
database = Database(sys.argv[1])
for number in range(40):
    with database.write() as session:
        row = session.get_one(FileRow, "file-0", with_for_update=True)
        row.size_bytes += 1
"""


def test_processes_wait_for_each_other_too(state: State) -> None:
    with state.database.write() as session:
        session.add(file_row("file-0", size_bytes=0))
    url = state.database.url.render_as_string(hide_password=False)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, url], stderr=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        _, said = writer.communicate(timeout=120)
        assert writer.returncode == 0, said.decode()
    with state.database.read() as session:
        assert session.get_one(FileRow, "file-0").size_bytes == 80


def test_a_write_that_fails_leaves_nothing(state: State) -> None:
    with pytest.raises(ZeroDivisionError), state.database.write() as session:
        session.add(file_row("file-1"))
        session.flush()
        _ = 1 / 0
    with state.database.read() as session:
        assert session.scalar(select(func.count()).select_from(FileRow)) == 0


def test_readers_do_not_wait_for_a_writer(state: State) -> None:
    """A reader within another's long transaction sees what was before it."""
    inside, go_on = threading.Event(), threading.Event()

    def write() -> None:
        with state.database.write() as session:
            session.add(file_row("file-1"))
            session.flush()
            inside.set()
            assert go_on.wait(60)

    writer = threading.Thread(target=write)
    writer.start()
    assert inside.wait(60)
    with state.database.read() as session:
        assert session.get(FileRow, "file-1") is None
    go_on.set()
    writer.join()
    with state.database.read() as session:
        assert session.get(FileRow, "file-1") is not None


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_text_that_not_every_database_holds_is_refused_by_all(state: State, name: str) -> None:
    with pytest.raises(UnstorableTextError, match="NUL character or half a character"), state.database.write() as session:
        session.add(file_row("file-1", filename=name))


@pytest.mark.parametrize("name", ["größe", "हिन्दी", "ประเทศไทย", "🦙", "'; DROP TABLE files; --", "%s ? :x"])
def test_any_other_text_comes_back_as_it_was(state: State, name: str) -> None:
    with state.database.write() as session:
        session.add(file_row("file-1", filename=name))
    assert Files(state).get("ann", "file-1").filename == name


def test_the_revisions_make_the_tables_that_the_code_has(state: State) -> None:
    load()
    with state.database.connect() as connection:
        made = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": False}), Base.metadata)
        assert current(connection) == revisions()[-1]
    beside = ("chunk_words", "word_vector", "ix_chunks_word_vector")
    assert [step for step in made if not any(name in str(step) for name in beside)] == []


def test_a_database_that_is_up_to_date_is_left_alone(state: State) -> None:
    newest = revisions()[-1]
    assert upgrade(state.database) == (newest, newest)


def test_a_newer_herds_database_is_refused(tmp_path: Path, database_url: str | None) -> None:
    state = State(tmp_path / "state", database_url=database_url)
    with state.database.connect() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    state.close()
    with pytest.raises(SchemaError, match=r"newer herd \(schema 9999"):
        State(tmp_path / "state", database_url=database_url)


def test_a_file_of_an_earlier_herd_is_taken_over_with_its_rows(tmp_path: Path) -> None:
    state = State(old_state(tmp_path / "state"))
    assert state.revisions == ("unversioned", revisions()[-1])
    files, batches = Files(state), Batches(state)
    assert [row.id for row in files.page("ann", Cursor()).rows] == ["file-1"]
    told = files.get("bob", "file-2")
    assert (told.filename, told.created, told.expires, told.digest) == ("größe.jsonl", 1700000001.5, None, None)
    batch = batches.get("ann", "batch_1")
    assert (batch.state, batch.meta, batch.output_file_id, batch.ended) == ("completed", {"for": "test"}, "file-2", 1700000004.0)
    assert [row.id for row in batches.open()] == ["batch_2"]
    files.keep(file_row("file-4"), b"abc")
    with files.open("file-1") as opened:
        assert opened.read() == b'{"custom_id": "a"}\n'
    with state.database.connect() as connection:
        made = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": False}), Base.metadata)
        assert connection.exec_driver_sql("PRAGMA user_version").scalar_one() == 2, "so that the earlier herd refuses it"
    assert [step for step in made if "chunk_words" not in str(step) and "modify_nullable" not in str(step)] == []
    state.close()


def test_an_upgrade_that_is_cut_off_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    folder = old_state(tmp_path / "state")
    script = "import os, sys; from pathlib import Path; from herd.store import migrate; migrate.SQLITE_VERSION = Die(2); "
    program = f"""
import os
class Die(int):
    def __format__(self, _): os._exit(9)
{script}
from herd.store.state import State; State(Path(sys.argv[1]))
"""
    assert subprocess.run([sys.executable, "-c", program, str(folder)], check=False).returncode == 9
    with closing(sqlite3.connect(folder / "server.db")) as database:
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {"files", "batches"}
    state = State(folder)
    assert state.revisions[0] == "unversioned"
    state.close()


def test_one_server_at_a_time(state: State, tmp_path: Path, database_url: str | None) -> None:
    with pytest.raises(ConfigError, match="another server keeps its files in"):
        State(tmp_path / "state", database_url=database_url)
    if database_url is not None:
        with pytest.raises(ConfigError, match="another server uses"):
            State(tmp_path / "other", database_url=database_url)


@pytest.mark.parametrize(
    ("url", "said"),
    [("no url", "is no database URL"), ("mysql://h/x", "keeps nothing in 'mysql'"), ("oracle://x", "keeps nothing in")],
)
def test_a_url_that_is_none_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Database(url)


def test_a_database_that_is_not_there_is_told_without_its_password() -> None:
    database = Database("postgresql://herd:secret@127.0.0.1:1/none")
    assert "secret" not in database.told_url
    with pytest.raises(StorageError, match="cannot be used") as caught, database.read() as session:
        session.execute(text("SELECT 1"))
    assert "secret" not in caught.value.message
    database.close()


def test_sqlite_waits_for_another_process_only_so_long(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    database = Database(sqlite_url(path), busy_s=0.05)
    with database.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE a (b)")
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked"), database.write() as session:
            session.execute(text("INSERT INTO a VALUES (1)"))
    database.close()


def reads(act: Callable[[], object]) -> None:
    with pytest.raises(NotFoundError):
        act()


def test_files_of_another_owner_do_not_exist(state: State) -> None:
    files = Files(state)
    files.keep(file_row("file-1"), b"abc")
    reads(lambda: files.get("bob", "file-1"))
    reads(lambda: files.delete("bob", "file-1"))
    reads(lambda: files.page("bob", Cursor(after="file-1")))
    assert files.page("bob", Cursor()).rows == [] and files.stored_bytes("bob") == 0
    assert files.get("ann", "file-1").size_bytes == files.stored_bytes("ann") == 3


def test_a_file_that_a_batch_reads_stays_and_one_whose_time_is_over_goes(state: State) -> None:
    files, batches = Files(state), Batches(state)
    files.keep(file_row("file-1", expires=time.time() - 1), b"abc")
    reads(lambda: files.get("ann", "file-1"))
    fields = {"endpoint": "/v1/completions", "window": "1h", "created": 1.0, "expires": 2.0}
    batches.add(BatchRow(id="batch_1", owner="ann", state="in_progress", input_file_id="file-1", **fields))
    with pytest.raises(ConflictError, match="a batch reads"):
        files.delete("ann", "file-1")
    assert files.expire() == 0 and state.blobs.size("file-1") == 3
    batches.finish("batch_1", [], state="completed")
    assert files.expire() == 1 and state.blobs.size("file-1") is None
