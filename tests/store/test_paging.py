"""Pages: whatever comes and goes, each object once, and has_more is true."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import NotFoundError
from herd.store.paging import Cursor, page_of
from herd.store.state import State
from herd.store.tables.files import FileRow


def fill(state: State, times: list[int], owner: str = "ann") -> list[str]:
    """Files of these times; their ids, oldest first."""
    rows = [
        FileRow(id=f"file-{owner}-{number}", owner=owner, created=float(moment), filename="a", purpose="batch", size_bytes=1)
        for number, moment in enumerate(times)
    ]
    ids = [row.id for row in sorted(rows, key=lambda row: (row.created, row.id))]
    with state.database.write() as session:
        session.add_all(rows)
    return ids


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@settings(max_examples=25)
@given(
    times=st.lists(st.integers(0, 3), max_size=9), limit=st.integers(1, 10), order=st.sampled_from(["asc", "desc"]), number=st.integers()
)
def test_walking_through_all_pages_sees_everything_once(shared: Path, times: list[int], limit: int, order: str, number: int) -> None:
    owner = f"owner{abs(number)}-{len(times)}-{limit}-{order}-{'-'.join(map(str, times))}"
    state = State(shared / "state")
    try:
        with state.database.write() as session:
            session.query(FileRow).delete()
        ids = fill(state, times, owner)
        fill(state, [0, 1, 2], "other")
        wanted = ids if order == "asc" else ids[::-1]
        seen: list[str] = []
        more, after = True, None
        while more:
            with state.database.read() as session:
                page = page_of(session, FileRow, owner, Cursor(limit=limit, after=after, order=order), what="file")  # type: ignore[arg-type]
            seen += [row.id for row in page.rows]
            more, after = page.has_more, page.rows[-1].id if page.rows else None
            assert more == (len(seen) < len(ids))
        assert seen == wanted
        if len(ids) > 1:
            with state.database.read() as session:
                back = page_of(session, FileRow, owner, Cursor(limit=limit, before=wanted[-1], order=order), what="file")  # type: ignore[arg-type]
            assert [row.id for row in back.rows] == wanted[:-1][-limit:]
            assert back.has_more == (len(wanted) - 1 > limit)
    finally:
        state.close()


def test_pages_go_on_where_they_were_though_rows_come_and_go(state: State) -> None:
    ids = fill(state, [1, 2, 3, 4, 5])
    with state.database.read() as session:
        first = page_of(session, FileRow, "ann", Cursor(limit=2), what="file")
    assert [row.id for row in first.rows] == ids[:2:-1] and first.has_more
    with state.database.write() as session:
        session.delete(session.get_one(FileRow, ids[4]))
        session.add(FileRow(id="file-new", owner="ann", created=9.0, filename="a", purpose="batch", size_bytes=1))
    with state.database.read() as session:
        second = page_of(session, FileRow, "ann", Cursor(limit=3, after=ids[3]), what="file")
    assert [row.id for row in second.rows] == ids[2::-1] and not second.has_more


def test_a_cursor_of_nobody_is_told(state: State) -> None:
    fill(state, [1])
    for cursor in (Cursor(after="file-none"), Cursor(before="file-none")):
        with pytest.raises(NotFoundError, match="there is no file 'file-none'"), state.database.read() as session:
            page_of(session, FileRow, "ann", cursor, what="file")
