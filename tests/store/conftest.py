"""Every storage test runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from herd.store.state import State
from postgres_server import fresh_database  # pyright: ignore[reportMissingImports]


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """None is a file in the state directory."""
    return None if request.param == "sqlite" else fresh_database()


@pytest.fixture
def state(tmp_path: Path, database_url: str | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """One whose vectors are usearch's, whatever the PostgreSQL here offers: `test_pgvector` has one of the other kind."""
    monkeypatch.setattr("herd.store.pgvector._available", lambda _: False)
    made = State(tmp_path / "state", database_url=database_url)
    yield made
    made.close()
