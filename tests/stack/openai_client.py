"""OpenAI's client of the shared server, and streams put together again. Import what a test module needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from client_server import LiveServer  # pyright: ignore[reportMissingImports]
from openai import OpenAI

MODEL = "cria"
RIVER: list[Any] = [{"role": "user", "content": "What is a river?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="session")
def client(live_server: LiveServer) -> Iterator[OpenAI]:
    """For one thread."""
    with OpenAI(base_url=live_server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: OpenAI, **fields: Any) -> Any:
    """A chat answer, or its stream."""
    return client.chat.completions.create(**{"model": MODEL, "messages": RIVER, "seed": 3, "max_completion_tokens": 24, **fields})


class Joined:
    """The chunks of a stream, put together by answer."""

    def __init__(self, chunks: Iterable[Any]) -> None:
        self.text: dict[int, str] = {}
        self.calls: dict[int, list[dict[str, str]]] = {}
        self.logprobs: dict[int, list[Any]] = {}
        self.reasons: dict[int, str] = {}
        self.usage: Any = None
        self.deltas: list[Any] = []
        for chunk in chunks:
            self.usage = chunk.usage or self.usage
            for choice in chunk.choices:
                self._add(choice)

    def _add(self, choice: Any) -> None:
        index, delta = choice.index, choice.delta
        self.deltas.append(delta)
        self.text[index] = self.text.get(index, "") + (delta.content or "")
        if choice.logprobs is not None:
            self.logprobs.setdefault(index, []).extend(choice.logprobs.content)
        if choice.finish_reason is not None:
            self.reasons[index] = choice.finish_reason
        for piece in delta.tool_calls or ():
            calls = self.calls.setdefault(index, [])
            if piece.id is not None:
                assert piece.index == len(calls) and piece.type == "function"
                calls.append({"name": piece.function.name, "arguments": ""})
            calls[piece.index]["arguments"] += piece.function.arguments


def calls_of(message: Any) -> list[dict[str, str]]:
    """Names and arguments of a message's calls."""
    return [{"name": call.function.name, "arguments": call.function.arguments} for call in message.tool_calls or ()]
