"""Responses and conversations over crashes, and between keys: a server that is killed and started anew, and two who share one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live_server import KEYS, CommandServer, wait_for  # pyright: ignore[reportMissingImports]
from scripted_app import Script, kinds, scripted  # pyright: ignore[reportMissingImports]

from herd.stack.responses.desk import INTERRUPTED
from herd.store import responses
from herd.store.tables.responses import ResponseRow


@contextmanager
def serving(state: Path, *options: str) -> Iterator[tuple[CommandServer, httpx.Client]]:
    server = CommandServer("--state-dir", str(state), *options).wait_ready()
    try:
        with server.client() as client:
            yield server, client
    finally:
        server.process.kill()
        server.process.wait()


def events(text: str) -> list[dict[str, Any]]:
    """The JSON of a stream's events, which may hold any other character that ends a line somewhere."""
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n") if line.startswith("data: ")]


def follow(client: httpx.Client, response_id: str, after: int | None = None) -> list[dict[str, Any]]:
    asked = {"stream": "true"} | ({} if after is None else {"starting_after": str(after)})
    return events(client.get(f"/v1/responses/{response_id}", params=asked).text)


@pytest.mark.slow
def test_a_killed_server_loses_nothing_that_it_told_of(tmp_path: Path) -> None:
    state = tmp_path / "state"
    short: dict[str, Any] = {"input": "Hello", "max_output_tokens": 4, "temperature": 0}
    with serving(state) as (server, client):
        made = client.post("/v1/conversations", json={"items": [{"role": "user", "content": "I am Ann."}]}).json()["id"]
        whole = client.post("/v1/responses", json={**short, "conversation": made}).json()
        streamed = events(client.post("/v1/responses", json={**short, "previous_response_id": whole["id"], "stream": True}).text)[-1]
        first = client.post("/v1/responses", json={**short, "background": True}).json()
        wait_for(lambda: client.get(f"/v1/responses/{first['id']}").json()["status"] == "incomplete")
        told = follow(client, first["id"])
        long = client.post(
            "/v1/responses", json={"input": "Hello", "max_output_tokens": 12_000, "temperature": 0, "background": True}
        ).json()
        wait_for(lambda: len(client.get(f"/v1/responses/{long['id']}").json()["output"]) == 1)
        time.sleep(1.5)  # so that a piece of its events is kept
        server.process.kill()
        server.process.wait()
    with serving(state) as (_, client):
        assert client.get(f"/v1/responses/{whole['id']}").json() == whole
        assert client.get(f"/v1/responses/{streamed['response']['id']}").json() == streamed["response"]
        assert follow(client, first["id"]) == told
        assert follow(client, first["id"], after=3) == told[4:]
        items = client.get(f"/v1/conversations/{made}/items", params={"order": "asc"}).json()
        assert [item["role"] for item in items["data"]] == ["user", "user", "assistant"] and items["has_more"] is False
        lost = client.get(f"/v1/responses/{long['id']}").json()
        assert lost["status"] == "failed" and lost["error"] == {"code": "server_error", "message": INTERRUPTED}
        again = follow(client, long["id"])
        assert [event["sequence_number"] for event in again] == list(range(len(again)))
        assert again[0]["type"] == "response.created" and again[-1]["type"] == "response.failed"
        assert any(event["type"] == "response.output_text.delta" for event in again)
        assert follow(client, long["id"], after=len(again) + 5)[-1]["type"] == "response.failed"


def test_what_was_queued_is_begun_after_a_crash_and_what_had_begun_is_failed(tmp_path: Path) -> None:
    async def check() -> None:
        engine = Script("An answer after all.")
        engine.hold = asyncio.Event()
        async with scripted(engine, tmp_path) as app:
            made = await app.openai().responses.create(model="tiny", input="?", background=True)
            while not engine.asked:
                await asyncio.sleep(0)
            row, items = responses.open_responses(app.database)[0]
            assert row.id == made.id and row.state == "in_progress"
            # As a crash would have left them: one begun, one not.
            with app.database.write() as session:
                for number, state in enumerate(("queued", "in_progress")):
                    copy = {name: getattr(row, name) for name in ("owner", "created", "expires", "model", "data", "body")}
                    copy["data"] = {**row.data, "id": f"resp_{number}", "status": state}
                    session.add(ResponseRow(id=f"resp_{number}", state=state, **copy))
                session.flush()
                session.add_all(responses._rows(session.get_one(ResponseRow, "resp_0"), items, first=0, output=False))  # pyright: ignore[reportPrivateUsage]
        engine.hold = None
        async with scripted(engine, tmp_path) as app:
            client = app.openai()
            for _ in range(2000):
                found = await client.responses.retrieve("resp_0")
                if found.status == "completed":
                    break
                await asyncio.sleep(0.001)
            assert found.output_text == "An answer after all."
            assert (await client.responses.retrieve("resp_1")).status == "failed"
            # The server that ended in good order failed what was at work, with the reason.
            ended = await client.responses.retrieve(made.id)
            assert ended.status == "failed" and ended.error is not None and INTERRUPTED in ended.error.message

    asyncio.run(check())


