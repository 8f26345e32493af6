"""A model that says what a function tells it to, behind the asynchronous port, and tools that note what was done to them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from herd.inference.port import ChatRequest, CompletionRequest, Event, Finished, FinishReason, Part, Timings, Usage
from herd.text.messages import Message, ToolCall
from herd.text.reply import CallDelta, CallDone, TextDelta
from herd.tools.tool import Taint, ToolContext, ToolLimits, ToolResult


@dataclass(frozen=True)
class Say:
    """One answer: text, calls, or an error that the port raises; `reason` "length" is an answer that was cut."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    error: Exception | None = None
    reason: FinishReason | None = None
    tokens: int | None = None
    hangs: bool = False


def call(name: str, id: str | None = None, **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments, id=id)


class Answer:
    """An `AsyncAnswer` that streams what was said, a word at a time."""

    def __init__(self, say: Say, num_prompt: int) -> None:
        self._say, self._num_prompt = say, num_prompt
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def __aiter__(self) -> AsyncIterator[list[Part]]:
        return self._read()

    async def _read(self) -> AsyncIterator[list[Part]]:
        say = self._say
        for event in self._events():
            await asyncio.sleep(0)
            if self.closed:
                return
            yield [Part(0, event)]
        if say.hangs:
            await asyncio.Event().wait()
        tokens = say.tokens if say.tokens is not None else len(say.text.split()) + 5 * len(say.calls)
        yield [
            Part(
                0,
                Finished(
                    reason=say.reason or ("tool_calls" if say.calls else "stop"),
                    text=say.text,
                    message=Message.assistant(say.text, say.calls, ends_turn=not say.calls),
                    token_ids=(),
                    usage=Usage(prompt_tokens=self._num_prompt, completion_tokens=tokens),
                    timings=Timings(prefill_s=0.0, decode_s=0.0, tokens_per_s=0.0),
                ),
            )
        ]

    def _events(self) -> list[Event]:
        events: list[Event] = [TextDelta(text=word) for word in self._say.text.split(" ") for word in (word + " ",)]
        if events:
            events = [*events[:-1], TextDelta(text=self._say.text.split(" ")[-1])]
        for made in self._say.calls:
            events += [CallDelta(text=json.dumps({"name": made.name})), CallDone(call=made)]
        return events if self._say.text or self._say.calls else []


@dataclass
class Scripted:
    """An `AsyncInference`. The script is a list of answers, or a function of the request; the last answer of a list goes on for ever."""

    script: Sequence[Say] | Callable[[ChatRequest], Say]
    requests: list[ChatRequest] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    async def chat(self, request: ChatRequest) -> Answer:
        self.requests.append(request)
        if callable(self.script):
            say = self.script(request)
        else:
            say = self.script[min(len(self.requests), len(self.script)) - 1]
        if say.error is not None:
            raise say.error
        answer = Answer(say, sum(len(message.text.split()) for message in request.messages))
        self.answers.append(answer)
        return answer

    async def complete(self, request: CompletionRequest) -> Answer:
        raise AssertionError("agents hold conversations")


@dataclass
class Noted:
    """A tool that notes its calls. `gives` is its text, or makes it of the arguments; `hold` keeps it from answering."""

    name: str = "look"
    gives: str | Callable[[Mapping[str, Any]], str] = "seen"
    taint: Taint = field(default_factory=Taint)
    limits: ToolLimits = field(default_factory=ToolLimits)
    description: str = "Looks."
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    hold: asyncio.Event | None = None
    data: Any = None
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    contexts: list[ToolContext] = field(default_factory=list)
    most_at_once: int = 0
    now: int = 0

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        self.calls.append(arguments)
        self.contexts.append(context)
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        try:
            await asyncio.sleep(0)
            if self.hold is not None:
                await self.hold.wait()
            return ToolResult(text=self.gives(arguments) if callable(self.gives) else self.gives, data=self.data)
        finally:
            self.now -= 1
