"""Stored chat completions as OpenAI's client drives them: kept as answered, whole or streamed, paged, labelled, and no one else's."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import openai
import pytest
from live_server import KEYS  # pyright: ignore[reportMissingImports]
from scripted_app import App, Script, scripted  # pyright: ignore[reportMissingImports]

from herd.store import chat_completions

RIVER: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "a river?"}]},
    {"role": "assistant", "content": "Water."},
    {"role": "user", "content": "Is it?"},
]
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}}


def run(tmp_path: Path, work: Callable[[App], Coroutine[Any, Any, None]], *texts: str, **settings: Any) -> None:
    async def main() -> None:
        async with scripted(Script(*(texts or ("It is.",))), tmp_path, **settings) as app:
            await work(app)

    asyncio.run(main())


def test_an_answer_is_found_again_as_it_was_given(tmp_path: Path) -> None:
    async def work(app: App) -> None:
        client = app.openai()
        made = await client.chat.completions.create(model="tiny", messages=RIVER, store=True, metadata={"kind": "a"}, n=2)
        found = await client.chat.completions.retrieve(made.id)
        more = {"metadata": {"kind": "a"}, "input_messages": RIVER}
        assert found.model_dump(exclude_unset=True) == made.model_dump(exclude_unset=True) | more
        assert [choice.message.content for choice in found.choices] == ["It is.", "It is."]
        unkept = await client.chat.completions.create(model="tiny", messages=RIVER, metadata={"kind": "a"})
        with pytest.raises(openai.NotFoundError, match="store: true"):
            await client.chat.completions.retrieve(unkept.id)
        assert len((await client.chat.completions.list()).data) == 1

    run(tmp_path, work)


@pytest.mark.parametrize("said", ["It is, and it flows.", json.dumps({"name": "look", "parameters": {"at": "rivers"}})])
def test_a_stream_is_kept_as_the_whole_answer_would_be(tmp_path: Path, said: str) -> None:
    fields: dict[str, Any] = {"model": "tiny", "messages": RIVER, "store": True, "tools": [TOOL], "logprobs": True, "n": 2}

    async def work(app: App) -> None:
        client = app.openai()
        whole = await client.chat.completions.create(**fields)
        chunks = [chunk async for chunk in await client.chat.completions.create(**fields, stream=True)]
        kept = await client.chat.completions.retrieve(chunks[0].id)
        same = kept.model_dump(exclude={"id", "created", "metadata", "input_messages"})
        expected = whole.model_dump(exclude={"id", "created", "metadata"})
        for told in (same, expected):
            for choice in told["choices"]:
                for call in choice["message"]["tool_calls"] or ():
                    call.pop("id")
        assert same == expected and kept.object == "chat.completion"

    run(tmp_path, work, said)


def test_pages_by_cursor_order_model_and_metadata(tmp_path: Path) -> None:
    async def work(app: App) -> None:
        client = app.openai()
        ids = [
            (await client.chat.completions.create(model="tiny", messages=RIVER, store=True, metadata={"place": str(number % 2)})).id
            for number in range(5)
        ]
        listed = client.chat.completions.list
        first = await listed(limit=2)
        assert [one.id for one in first.data] == ids[:2] and first.has_more is True
        assert [one.id async for one in await listed(limit=2)] == ids
        assert [one.id async for one in await listed(limit=2, order="desc")] == ids[::-1]
        last = await listed(after=ids[2], limit=2)
        assert [one.id for one in last.data] == ids[3:] and last.has_more is False
        assert [one.id async for one in await listed(metadata={"place": "1"}, limit=1)] == ids[1::2]
        assert (await listed(metadata={"place": "7"})).data == [] and (await listed(model="other")).data == []
        assert [one.id for one in (await listed(model="tiny", limit=100)).data] == ids
        with pytest.raises(openai.NotFoundError):
            await listed(after="chatcmpl-none")
        for fields in ({"limit": 0}, {"limit": 101}, {"order": "up"}):
            with pytest.raises(openai.BadRequestError):
                await listed(**fields)

    run(tmp_path, work)


def test_messages_are_listed_with_ids_and_pages(tmp_path: Path) -> None:
    async def work(app: App) -> None:
        client = app.openai()
        made = await client.chat.completions.create(model="tiny", messages=RIVER, store=True)
        messages = client.chat.completions.messages
        found = [one async for one in await messages.list(made.id, limit=1)]
        assert [(one.role, one.content) for one in found] == [
            ("system", "Be brief."), ("user", "What is a river?"), ("assistant", "Water."), ("user", "Is it?"),
        ]  # fmt: skip
        assert len({one.id for one in found}) == 4
        assert found[1].content_parts is not None and len(found[1].content_parts) == 2 and found[0].content_parts is None
        back = [one.id async for one in await messages.list(made.id, limit=3, order="desc")]
        assert back == [one.id for one in found][::-1]
        with pytest.raises(openai.NotFoundError):
            await messages.list(made.id, after="none")

    run(tmp_path, work)


def test_metadata_change_and_deletion(tmp_path: Path) -> None:
    async def work(app: App) -> None:
        client = app.openai()
        made = await client.chat.completions.create(model="tiny", messages=RIVER, store=True, metadata={"a": "b"})
        changed: Any = await client.chat.completions.update(made.id, metadata={"c": "d"})
        assert changed.metadata == {"c": "d"} and changed.choices[0].message.content == "It is."
        assert [one.id for one in (await client.chat.completions.list(metadata={"c": "d"})).data] == [made.id]
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.update(made.id, metadata={"k" * 65: "v"})
        deleted = await client.chat.completions.delete(made.id)
        assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "chat.completion.deleted")
        for again in (client.chat.completions.retrieve(made.id), client.chat.completions.delete(made.id)):
            with pytest.raises(openai.NotFoundError):
                await again

    run(tmp_path, work)


def test_no_one_finds_what_is_anothers(tmp_path: Path) -> None:
    async def work(app: App) -> None:
        anna, bert = app.openai(KEYS["anna"]), app.openai(KEYS["bert"])
        made = await anna.chat.completions.create(model="tiny", messages=RIVER, store=True)
        attempts = (
            bert.chat.completions.retrieve(made.id),
            bert.chat.completions.update(made.id, metadata={}),
            bert.chat.completions.delete(made.id),
            bert.chat.completions.messages.list(made.id),
            bert.chat.completions.list(after=made.id),
        )
        for attempt in attempts:
            with pytest.raises(openai.NotFoundError):
                await attempt
        assert (await bert.chat.completions.list()).data == []
        assert (await anna.chat.completions.retrieve(made.id)).id == made.id

    run(tmp_path, work, keyed=True)


def test_what_is_too_old_goes(tmp_path: Path) -> None:
    async def work(app: App) -> None:
        client = app.openai()
        await client.chat.completions.create(model="tiny", messages=RIVER, store=True)
        assert chat_completions.expire(app.database, time.time() + 29 * 86_400) == 0
        assert chat_completions.expire(app.database, time.time() + 31 * 86_400) == 1
        assert (await client.chat.completions.list()).data == []

    run(tmp_path, work)


def test_a_server_without_state_says_so(tmp_path: Path) -> None:
    async def work(app: App) -> None:
        app.service.database = None
        for stream in (False, True):
            with pytest.raises(openai.ConflictError, match="keeps no state"):
                await app.openai().chat.completions.create(model="tiny", messages=RIVER, store=True, stream=stream)

    run(tmp_path, work)
