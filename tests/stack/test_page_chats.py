"""The page's chats over HTTP: kept, listed, searched, given back, deleted; a key's alone; and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from live_server import bearer  # pyright: ignore[reportMissingImports]
from scripted_app import App, Script, scripted  # pyright: ignore[reportMissingImports]

from herd.stack.config import Caps

CHATS = "/v1/herd/chats"
CHAT = {"id": "c1", "title": "Rivers", "changed": 1.7e12, "leaf": "m2", "system": "", "params": {"top_k": 4}, "tools": ["calculate"]}
MESSAGES = [
    {"id": "m1", "chat": "c1", "parent": None, "made": 1.7e12, "role": "user", "text": "What is a river?"},
    {"id": "m2", "chat": "c1", "parent": "m1", "made": 1.7e12 + 1, "role": "assistant", "text": "Water.", "calls": [{"id": "x"}]},
]


def run(tmp_path: Path, work: Callable[[App], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def main() -> None:
        async with scripted(Script("Hi."), tmp_path, **settings) as app:
            await work(app)

    asyncio.run(main())


def test_a_chat_comes_back_as_the_page_made_it(tmp_path: Path) -> None:
    async def work(app: App) -> None:
        put = await app.http.put(f"{CHATS}/c1", json={"chat": CHAT, "messages": MESSAGES})
        assert put.json() == {"id": "c1", "object": "chat.kept", "messages": 2}
        assert (await app.http.get(f"{CHATS}/c1")).json() == {"chat": CHAT, "messages": MESSAGES}
        listed = (await app.http.get(CHATS)).json()
        assert (listed["data"], listed["has_more"], listed["owner"]) == ([CHAT], False, "")
        assert (await app.http.get(CHATS, params={"query": "WATER river"})).json()["data"] == [CHAT]
        assert (await app.http.get(CHATS, params={"query": "wine"})).json()["data"] == []
        assert (await app.http.delete(f"{CHATS}/c1")).json()["deleted"] is True
        gone = await app.http.delete(f"{CHATS}/c1")
        assert gone.status_code == 404 and "no chat 'c1'" in gone.json()["error"]["message"]

    run(tmp_path, work)


def test_chats_of_a_key_are_no_one_elses(tmp_path: Path) -> None:
    async def work(app: App) -> None:
        body = {"chat": CHAT, "messages": MESSAGES}
        assert (await app.http.put(f"{CHATS}/c1", json=body)).status_code == 401
        assert (await app.http.put(f"{CHATS}/c1", json=body, headers=bearer("anna"))).status_code == 200
        told = (await app.http.get(CHATS, headers=bearer("bert"))).json()
        assert told["data"] == [] and told["owner"] == "bert"
        assert (await app.http.get(CHATS, params={"after": "c1"}, headers=bearer("bert"))).status_code == 404
        for method in ("get", "delete"):
            assert (await getattr(app.http, method)(f"{CHATS}/c1", headers=bearer("bert"))).status_code == 404
        assert (await app.http.delete(CHATS, headers=bearer("bert"))).json()["deleted"] == 0
        # The same id is another chat, and takes nothing of the first one's.
        mine = {"chat": {"id": "c1", "title": "Mine"}, "messages": []}
        assert (await app.http.put(f"{CHATS}/c1", json=mine, headers=bearer("bert"))).status_code == 200
        assert (await app.http.get(f"{CHATS}/c1", headers=bearer("bert"))).json()["messages"] == []
        assert (await app.http.get(f"{CHATS}/c1", headers=bearer("anna"))).json() == body
        assert (await app.http.delete(CHATS, headers=bearer("anna"))).json()["deleted"] == 1

    run(tmp_path, work, keyed=True)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("c2", {"chat": CHAT}, "the body has the chat 'c1', the path 'c2'"),
        ("c 1", {"chat": CHAT}, "chat_id"),
        ("c1", {"chat": {**CHAT, "leaf": 5}}, "leaf"),
        ("c1", {"chat": CHAT, "messages": [{"id": "../m"}]}, "messages"),
        ("c1", {"chat": CHAT, "messages": [{"id": "m", "text": ["x"]}]}, "text"),
        ("c1", {"chat": CHAT, "more": 1}, "more"),
        ("c1", {"chat": CHAT, "messages": [{"id": f"m{number}"} for number in range(1001)]}, "1,?000"),
    ],
)
def test_what_is_no_chat_is_refused_by_name(tmp_path: Path, path: str, body: Any, said: str) -> None:
    async def work(app: App) -> None:
        answer = await app.http.put(f"{CHATS}/{path}", json=body)
        assert answer.status_code == 400
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(answer.text)
        assert (await app.http.get(CHATS)).json()["data"] == []

    run(tmp_path, work)


def test_a_key_has_so_much_room(tmp_path: Path) -> None:
    async def work(app: App) -> None:
        answer = await app.http.put(f"{CHATS}/c1", json={"chat": CHAT, "messages": MESSAGES})
        assert answer.status_code == 400 and "this server keeps 300" in answer.json()["error"]["message"]
        nan = b'{"chat": {"id": "c1", "x": NaN}}'
        told = await app.http.put(f"{CHATS}/c1", content=nan, headers={"content-type": "application/json"})
        assert told.status_code == 400
        many = await app.http.get(CHATS, params={"query": "a " * 20})
        assert many.status_code == 400 and "up to 16 words" in many.json()["error"]["message"]

    run(tmp_path, work, caps=Caps(chat_bytes=300))
