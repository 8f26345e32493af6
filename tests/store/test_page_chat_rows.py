"""Chats of the page on every database: written in pieces, found by every word, one owner's alone, within their room."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import update

from herd.base.errors import NotFoundError, UsageError
from herd.store import page_chats
from herd.store.state import State
from herd.store.tables.page_chats import PageChatRow

ROOM = 2**20


def chat(name: str, title: str = "", **more: Any) -> dict[str, Any]:
    return {"id": name, "title": title, **more}


def message(name: str, text: str, *, made: float = 0, parent: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": name, "parent": parent, "made": made, "text": text, **more}


def test_a_chat_is_written_in_pieces_and_comes_back_whole(state: State) -> None:
    first, answer = message("a", "Hi \0 สวัสดี"), message("b", "Hello", made=2, parent="a", busy=True)
    page_chats.put(state.database, "ann", chat("c", "Old", leaf="b"), [answer, first], room_bytes=ROOM)
    whole = message("b", "Hello.", made=2, parent="a", stats={"prompt": 3})
    other = message("d", "Another answer.", made=3, parent="a")
    page_chats.put(state.database, "ann", chat("c", "New", leaf="d"), [whole, other], room_bytes=ROOM)
    page_chats.put(state.database, "ann", chat("c", "New", leaf="d"), [], room_bytes=ROOM)
    assert page_chats.get(state.database, "ann", "c") == (chat("c", "New", leaf="d"), [first, whole, other])


def test_owners_have_the_same_ids_and_never_see_each_other(state: State) -> None:
    for owner in ("ann", "bob"):
        page_chats.put(state.database, owner, chat("c", f"of {owner}"), [message("m", f"secret of {owner}")], room_bytes=ROOM)
    assert page_chats.page(state.database, "ann") == ([chat("c", "of ann")], False)
    assert page_chats.page(state.database, "ann", words="bob") == ([], False)
    assert page_chats.get(state.database, "bob", "c")[1] == [message("m", "secret of bob")]
    with pytest.raises(NotFoundError, match="there is no chat 'c'"):
        page_chats.get(state.database, "eve", "c")
    assert not page_chats.remove(state.database, "eve", "c") and page_chats.remove_all(state.database, "ann") == 1
    assert page_chats.page(state.database, "ann") == ([], False)
    assert page_chats.get(state.database, "bob", "c")[1] == [message("m", "secret of bob")]


def test_pages_go_on_where_the_last_ended_whatever_changes_meanwhile(state: State) -> None:
    for number in range(5):
        page_chats.put(state.database, "ann", chat(f"c{number}"), [], room_bytes=ROOM)
    first, more = page_chats.page(state.database, "ann", limit=2)
    assert [one["id"] for one in first] == ["c0", "c1"] and more
    page_chats.put(state.database, "ann", chat("c0", "changed"), [], room_bytes=ROOM)
    page_chats.remove(state.database, "ann", "c2")
    rest, more = page_chats.page(state.database, "ann", after="c1", limit=2)
    assert [one["id"] for one in rest] == ["c3", "c4"] and not more
    with pytest.raises(NotFoundError, match="'c2'"):
        page_chats.page(state.database, "ann", after="c2")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", ["x", "y"]),
        ("STRASSE", ["x"]),
        ("straße rom", ["x"]),
        ("rom paris", []),
        ("llamas hum", ["y"]),
        ("100%", ["y"]),
        ("100_", []),
        ("สวัส", ["x"]),
    ],
)
def test_every_word_has_to_be_somewhere_in_a_chat(state: State, words: str, found: list[str]) -> None:
    page_chats.put(state.database, "ann", chat("x", "Die Straße"), [message("1", "nach Rom"), message("2", "สวัสดี")], room_bytes=ROOM)
    page_chats.put(state.database, "ann", chat("y", "Llamas"), [message("1", "They HUM, 100% of them")], room_bytes=ROOM)
    assert [one["id"] for one in page_chats.page(state.database, "ann", words=words)[0]] == found


def test_what_is_over_the_room_is_refused_whole_and_less_is_always_taken(state: State) -> None:
    page_chats.put(state.database, "ann", chat("c"), [message("a", "x" * 500)], room_bytes=1000)
    with pytest.raises(UsageError, match=r"would have 1,\d+ bytes, this server keeps 1,000"):
        page_chats.put(state.database, "ann", chat("d"), [message("a", "x" * 500)], room_bytes=1000)
    with pytest.raises(UsageError):
        page_chats.put(state.database, "ann", chat("c"), [message("b", "x" * 500)], room_bytes=1000)
    assert page_chats.page(state.database, "ann") == ([chat("c")], False)
    page_chats.put(state.database, "bob", chat("d"), [message("a", "x" * 500)], room_bytes=1000)
    page_chats.put(state.database, "ann", chat("c"), [message("a", "x" * 400)], room_bytes=100)


def test_a_new_chat_takes_the_first_writes_of_many_at_once_and_its_owner_keeps_to_the_room(state: State) -> None:
    def write(number: int) -> str:
        start.wait()
        try:
            page_chats.put(state.database, "ann", chat(f"c{number % 2}"), [message(f"m{number}", "x" * 500)], room_bytes=3000)
        except UsageError as error:
            return str(error)
        return "kept"

    for _ in range(4):
        start = threading.Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(write, range(8)))
        with state.database.read() as session:
            assert list(page_chats.problems(session)) == []
        held = [one["id"] for chat_id in ("c0", "c1") for one in page_chats.get(state.database, "ann", chat_id)[1]]
        assert sorted(held) == [f"m{number}" for number, one in enumerate(told) if one == "kept"]
        assert len(held) == 5 and all("keeps 3,000" in one for one in told if one != "kept")
        page_chats.remove_all(state.database, "ann")


def test_what_no_json_can_hold_is_refused(state: State) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for value in (math.nan, deep):
        with pytest.raises(UsageError, match="'a' cannot be kept as JSON"):
            page_chats.put(state.database, "ann", chat("c"), [message("a", "x", value=value)], room_bytes=ROOM)
    while deep:  # taken apart by hand: freeing it at once would recurse as deep
        deep = deep[0]


def test_a_chat_counts_what_it_holds(state: State) -> None:
    page_chats.put(
        state.database, "ann", chat("c", "One", leaf="b"), [message("a", "Hi"), message("b", "สวัสดี", parent="a")], room_bytes=ROOM
    )
    page_chats.put(state.database, "ann", chat("c", "Two"), [message("b", "Hello there", parent="a")], room_bytes=ROOM)
    page_chats.put(state.database, "bob", chat("c"), [], room_bytes=ROOM)
    with state.database.read() as session:
        assert page_chats.count(session) == 2 and list(page_chats.problems(session)) == []
    with state.database.write() as session:
        session.execute(update(PageChatRow).where(PageChatRow.owner == "bob").values(size_bytes=5))
    with state.database.read() as session:
        (found,) = page_chats.problems(session)
    assert found[0] == "c" and found[1].startswith("it counts 5 bytes and holds ")
