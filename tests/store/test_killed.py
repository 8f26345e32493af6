"""kill -9 amid uploads, indexing and deletions: what was acknowledged is there, all else is absent or begun again, nothing is orphaned."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from herd.store.check import check
from herd.store.state import State
from herd.store.vector_stores import VectorStores
from herd.store.vectors import Vectors

FULL = os.environ.get("HERD_TEST_FULL") == "1"

WORKER = '''
"""Uploads, indexes and deletes until it is killed; what it says was done before it says so."""
import itertools, sys, time
from pathlib import Path
import numpy as np
from herd.store.files import Files
from herd.store.paging import Cursor
from herd.store.state import State
from herd.store.tables.files import FileRow
from herd.store.tables.vector_stores import VectorStoreRow
from herd.store.vector_stores import NewChunk, NewFile, VectorStores
from herd.store.vectors import Vectors

url, life = sys.argv[2] or None, sys.argv[3]
state = State(Path(sys.argv[1]), database_url=url)
stores = VectorStores(state)
files = Files(state, on_delete=[stores.forget_file])
vectors = Vectors(state.indexes_dir, exact_rows=30)
state.blobs.sweep({row.id for row in files.page("ann", Cursor(limit=100_000)).rows})
if not stores.ids():
    fields = {"name": None, "description": None, "last_active": time.time(), "embedding_model": "m"}
    stores.add(VectorStoreRow(id="vs_1", owner="ann", created=1.0, **fields))
say = lambda *words: (sys.stdout.write(" ".join(words) + "\\n"), sys.stdout.flush())
say("ready")
for number in itertools.count():
    name = f"file-{life}-{number}"
    path = state.blobs.staged(name)
    path.write_bytes(name.encode() * 200)
    row = FileRow(id=name, owner="ann", filename=name, purpose="assistants", size_bytes=len(name) * 200, created=time.time())
    files.keep(row, path)
    say("kept", name)
    stores.add_files("ann", "vs_1", [NewFile(file_id=name, attributes=None, chunking={})])
    say("added", name)
    for waiting in stores.pending(100):
        draw = [np.random.default_rng(at).normal(size=8) for at in range(20)]
        chunks = [NewChunk(text=f"{waiting.id} passage {at}", start=at, end=at + 1, vector=draw[at]) for at in range(20)]
        assert stores.complete(waiting, chunks)
        say("indexed", waiting.id)
    with state.database.read() as session:
        vectors.refresh(session, stores.get("ann", "vs_1"))
    if number % 3 == 2:
        gone = f"file-{life}-{number - 1}"
        say("deleting", gone)
        files.delete("ann", gone)
        say("deleted", gone)
'''


@pytest.mark.parametrize("life", range(8 if FULL else 2))
def test_what_was_acknowledged_outlives_kill_and_nothing_is_orphaned(tmp_path: Path, database_url: str | None, life: int) -> None:
    rng = random.Random(life)
    said: list[list[str]] = []
    for round_number in range(2):
        words = [sys.executable, "-c", WORKER, str(tmp_path / "state"), database_url or "", f"{life}-{round_number}"]
        worker = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert worker.stdout is not None and worker.stderr is not None
        lines = rng.randint(5, 40)
        for _ in range(lines):
            line = worker.stdout.readline()
            assert line, worker.stderr.read().decode()
            said.append(line.decode().split())
        time.sleep(rng.random() * 0.02)
        worker.send_signal(signal.SIGKILL)
        rest, _ = worker.communicate()
        said += [line.split() for line in rest.decode().splitlines() if line]
    hold(tmp_path / "state", database_url, [line for line in said if len(line) == 2])


def hold(folder: Path, url: str | None, said: list[list[str]]) -> None:
    """Every promise is kept."""
    state = State(folder, database_url=url)
    try:
        from sqlalchemy import select

        from herd.store.tables.files import FileRow

        with state.database.read() as session:
            rows = {row.id: row for row in session.scalars(select(FileRow))}
        state.blobs.sweep(set(rows))
        done: dict[str, set[str]] = {}
        for word, name in said:
            done.setdefault(word, set()).add(name)
        maybe_gone = done.get("deleting", set())
        stores = VectorStores(state)
        for name in done["kept"] - maybe_gone:
            assert state.blobs.read(name) == name.encode() * 200
        for name in done.get("indexed", set()) - maybe_gone:
            assert stores.file("ann", "vs_1", name).status == "completed"
            assert [chunk.ordinal for chunk in stores.chunks("ann", "vs_1", name)] == list(range(20))
        for name in done.get("added", set()) - maybe_gone:
            assert stores.file("ann", "vs_1", name).status in ("in_progress", "completed")
        assert not done.get("deleted", set()) & set(rows)
        found = check(state.database, state.blobs, Vectors(state.indexes_dir, exact_rows=30))
        assert found.problems == []
    finally:
        state.close()
