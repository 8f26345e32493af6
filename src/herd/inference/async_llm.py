"""`herd.AsyncLLM`: as `herd.LLM`, for event loops. The engine runs on a thread of its own; any number of requests run at once.

async with herd.AsyncLLM() as llm:
    answer = await llm.chat([herd.Message.user("Hello!")])

Who stops waiting stops the work: cancelling the task, or leaving the loop over a stream, cancels the request and frees its cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from herd.engine.grammar.spec import Grammar
from herd.engine.memory import EngineConfig
from herd.engine.pooling import Pooling
from herd.engine.stream import TokenRequest
from herd.inference.aio import AsyncModel, Stream, ThreadedEngine, aside
from herd.inference.embed import EmbedReader, as_array, embed_request
from herd.inference.loaded import DEFAULT_MODEL, load
from herd.inference.output import Output, outputs_of
from herd.inference.params import SamplingParams
from herd.inference.port import Event, Finished, Part
from herd.inference.reading import Reading
from herd.inference.requests import ChatOptions, Messages, Prompts, chat_request, check_prompts, completion_requests
from herd.inference.score import Score, ScoreReader, pairs, score_request
from herd.model.config import ModelConfig
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from herd.model.transformer import Transformer

_Result = TypeVar("_Result")


class AsyncLLM:
    """A model that answers in an event loop. The arguments are those of `LLM`; loading blocks, so do it before the loop is busy.

    One event loop at a time: the one that asks.
    """

    def __init__(
        self,
        model: Transformer | str | Path = DEFAULT_MODEL,
        *,
        tokenizer: Tokenizer | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        prompt_format: PromptFormat | None = None,
        engine: EngineConfig | None = None,
        draft: Transformer | str | Path | None = None,
        tp: int = 1,
        pp: int = 1,
    ) -> None:
        loaded = load(model, tokenizer=tokenizer, dtype=dtype, device=device, engine=engine, draft=draft, threaded=True, tp=tp, pp=pp)
        self.name, self.tokenizer, self.engine, self._loaded = loaded.name, loaded.tokenizer, loaded.engine, loaded
        self._prompt_format = prompt_format
        self._bound: tuple[asyncio.AbstractEventLoop, AsyncModel] | None = None

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop the engine and its thread. What is in flight fails."""
        await asyncio.to_thread(self.engine.close)

    @property
    def model(self) -> Transformer:
        """The weights. Raises UsageError where they are spread over several processes."""
        return self._loaded.model

    @property
    def config(self) -> ModelConfig:
        """The model's numbers."""
        return self._loaded.config

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.engine.context

    @property
    def inference(self) -> AsyncModel:
        """The asynchronous port, of the loop that runs."""
        loop = asyncio.get_running_loop()
        if self._bound is None or self._bound[0] is not loop:
            self._bound = loop, AsyncModel(ThreadedEngine(self.engine), self.tokenizer, prompt_format=self._prompt_format)
        return self._bound[1]

    @overload
    async def generate(  # pyright: ignore[reportOverlappingOverload]
        self, prompts: str, params: SamplingParams | None = None, *, grammar: Grammar | None = None, n: Literal[1] = 1
    ) -> Output: ...

    @overload
    async def generate(  # pyright: ignore[reportOverlappingOverload]
        self, prompts: str, params: SamplingParams | None = None, *, grammar: Grammar | None = None, n: int
    ) -> list[Output]: ...

    @overload
    async def generate(
        self, prompts: Prompts, params: SamplingParams | None = None, *, grammar: Grammar | None = None, n: Literal[1] = 1
    ) -> list[Output]: ...

    @overload
    async def generate(
        self, prompts: Prompts, params: SamplingParams | None = None, *, grammar: Grammar | None = None, n: int
    ) -> list[list[Output]]: ...

    async def generate(
        self, prompts: str | Prompts, params: SamplingParams | None = None, *, grammar: Grammar | None = None, n: int = 1
    ) -> Output | list[Output] | list[list[Output]]:
        """Go on with plain text; see `LLM.generate`."""
        requests = completion_requests(prompts, params, grammar=grammar, n=n)
        found = await _outputs([partial(self.inference.complete, request) for request in requests])
        asked = found if n > 1 else [outputs[0] for outputs in found]
        return asked[0] if isinstance(prompts, str) else asked

    @overload
    async def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, n: Literal[1] = 1, **options: Unpack[ChatOptions]
    ) -> Output: ...

    @overload
    async def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, n: int, **options: Unpack[ChatOptions]
    ) -> list[Output]: ...

    async def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, n: int = 1, **options: Unpack[ChatOptions]
    ) -> Output | list[Output]:
        """Answer a conversation; see `LLM.chat`."""
        request = chat_request(messages, params, n=n, **options)
        (outputs,) = await _outputs([partial(self.inference.chat, request)])
        return outputs if n > 1 else outputs[0]

    def stream(self, messages: Messages, params: SamplingParams | None = None, **options: Unpack[ChatOptions]) -> Events:
        """As `chat`, event by event: `async for event in llm.stream(...)`; the last one is `Finished`."""
        return Events(partial(self.inference.chat, chat_request(messages, params, n=1, **options)))

    async def embed(self, texts: str | Prompts, pooling: Pooling = "mean", *, normalize: bool = True) -> NDArray[np.float32]:
        """Texts as vectors; see `LLM.embed`."""
        many = check_prompts(texts)
        requests = await aside(lambda: [embed_request(self.tokenizer, text, pooling) for text in many], sum(map(len, many)))
        vectors = await self._read([(request, EmbedReader()) for request in requests])
        return as_array(vectors, normalize=normalize, width=self.config.hidden_size)

    async def score(self, prompts: str | Prompts, continuations: Prompts) -> list[Score]:
        """How likely continuations are; see `LLM.score`."""
        both = pairs(prompts, continuations)
        size = sum(len(prompt) + len(continuation) for prompt, continuation in both)
        requests = await aside(lambda: [score_request(self.tokenizer, *pair) for pair in both], size)
        return await self._read([(request, ScoreReader()) for request in requests])

    async def _read(self, requests: Sequence[tuple[TokenRequest, Reading[_Result]]]) -> list[_Result]:
        await _parts([partial(self.inference.submit, request, reader) for request, reader in requests])
        return [reader.result() for _, reader in requests]


_Start = Callable[[], Awaitable[Stream]]


async def _outputs(starts: Sequence[_Start]) -> list[list[Output]]:
    return [outputs_of(parts) for parts in await _parts(starts)]


async def _parts(starts: Sequence[_Start]) -> list[list[Part]]:
    """Run all at once, to their ends; the last parts of each. If one fails, or the caller is cancelled, so are all."""
    streams: list[Stream] = []
    try:
        for start in starts:
            stream = await start()
            streams.append(stream)
        return [[part async for parts in stream for part in parts if isinstance(part.event, Finished)] for stream in streams]
    finally:
        for stream in streams:
            stream.close()


class Events(AsyncIterator[Event]):
    """The events of one answer, for one consumer. `aclose`, or letting go of it, cancels what still runs."""

    def __init__(self, start: _Start) -> None:
        self._start = start
        self._stream: Stream | None = None
        self._parts: AsyncIterator[list[Part]] | None = None
        self._ready: list[Event] = []

    async def __anext__(self) -> Event:
        if self._parts is None:
            self._stream = await self._start()
            self._parts = aiter(self._stream)
        while not self._ready:
            self._ready = [part.event for part in reversed(await anext(self._parts))]
        return self._ready.pop()

    async def aclose(self) -> None:
        """End the request now."""
        self._close()

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def __del__(self) -> None:
        self._close()
