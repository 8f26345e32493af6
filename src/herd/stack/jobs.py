"""Requests that were taken: what routes read the answers from."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from herd.engine.stream import TokenRequest
from herd.inference.aio import Stream
from herd.inference.embed import EmbedReader
from herd.inference.port import AsyncAnswer, Part
from herd.stack.call import Call
from herd.stack.shielding import Stopped


@dataclass(slots=True, eq=False)
class Job:
    """A request that was taken.

    Attributes:
        request: what was asked of the engine; of a remote model, or where a shield refused, a stand-in without a prompt.
        answer: the parts as clients may see them: behind the shields.
        model: the name that answers tell.
        local: whether the engine answers, so that token ids and receipts can be had.
        sure: whether what begins as a call is one.
        stopped: why answers were stopped, by index; known once they have ended.
    """

    request: TokenRequest
    answer: AsyncAnswer
    model: str
    local: bool = True
    sure: bool = False
    stopped: dict[int, Stopped] = field(default_factory=dict[int, Stopped])

    def __aiter__(self) -> AsyncIterator[list[Part]]:
        return self.parts()

    async def parts(self) -> AsyncGenerator[list[Part], None]:
        """What comes, as it comes. Close it when it is left early."""
        async with aclosing(cast("AsyncGenerator[list[Part], None]", aiter(self.answer))) as ticks:
            async for parts in ticks:
                yield parts

    async def events(self) -> AsyncGenerator[Part, None]:
        """The parts one by one; the request ends with the generator."""
        try:
            async with aclosing(self.parts()) as ticks:
                async for parts in ticks:
                    for part in parts:
                        yield part
        finally:
            self.close()

    def close(self) -> None:
        """End it now, if it still runs."""
        self.answer.close()


@dataclass(slots=True, eq=False)
class EmbedJob:
    """A text that is made a vector."""

    request: TokenRequest
    reader: EmbedReader
    stream: Stream
    call: Call

    async def vector(self) -> tuple[float, ...]:
        """The pooled hidden states."""
        async with aclosing(self.call.watch(self.stream)) as ticks:
            async for _ in ticks:
                pass
        return self.reader.result()

    def close(self) -> None:
        """End it now, if it still runs."""
        self.stream.close()
        self.call.end()
