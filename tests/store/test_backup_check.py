"""Backups while somebody writes, and a check that sees every kind of damage."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from herd.agents.sql_store import SqlSessionStore
from herd.base.errors import UsageError
from herd.store.backup import back_up
from herd.store.check import Findings, check
from herd.store.files import Files
from herd.store.state import State
from herd.store.tables.files import FileRow
from herd.store.tables.vector_stores import VectorStoreRow
from herd.store.vector_stores import NewChunk, NewFile, VectorStores
from herd.store.vectors import Vectors


def fill(state: State, count: int = 3) -> Files:
    stores = VectorStores(state)
    files = Files(state, on_delete=[stores.forget_file])
    row = VectorStoreRow(id="vs_1", owner="ann", created=1.0, name=None, description=None, last_active=1.0, embedding_model="m")
    stores.add(row)
    for number in range(count):
        keep(files, f"file-{number}")
        stores.add_files("ann", "vs_1", [NewFile(file_id=f"file-{number}", attributes=None, chunking={})])
        (waiting,) = stores.pending(1)
        stores.complete(waiting, [NewChunk(text="one two", start=0, end=7, vector=[1.0, 0.0])])
    return files


def keep(files: Files, file_id: str) -> None:
    data = file_id.encode()
    digest = hashlib.sha256(data).hexdigest()
    fields = {"filename": "a.txt", "purpose": "batch", "size_bytes": len(data), "created": time.time(), "digest": digest}
    files.keep(FileRow(id=file_id, owner="ann", **fields), data)


def looked(state: State, *, deep: bool = False) -> Findings:
    return check(state.database, state.blobs, Vectors(state.indexes_dir), deep=deep)


def test_a_backup_that_is_made_while_others_write_is_whole(state: State, tmp_path: Path) -> None:
    if not state.database.is_sqlite and shutil.which("pg_dump") is None:
        pytest.skip("needs pg_dump, which is not here")
    files = fill(state)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            keep(files, f"file-x{number}")
            if number % 2:
                files.delete("ann", f"file-x{number - 1}")
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        manifest = back_up(state.database, state.blobs, state.folder, tmp_path / "copy")
    finally:
        stop.set()
        writer.join()
    assert manifest["num_files"] >= 3
    if state.database.is_sqlite:
        copy = State(tmp_path / "copy")
        assert looked(copy, deep=True).problems == []
        assert copy.blobs.read("file-1") == b"file-1"
        copy.close()
    else:
        assert (tmp_path / "copy" / "database.dump").stat().st_size > 1000
    with pytest.raises(UsageError, match="exists and is not empty"):
        back_up(state.database, state.blobs, state.folder, tmp_path / "copy")


def test_what_is_whole_has_no_problems(state: State) -> None:
    fill(state)
    found = looked(state, deep=True)
    assert found.problems == [] and found.counts == {
        "files": 3,
        "blobs": 3,
        "vector_stores": 1,
        "chunks": 3,
        "registrations": 0,
        "sessions": 0,
        "chats": 0,
    }


def test_every_kind_of_damage_is_seen(state: State) -> None:
    fill(state, 5)
    path = state.blobs.path
    for name, act in (
        ("file-0", Path.unlink),
        ("file-1", lambda file: file.write_bytes(b"x")),
        ("file-2", lambda file: file.write_bytes(b"fole-2")),
    ):
        found = path(name)
        assert found is not None
        act(found)
    state.blobs.put(b"abc", "file-orphan")
    with state.database.connect() as connection:
        connection.execute(text("UPDATE vector_stores SET num_words = 7"))
        connection.execute(text("DELETE FROM vector_store_files WHERE id = 'file-3'"))
        connection.execute(text("UPDATE chunks SET vector = :v WHERE file_id = 'file-4'"), {"v": bytes(12)})
    assert sorted((one.kind, one.subject) for one in looked(state, deep=True).problems) == [
        *(("counts", "vs_1"), ("damaged", "file-1"), ("damaged", "file-2"), ("missing", "file-0")),
        *(("orphan", "file-3"), ("orphan", "file-orphan"), ("vectors", "vs_1")),
    ]
    assert ("damaged", "file-2") not in [(one.kind, one.subject) for one in looked(state).problems], "only `deep` reads bytes"


def test_sessions_that_lost_their_turn_are_seen(state: State) -> None:
    store = SqlSessionStore(state.database)

    async def begin() -> tuple[str, str]:
        sessions = [await store.create_session("ann") for _ in range(3)]
        turns = [await store.begin_turn("ann", session.id, []) for session in sessions]
        return turns[0].id, " ".join(session.id for session in sessions)

    turn_id, names = asyncio.run(begin())
    first, second, third = names.split()
    found = looked(state)
    assert found.problems == [] and found.counts["sessions"] == 3
    with state.database.connect() as connection:
        connection.execute(text("UPDATE agent_sessions SET open_turn = NULL WHERE id = :id"), {"id": first})
        connection.execute(text("UPDATE agent_turns SET status = 'completed' WHERE session_id = :id"), {"id": second})
        connection.execute(text("UPDATE agent_sessions SET num_turns = 7 WHERE id = :id"), {"id": third})
    told = {one.subject: one.message for one in looked(state).problems if one.kind == "session"}
    assert told[first] == f"its open turn is none, those that are not over are {turn_id}"
    assert told[second].endswith("those that are not over are none") and told[third] == "it counts 7 turns, there are 1"


def test_words_that_are_not_those_of_the_chunks_are_seen(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    fill(state)
    with state.database.connect() as connection:
        connection.exec_driver_sql("INSERT INTO chunk_words (chunk_words) VALUES ('delete-all')")
    assert [one.kind for one in looked(state).problems] == ["index"]
    state.close()


def test_an_older_revision_is_told(state: State) -> None:
    with state.database.connect() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    (problem,) = looked(state).problems
    assert problem.kind == "revision" and "herd db upgrade" in problem.message
