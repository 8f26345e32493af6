"""Stored chat completions on every database: pages by metadata, owners, what the check and the migration know of them."""

from __future__ import annotations

import pytest

from herd.base.errors import NotFoundError
from herd.store import chat_completions
from herd.store.paging import Cursor
from herd.store.state import State
from herd.store.tables.chat_completions import ChatCompletionRow


def row(number: int, owner: str = "ann", **meta: str) -> ChatCompletionRow:
    fields = {"model": f"m{number % 2}", "data": {"id": f"c{number}", "text": "สวัสดี \0"}, "messages": [{"role": "user"}], "expires": 50.0}
    return ChatCompletionRow(id=f"c{number}", owner=owner, created=float(number), meta=meta, **fields)


def test_pages_hold_what_was_asked_for_alone(state: State) -> None:
    for number in range(6):
        chat_completions.add(state.database, row(number, "ann" if number < 5 else "bob", place=str(number % 2), **{"odd'key\"": "x"}))
    cursor = Cursor(limit=2, order="asc")
    page = chat_completions.page(state.database, "ann", cursor, meta={"place": "0", "odd'key\"": "x"})
    assert [one.id for one in page.rows] == ["c0", "c2"] and page.has_more
    assert [one.id for one in chat_completions.page(state.database, "ann", Cursor(after="c2", order="asc"), model="m0").rows] == ["c4"]
    assert chat_completions.page(state.database, "ann", cursor, meta={"place": "0", "none": "x"}).rows == []
    assert chat_completions.get(state.database, "ann", "c1").data["text"] == "สวัสดี \0"
    chat_completions.update(state.database, "ann", "c1", {"new": "y"})
    assert [one.id for one in chat_completions.page(state.database, "ann", cursor, meta={"new": "y"}).rows] == ["c1"]
    for attempt in (
        lambda: chat_completions.get(state.database, "ann", "c5"),
        lambda: chat_completions.remove(state.database, "bob", "c1"),
    ):
        with pytest.raises(NotFoundError):
            attempt()
    assert chat_completions.expire(state.database, 49.0) == 0 and chat_completions.expire(state.database, 50.0) == 6
