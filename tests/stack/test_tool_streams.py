"""Tool calls as they stream: however an answer is cut, its deltas put together are the answer that comes whole. Over the application, with
an engine that says what it is told.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any, Literal

import httpx
import pytest
from live_server import FULL, events, tokenizer  # pyright: ignore[reportMissingImports]

from herd.engine.stream import Admitted, Emit, TokenRequest, Tokens
from herd.stack.app import create_app
from herd.stack.config import ServerConfig
from herd.stack.engine_process import EngineProcess, EngineSpec, RequestHandle
from herd.stack.service import Service

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}} for name in ("get_weather", "now")
]
FORMATS = ("json", "function", "python_list", "builtin")
WORDS = [
    "the herd",
    "Genève",
    "数学",
    'say "hi"',
    "back\\slash",
    "{",
    "}",
    "[",
    "<function=",
    "</function>",
    "\n",
    "😀",
    "a" * 50,
    "'",
    ", ",
]


class ScriptedEngine(EngineProcess):
    """Says `ids`, cut into steps at random. There is no process."""

    def __init__(self) -> None:
        super().__init__(EngineSpec(model="none"))
        self.state = "ready"
        sizes = {"context": 100_000, "vocab_size": tokenizer().vocab_size, "max_sequences": 1}
        self.info = {**sizes, "weights_digest": "0" * 64, "dtype": "float32"}
        self.ids: Sequence[int] = ()
        self.finish: Literal["stop", "length"] = "stop"
        self.rng = random.Random(0)

    async def submit(self, request: TokenRequest, emit: Emit) -> RequestHandle:
        """Answer in the loop's next rounds."""
        steps: list[Tokens] = []
        left = list(self.ids)
        while left:
            size = self.rng.choice((1, 1, 1, 2, 5, 20))
            taken, left = left[:size], left[size:]
            steps.append(Tokens(index=0, ids=tuple(taken), finish=None if left else self.finish))

        async def say() -> None:
            emit(Admitted(num_cached=0))
            for step in steps:
                if self.rng.random() < 0.5:
                    await asyncio.sleep(0)
                emit(step)

        self._task = asyncio.ensure_future(say())
        return RequestHandle(lambda index: None)


def value(rng: random.Random, depth: int = 2) -> Any:
    kind = rng.randrange(7 if depth else 5)
    if kind == 5:
        return [value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    if kind == 6:
        return {rng.choice(WORDS): value(rng, depth - 1) for _ in range(rng.randint(0, 3))}
    return (rng.choice(WORDS) + rng.choice(WORDS), rng.randint(-99, 99), rng.random(), rng.choice((True, False)), None)[kind]


Call = tuple[str, dict[str, Any]]


def calls_of(rng: random.Random, style: str) -> list[Call]:
    """What is called: tools on offer, as a grammar would hold an answer to them."""
    if style == "builtin":
        return [("brave_search", {"query": rng.choice(WORDS) + rng.choice(WORDS)})]
    names = [rng.choice(("get_weather", "now")) for _ in range(rng.randint(1, 3))]
    return [(name, {f"arg{number}": value(rng) for number in range(rng.randint(0, 3))}) for name in names]


def written(rng: random.Random, style: str, calls: list[Call]) -> str:
    """Calls as a model writes them."""
    loose = {"ensure_ascii": rng.random() < 0.5, "separators": rng.choice(((", ", ": "), (",", ":")))}
    if style == "json":
        return "; ".join(json.dumps({"name": name, "parameters": arguments}, **loose) for name, arguments in calls)
    if style == "function":
        return "".join(f"<function={name}>{json.dumps(arguments, **loose)}</function>" for name, arguments in calls)
    if style == "python_list":
        inner = (f"{name}({', '.join(f'{key}={one!r}' for key, one in arguments.items())})" for name, arguments in calls)
        return f"[{', '.join(inner)}]"
    return f"<|python_tag|>brave_search.call(query={json.dumps(calls[0][1]['query'], ensure_ascii=False)})"


def put_together(chunks: list[dict[str, Any]]) -> tuple[str, list[tuple[str, str]], str]:
    """Text, calls and reason of the deltas."""
    text, calls, reason = "", {}, ""
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            text += delta.get("content") or ""
            for one in delta.get("tool_calls", ()):
                kept = calls.setdefault(one["index"], {"name": "", "arguments": ""})
                kept["name"] += one["function"].get("name") or ""
                kept["arguments"] += one["function"].get("arguments") or ""
            reason = choice["finish_reason"] or reason
    assert sorted(calls) == list(range(len(calls)))
    return text, [(calls[index]["name"], calls[index]["arguments"]) for index in sorted(calls)], reason


@pytest.mark.parametrize("style", FORMATS)
def test_deltas_put_together_are_the_whole_answer(style: str) -> None:
    asyncio.run(_compare(style, 1000 if FULL else 60))


async def _compare(style: str, count: int) -> None:
    engine = ScriptedEngine()
    service = Service(ServerConfig(model_name="tiny", access_log=False), engine, tokenizer())
    transport = httpx.ASGITransport(create_app(service))  # pyright: ignore[reportArgumentType]
    num_calls = 0
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for seed in range(count):
            rng = random.Random(f"{style}/{seed}")
            asked = calls_of(rng, style) if rng.random() < 0.8 else []
            said = written(rng, style, asked) if asked else "Well, " + " ".join(rng.choice(WORDS[:4]) for _ in range(5))
            end = tokenizer().special_tokens["<|eom_id|>"] if "<|python_tag|>" in said else tokenizer().eot_id
            ids = [*tokenizer().encode(said, allowed_special="all"), end]
            cut = rng.random() < 0.2
            engine.ids, engine.finish = (ids[: rng.randint(1, len(ids) - 1)], "length") if cut else (ids, "stop")
            body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS, "seed": seed}
            if style == "builtin":
                body["builtin_tools"] = ["brave_search"]
            whole = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]
            streamed = await client.post("/v1/chat/completions", json=body | {"stream": True})
            assert streamed.text.endswith("data: [DONE]\n\n")
            told = put_together(events(streamed.text))
            message = whole["message"]
            wanted = [(one["function"]["name"], one["function"]["arguments"]) for one in message.get("tool_calls", ())]
            assert told == (message["content"] or "", wanted, whole["finish_reason"]), (seed, said)
            if not cut:
                assert [(name, json.loads(arguments)) for name, arguments in wanted] == asked, (seed, said)
                assert told[2] == ("tool_calls" if asked else "stop") and (asked or told[0] == said)
            num_calls += len(wanted)
    assert num_calls > count // 2, "hardly any of these are calls"
    assert service.admission.num_requests == 0
