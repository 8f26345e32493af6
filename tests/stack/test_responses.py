"""Responses over an engine that says what it is told, asked by OpenAI's client: what is answered, told event by event, and kept."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from scripted_app import Script, kinds, scripted  # pyright: ignore[reportMissingImports]

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '{"name": "get_weather", "parameters": {"city": "Lima"}}'
MESSAGE = ["response.output_item.added", "response.content_part.added", "response.output_text.delta", "response.output_text.done",
           "response.content_part.done", "response.output_item.done"]  # fmt: skip
FUNCTION = ["response.output_item.added", "response.function_call_arguments.delta", "response.function_call_arguments.done",
            "response.output_item.done"]  # fmt: skip
BEGIN = ["response.created", "response.in_progress"]


def run(test: Any) -> None:
    asyncio.run(test)


def test_a_text_is_answered_whole_and_as_a_stream(tmp_path: Path) -> None:
    async def check() -> None:
        async with scripted(Script("The herd is on the hill."), tmp_path) as app:
            client = app.openai()
            whole = await client.responses.create(model="tiny", input="Where?", instructions="Be brief.")
            assert whole.output_text == "The herd is on the hill." and whole.status == "completed"
            assert "Be brief." in app.engine.prompts[0] and "Where?" in app.engine.prompts[0]
            assert whole.usage is not None and whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
            events = [event async for event in await client.responses.create(model="tiny", input="Where?", stream=True)]
            assert kinds(events) == [*BEGIN, *MESSAGE, "response.completed"]
            assert [event.sequence_number for event in events] == list(range(len(events)))
            assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
            last = events[-1]
            assert last.type == "response.completed" and last.response.output_text == whole.output_text

    run(check())


def test_what_openresponses_wants_is_never_null(tmp_path: Path) -> None:
    async def check() -> None:
        async with scripted(Script("Yes."), tmp_path) as app:
            told = (await app.http.post("/v1/responses", json={"input": "?"})).json()
            wanted = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "tool_choice", "truncation", "background",
                      "service_tier", "tools", "top_logprobs", "metadata", "parallel_tool_calls", "text", "usage", "store")  # fmt: skip
            assert all(told[name] is not None for name in wanted), told
            (item,) = told["output"]
            assert item["id"].startswith("msg_") and item["status"] == "completed"
            assert item["content"] == [{"type": "output_text", "text": "Yes.", "annotations": [], "logprobs": []}]

    run(check())


def test_a_function_is_called_and_its_output_is_read(tmp_path: Path) -> None:
    async def check() -> None:
        async with scripted(Script(CALL, "It is 24 degrees in Lima."), tmp_path) as app:
            client = app.openai()
            first = await client.responses.create(model="tiny", input="Weather in Lima?", tools=[WEATHER], tool_choice="required")
            (call,) = first.output
            assert call.type == "function_call" and call.name == "get_weather" and json.loads(call.arguments) == {"city": "Lima"}
            output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "24 degrees"}
            second = await client.responses.create(model="tiny", input=[output], previous_response_id=first.id, tools=[WEATHER])
            assert second.output_text == "It is 24 degrees in Lima."
            assert "Weather in Lima?" in app.engine.prompts[1] and "24 degrees" in app.engine.prompts[1]
            listed = await client.responses.input_items.list(second.id)
            assert [item.type for item in listed.data] == ["function_call_output"]

    run(check())


def test_the_events_of_calls(tmp_path: Path) -> None:
    async def check() -> None:
        async with scripted(Script(f"{CALL}; {CALL}"), tmp_path) as app:
            stream = await app.openai().responses.create(model="tiny", input="?", tools=[WEATHER], stream=True)
            events = [event async for event in stream]
            assert kinds(events) == [*BEGIN, *FUNCTION, *FUNCTION, "response.completed"]
            done = [event for event in events if event.type == "response.function_call_arguments.done"]
            assert [json.loads(event.arguments) for event in done] == [{"city": "Lima"}] * 2
            assert {event.output_index for event in done} == {0, 1}

    run(check())


def test_an_answer_that_is_cut_is_incomplete(tmp_path: Path) -> None:
    async def check() -> None:
        async with scripted(Script("One two three four five six seven."), tmp_path) as app:
            stream = await app.openai().responses.create(model="tiny", input="?", max_output_tokens=6, stream=True)
            events = [event async for event in stream]
            last: Any = events[-1]
            assert last.type == "response.incomplete" and last.response.incomplete_details.reason == "max_output_tokens"
            assert last.response.output[0].status == "incomplete" and last.response.output_text

    run(check())


def test_text_by_a_schema_beside_functions(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}

    async def check() -> None:
        async with scripted(Script("Well", '{"a": 1}'), tmp_path) as app:
            text: Any = {"format": {"type": "json_schema", "name": "one", "schema": schema}}
            found = await app.openai().responses.create(model="tiny", input="?", tools=[WEATHER], text=text)
            assert found.output_text == '{"a": 1}'
            assert len(app.engine.asked) == 2 and app.engine.asked[1].grammar is not None

    run(check())


def test_pictures_are_refused_by_their_place(tmp_path: Path) -> None:
    async def check() -> None:
        async with scripted(Script("?"), tmp_path) as app:
            content: Any = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": "http://x/y.png"}]
            with pytest.raises(openai.BadRequestError) as caught:
                await app.openai().responses.create(model="tiny", input=[{"role": "user", "content": content}])
            assert caught.value.code == "unsupported" and caught.value.param == "input[0].content[1]"
            assert not app.engine.asked

    run(check())


def test_a_conversation_keeps_what_was_said(tmp_path: Path) -> None:
    async def check() -> None:
        async with scripted(Script("Hello Ann.", "Your name is Ann."), tmp_path) as app:
            client = app.openai()
            begun: Any = [{"type": "message", "role": "user", "content": "I am Ann."}]
            conversation = await client.conversations.create(items=begun, metadata={"topic": "names"})
            assert conversation.metadata == {"topic": "names"}
            await client.responses.create(model="tiny", input="Greet me.", conversation=conversation.id)
            second = await client.responses.create(model="tiny", input="Who am I?", conversation={"id": conversation.id}, store=False)
            assert second.conversation is not None and second.conversation.id == conversation.id
            assert all(text in app.engine.prompts[1] for text in ("I am Ann.", "Greet me.", "Hello Ann.", "Who am I?"))
            items = [item async for item in client.conversations.items.list(conversation.id, order="asc", limit=2)]
            texts = [item.content[0].text for item in items if item.type == "message"]  # type: ignore[union-attr]
            assert texts == ["I am Ann.", "Greet me.", "Hello Ann.", "Who am I?", "Your name is Ann."]
            page = await client.conversations.items.list(conversation.id, order="asc", limit=5)
            assert page.has_more is False and page.last_id == items[-1].id
            page = await client.conversations.items.list(conversation.id, order="asc", limit=4)
            assert page.has_more is True
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(second.id)

    run(check())


def test_a_response_in_the_background_is_followed_cancelled_and_deleted(tmp_path: Path) -> None:
    async def check() -> None:
        engine = Script("A long answer that takes its time.")
        engine.hold = asyncio.Event()
        async with scripted(engine, tmp_path) as app:
            client = app.openai()
            first = await client.responses.create(model="tiny", input="?", background=True)
            assert first.status == "queued"
            engine.hold.set()
            stream = await client.responses.retrieve(first.id, stream=True)
            events = [event async for event in stream]
            assert kinds(events) == ["response.created", "response.queued", "response.in_progress", *MESSAGE, "response.completed"]
            again = [event async for event in await client.responses.retrieve(first.id, stream=True, starting_after=4)]
            assert [event.sequence_number for event in again] == [event.sequence_number for event in events[5:]] != []
            done = await client.responses.retrieve(first.id)
            assert done.status == "completed" and done.output_text == "A long answer that takes its time."
            engine.hold.clear()
            second = await client.responses.create(model="tiny", input="?", background=True)
            while len(engine.asked) < 2:
                await asyncio.sleep(0)
            assert (await client.responses.cancel(second.id)).status == "cancelled"
            assert (await client.responses.cancel(second.id)).status == "cancelled"
            assert [event.type async for event in await client.responses.retrieve(second.id, stream=True)][-1] == "response.incomplete"
            await client.responses.delete(second.id)
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(second.id)
            assert app.service.admission.num_requests == 0

    run(check())
