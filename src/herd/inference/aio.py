"""A model behind the asynchronous port: what a server asks, in its event loop, of an engine that runs elsewhere. No torch.

The engine is anything that takes a `TokenRequest` and calls back with events, in the loop's thread: a process beside this one, or
`ThreadedEngine`, which is an engine on a thread of this process. Long prompts are encoded on a thread, so that the loop stays free.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

from herd.engine.engine import Engine
from herd.engine.stream import Emit, TokenEvent, TokenRequest, TokenStream
from herd.inference.answer import AnswerReader
from herd.inference.port import ChatRequest, CompletionRequest, Part
from herd.inference.prepare import Prepared, Preparer, Sizes
from herd.inference.reading import Reader
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer

_Result = TypeVar("_Result")

LONG_PROMPT = 8192
"""Characters from which a prompt is encoded on a thread: below, handing it over takes longer."""


@runtime_checkable
class Handle(Protocol):
    """A request that was accepted."""

    def cancel(self, index: int | None = None) -> None:
        """End it, or one of its continuations."""
        ...


@runtime_checkable
class AsyncEngine(Sizes, Protocol):
    """An engine as seen from an event loop."""

    async def submit(self, request: TokenRequest, emit: Emit) -> Handle:
        """Queue a request; returns once it is accepted, raises if it is not. `emit` is called in the loop's thread."""
        ...


class AsyncModel:
    """An engine and its tokenizer as an `AsyncInference`."""

    def __init__(self, engine: AsyncEngine, tokenizer: Tokenizer, *, prompt_format: PromptFormat | None = None) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        self.preparer = Preparer(engine, tokenizer, prompt_format)

    async def chat(self, request: ChatRequest) -> Stream:
        """Answer a conversation; see `port.AsyncInference.chat`."""
        return await self._start(request)

    async def complete(self, request: CompletionRequest) -> Stream:
        """Go on with a text; see `port.AsyncInference.complete`."""
        return await self._start(request)

    async def _start(self, request: ChatRequest | CompletionRequest) -> Stream:
        prepared = await self.prepare(request)
        return await self.submit(prepared.tokens, self.reader(prepared))

    async def prepare(self, request: ChatRequest | CompletionRequest) -> Prepared:
        """The request in token ids. Raises HerdError for one that cannot be."""
        if isinstance(request, ChatRequest):
            return await aside(partial(self.preparer.chat, request), size_of(request))
        return await aside(partial(self.preparer.complete, request), size_of(request))

    def reader(self, prepared: Prepared) -> AnswerReader:
        """Reads the answers to what was prepared."""
        return AnswerReader(prepared.builders, self.tokenizer, prepared.tokens)

    async def submit(self, request: TokenRequest, reader: Reader) -> Stream:
        """Queue a request that is read by `reader`."""
        stream = Stream(reader)
        stream.handle = await self.engine.submit(request, stream.emit)
        return stream


def size_of(request: ChatRequest | CompletionRequest) -> int:
    """Characters, or token ids, of what is asked."""
    return sum(len(message.text) for message in request.messages) if isinstance(request, ChatRequest) else len(request.prompt)


async def aside(prepare: Callable[[], _Result], size: int) -> _Result:
    """Do work on so many characters, on a thread where they are many."""
    return await asyncio.to_thread(prepare) if size >= LONG_PROMPT else prepare()


class Stream:
    """The parts of one request's answers, as many at a time as there are. For one consumer."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._events: deque[TokenEvent] = deque()
        self._arrived = asyncio.Event()
        self._closed = False
        self.handle: Handle | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens read so far, of all answers."""
        return self._reader.num_tokens

    def emit(self, event: TokenEvent) -> None:
        """Called by the engine, in the loop's thread."""
        if not self._closed:
            self._events.append(event)
            self._arrived.set()

    def close(self) -> None:
        """End the request now. What was not read is dropped."""
        if not self._closed:
            self._closed = True
            self._events.clear()
            self._arrived.set()
            if self.handle is not None and not self._reader.done:
                self.handle.cancel()

    def __aiter__(self) -> AsyncIterator[list[Part]]:
        return self._read()

    async def _read(self) -> AsyncGenerator[list[Part], None]:
        try:
            while not self._reader.done:
                parts = await self.next()
                if self._closed:
                    return
                if parts:
                    yield parts
        finally:
            self.close()

    async def next(self) -> list[Part]:
        """Wait for events; returns what they show, which may be nothing. Raises the error of a failed request."""
        await self._arrived.wait()
        self._arrived.clear()
        parts: list[Part] = []
        while self._events and not self._reader.done:
            parts += self._reader.push(self._events.popleft())
        while self._reader.cut:
            index = self._reader.cut.pop()
            if self.handle is not None:
                self.handle.cancel(index)
        return parts


class ThreadedEngine:
    """An engine on a thread of this process as an `AsyncEngine`. Make it in the loop that asks."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._loop = asyncio.get_running_loop()

    @property
    def context(self) -> int:
        """Tokens that a prompt and its continuation may have together."""
        return self.engine.context

    @property
    def vocab_size(self) -> int:
        """Ids that the model has scores for."""
        return self.engine.vocab_size

    async def submit(self, request: TokenRequest, emit: Emit) -> Handle:
        """See `AsyncEngine.submit`."""

        def tell(event: TokenEvent) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(emit, event)

        if request.grammar is None:
            return self.engine.submit(request, tell)
        work = asyncio.ensure_future(asyncio.to_thread(self.engine.submit, request, tell))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_cancel_late)
            raise


def _cancel_late(work: asyncio.Future[TokenStream]) -> None:
    """Cancel a request whose caller has gone while its grammar was compiled."""
    if not work.cancelled() and work.exception() is None:
        work.result().cancel()