def test_no_one_finds_what_is_anothers(tmp_path: Path) -> None:
    async def check() -> None:
        async with scripted(Script("Mine."), tmp_path, keyed=True) as app:
            anna, bert = app.openai(KEYS["anna"]), app.openai(KEYS["bert"])
            conversation = await anna.conversations.create(items=[{"type": "message", "role": "user", "content": "A secret."}])
            mine = await anna.responses.create(model="tiny", input="?", conversation=conversation.id)
            item = (await anna.conversations.items.list(conversation.id)).data[0].id
            assert item is not None
            attempts = [
                lambda: bert.responses.retrieve(mine.id),
                lambda: bert.responses.delete(mine.id),
                lambda: bert.responses.cancel(mine.id),
                lambda: bert.responses.input_items.list(mine.id),
                lambda: bert.responses.create(model="tiny", input="?", previous_response_id=mine.id),
                lambda: bert.responses.create(model="tiny", input="?", conversation=conversation.id),
                lambda: bert.responses.create(model="tiny", input=[{"type": "item_reference", "id": item}]),
                lambda: bert.conversations.retrieve(conversation.id),
                lambda: bert.conversations.update(conversation.id, metadata={"a": "b"}),
                lambda: bert.conversations.delete(conversation.id),
                lambda: bert.conversations.items.list(conversation.id),
                lambda: bert.conversations.items.retrieve(item, conversation_id=conversation.id),
                lambda: bert.conversations.items.delete(item, conversation_id=conversation.id),
                lambda: bert.conversations.items.create(conversation.id, items=[{"type": "message", "role": "user", "content": "x"}]),
            ]
            for number, attempt in enumerate(attempts):
                with pytest.raises(openai.NotFoundError):
                    await attempt()
                    pytest.fail(f"attempt {number}")
            listed = (await app.http.get("/v1/responses", headers={"Authorization": f"Bearer {KEYS['bert']}"})).json()
            assert listed["data"] == [] and listed["has_more"] is False
            kept = await anna.responses.create(model="tiny", input=[{"type": "item_reference", "id": item}])
            assert kept.output_text == "Mine."

    asyncio.run(check())


def test_pages_are_whole_and_say_truly_whether_there_is_more(tmp_path: Path) -> None:
    async def check() -> None:
        async with scripted(Script("Yes."), tmp_path) as app:
            client = app.openai()
            made = [(await client.responses.create(model="tiny", input=f"{number}")).id for number in range(5)]
            pages: list[dict[str, Any]] = []
            after: dict[str, str] = {}
            while not pages or pages[-1]["has_more"]:
                pages.append((await app.http.get("/v1/responses", params={"limit": "2", "order": "asc", **after})).json())
                after = {"after": pages[-1]["last_id"]}
            assert [one["id"] for page in pages for one in page["data"]] == made and len(pages) == 3
            items: Any = [{"role": "user", "content": str(number)} for number in range(7)]
            many = await client.responses.create(model="tiny", input=items)
            for order in ("asc", "desc"):
                found = [item async for item in client.responses.input_items.list(many.id, limit=3, order=order)]
                texts = [item.content[0].text for item in found]  # type: ignore[union-attr]
                assert texts == [str(number) for number in (range(7) if order == "asc" else reversed(range(7)))]

    asyncio.run(check())


def test_what_is_too_old_is_gone(tmp_path: Path) -> None:
    async def check() -> None:
        async with scripted(Script("Yes."), tmp_path) as app:
            client = app.openai()
            made = await client.responses.create(model="tiny", input="?")
            row = responses.get(app.database, "", made.id).row
            assert row.expires - row.created == 30 * 86_400
            assert responses.expire(app.database, row.expires - 1) == 0 and responses.expire(app.database, row.expires) == 1
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(made.id)

    asyncio.run(check())


def test_a_chain_with_a_hole_is_refused(tmp_path: Path) -> None:
    async def check() -> None:
        async with scripted(Script("Yes."), tmp_path) as app:
            client = app.openai()
            first = await client.responses.create(model="tiny", input="One.")
            second = await client.responses.create(model="tiny", input="Two.", previous_response_id=first.id)
            await client.responses.delete(first.id)
            with pytest.raises(openai.NotFoundError, match="not there any more"):
                await client.responses.create(model="tiny", input="Three.", previous_response_id=second.id)

    asyncio.run(check())


def test_one_answer_at_a_time_in_a_conversation(tmp_path: Path) -> None:
    async def check() -> None:
        engine = Script("Slow.")
        engine.hold = asyncio.Event()
        async with scripted(engine, tmp_path) as app:
            client = app.openai()
            conversation = await client.conversations.create()
            first = asyncio.ensure_future(client.responses.create(model="tiny", input="?", conversation=conversation.id))
            while not engine.asked:
                await asyncio.sleep(0)
            with pytest.raises(openai.ConflictError):
                await client.responses.create(model="tiny", input="?", conversation=conversation.id)
            engine.hold.set()
            assert (await first).output_text == "Slow."
            await client.responses.create(model="tiny", input="?", conversation=conversation.id)

    asyncio.run(check())


def test_a_client_that_leaves_a_stream_ends_its_response(tmp_path: Path) -> None:
    async def check() -> None:
        engine = Script("Slow.")
        engine.hold = asyncio.Event()
        async with scripted(engine, tmp_path) as app:
            body: Any = {"input": "?", "stream": True}
            from herd.stack.guard import Context
            from herd.stack.responses.types import ResponseBody

            work = await app.desk.create(ResponseBody(**body), Context(request_id="r", key=None))
            async for piece in work.journal.follow():
                if b"output_text.delta" in piece:
                    break
            work.cancel()
            await work.wait()
            kept = responses.get(app.database, "", work.id)
            assert kept.row.state == "cancelled" and kept.output[0]["status"] == "incomplete"
            assert app.service.admission.num_requests == 0
            told = [
                json.loads(piece.partition(b"data: ")[2]) async for block in work.journal.follow() for piece in block.split(b"\n\n")[:-1]
            ]
            assert kinds(told)[-1] == "response.incomplete" and told[-1]["response"]["status"] == "cancelled"

    asyncio.run(check())
