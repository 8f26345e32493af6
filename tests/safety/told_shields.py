"""A shield that says what it is told, and an answer that streams what it is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from herd.inference.port import Event, Finished, Part, Timings, Usage
from herd.safety.verdict import ALL_POINTS, Content, TouchPoint, Verdict
from herd.text.messages import Message, ToolCall
from herd.text.reply import TextDelta


@dataclass
class Told:
    """Objects to texts that hold `word`; raises `error` or never answers when it is told to."""

    name: str = "told"
    word: str = "bad"
    points: frozenset[TouchPoint] = ALL_POINTS
    error: BaseException | None = None
    hangs: bool = False
    seen: list[Content] = field(default_factory=list)

    async def check(self, content: Content) -> Verdict:
        self.seen.append(content)
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        unsafe = self.word in content.text
        return Verdict(shield=self.name, unsafe=unsafe, score=0.9 if unsafe else 0.1, categories=("S1",) if unsafe else ())


def finished(text: str, calls: Sequence[ToolCall] = ()) -> Finished:
    """The last event of an answer."""
    return Finished(
        reason="tool_calls" if calls else "stop",
        text=text,
        message=Message.assistant(text, calls),
        token_ids=tuple(range(len(text))),
        usage=Usage(prompt_tokens=3, completion_tokens=len(text)),
        timings=Timings(prefill_s=0.1, decode_s=0.2, tokens_per_s=5.0),
    )


class Given:
    """An `AsyncAnswer` of given parts; `closed` tells whether it was ended."""

    def __init__(self, batches: Sequence[Sequence[Part]]) -> None:
        self._batches = batches
        self.closed = False
        self.read = 0

    def close(self) -> None:
        self.closed = True

    def __aiter__(self) -> AsyncIterator[list[Part]]:
        return self._read()

    async def _read(self) -> AsyncIterator[list[Part]]:
        for batch in self._batches:
            if self.closed:
                return
            self.read += 1
            yield list(batch)


def texts(*pieces: str, index: int = 0) -> list[list[Part]]:
    """A streamed text and its end."""
    events: list[Event] = [*(TextDelta(text=piece) for piece in pieces), finished("".join(pieces))]
    return [[Part(index, event)] for event in events]
