"""The work behind the routes: a request is prepared, admitted, submitted, measured and ended. Knows no HTTP but its refusals."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from herd.engine.stream import TokenRequest
from herd.inference.aio import AsyncModel, Stream, aside, size_of
from herd.inference.embed import EmbedReader
from herd.inference.port import Caller, ChatRequest, CompletionRequest, Finished, Part, PromptRead
from herd.inference.reading import Reader
from herd.stack.admission import Admission, Ticket
from herd.stack.config import ServerConfig
from herd.stack.engine_process import EngineProcess
from herd.stack.errors import RequestError
from herd.stack.guard import Context
from herd.stack.keys import Quota
from herd.stack.metrics import Metrics
from herd.stack.tracing import Tracing
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer

LONGEST_TOKEN = 128
"""Bytes of a token at most in Llama's vocabularies: a text of more bytes than that for each token of the context cannot fit."""

_Result = TypeVar("_Result")


@dataclass(slots=True, eq=False)
class Job:
    """A request that was taken: what was asked of the engine, and its stream."""

    request: TokenRequest
    stream: Stream
    call: Call

    def parts(self) -> AsyncGenerator[list[Part], None]:
        """What comes, as it comes. Close it when it is left early."""
        return self.call.watch(self.stream)

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
        self.stream.close()
        self.call.end(self.stream.num_tokens)


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


class Call:
    """What is measured of one request."""

    def __init__(self, service: Service, ticket: Ticket, quota: Quota | None, context: Context, request: TokenRequest) -> None:
        self._service, self._ticket, self._quota, self._context = service, ticket, quota, context
        self._request = request
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._ended = False
        self._num_spent = 0

    async def watch(self, stream: Stream) -> AsyncGenerator[list[Part], None]:
        """The stream's parts, each looked at on its way."""
        try:
            async for parts in stream:
                now = time.monotonic()
                for part in parts:
                    self._see(part, now)
                yield parts
        finally:
            self.end(stream.num_tokens)

    def _see(self, part: Part, now: float) -> None:
        metrics = self._service.metrics
        if isinstance(part.event, PromptRead):
            return
        if part.index not in self._first:
            self._first[part.index] = now
            if len(self._first) == 1:
                metrics.time_to_first_token.observe(now - self._context.started)
                self._service.admission.first_token(self._ticket)
        elif now > self._last[part.index]:
            metrics.inter_token.observe(now - self._last[part.index])
        self._last[part.index] = now
        if isinstance(part.event, Finished):
            self._finish(part.event, now - self._first[part.index], now - self._context.started)

    def _finish(self, finished: Finished, decode_s: float, whole_s: float) -> None:
        metrics, count = self._service.metrics, finished.usage.completion_tokens
        now = time.monotonic()
        self._service.tracing.generated(
            self._context.span,
            model=self._service.config.model_name,
            num_prompt=finished.usage.prompt_tokens,
            num_cached=finished.usage.cached_tokens,
            num_answer=count,
            reason=finished.reason,
            started=now - whole_s,
            first=now - decode_s,
            ended=now,
        )
        metrics.finished(finished.reason)
        metrics.generation_tokens.inc(count)
        metrics.answer_sizes.observe(count)
        metrics.e2e.observe(whole_s)
        if count > 1:
            metrics.per_token.observe(decode_s / (count - 1))
        self._num_spent += count
        if self._quota is not None:
            self._quota.spend(count)

    def end(self, num_written: int = 0) -> None:
        """Give back what was counted; once. `num_written` tokens are paid for, also those of answers that were cut."""
        if not self._ended:
            self._ended = True
            self._service.admission.end(self._ticket)
            if self._quota is not None:
                self._quota.spend(max(0, num_written - self._num_spent))
                self._quota.end()


class Service:
    """One model behind one engine process."""

    def __init__(
        self, config: ServerConfig, engine: EngineProcess, tokenizer: Tokenizer, prompt_format: PromptFormat | None = None
    ) -> None:
        self.config, self.engine, self.tokenizer = config, engine, tokenizer
        self.model = AsyncModel(engine, tokenizer, prompt_format=prompt_format)
        self.metrics = Metrics(engine, config.model_name)
        self.tracing = Tracing()
        self.admission = Admission(ttft_target_s=config.ttft_target_s, max_waiting=config.max_waiting, clock=time.monotonic)
        self.quotas = {key.name: Quota(key) for key in config.keys}
        self.created = int(time.time())

    def caller(self, context: Context, *, priority: int | None, salt: str | None) -> Caller:
        """Who asks. Each key has cached prefixes of its own; a request may ask for less priority than its key has, never for more."""
        key = context.key
        tenant = "" if key is None else key.name
        own = f"{tenant}\0{salt or ''}".encode() if tenant or salt else b""
        if key is not None:
            priority = key.priority if priority is None else max(priority, key.priority)
        return Caller(tenant=tenant, salt=own, priority=priority or 0)

    async def answer(self, request: ChatRequest | CompletionRequest, context: Context) -> Job:
        """Answer a conversation, or go on with a text. Raises HerdError before anything has begun."""
        self._check_size(size_of(request))
        prepared = await self.model.prepare(request)
        stream, call = await self._submit(prepared.tokens, self.model.reader(prepared), context)
        return Job(prepared.tokens, stream, call)

    async def embed(self, request: TokenRequest, context: Context) -> EmbedJob:
        """Make a text a vector. Raises HerdError before anything has begun."""
        reader = EmbedReader()
        stream, call = await self._submit(request, reader, context)
        return EmbedJob(request, reader, stream, call)

    async def aside(self, prepare: Callable[[], _Result], size: int) -> _Result:
        """Do work on so many characters of a prompt, on a thread where they are many. Raises RequestError where they cannot fit."""
        self._check_size(size)
        return await aside(prepare, size)

    def _check_size(self, size: int) -> None:
        if self.engine.state != "ready":
            raise RequestError("engine_down", "the engine is not ready", hint="ask again in a few seconds", retry_after_s=2.0)
        most = self.engine.context * LONGEST_TOKEN
        if size > most:
            message = f"the prompt has {size:,} characters, more than any {self.engine.context:,} tokens hold"
            raise RequestError("context_overflow", message, hint="shorten the prompt; nothing was cut", param="prompt")

    async def _submit(self, tokens: TokenRequest, reader: Reader, context: Context) -> tuple[Stream, Call]:
        """Admit a request and hand it to the engine."""
        quota = self._take_quota(context, len(tokens.prompt))
        try:
            ticket = self.admission.take(len(tokens.prompt), tokens.n)
        except RequestError:
            self.metrics.rejected("queue")
            if quota is not None:
                quota.give_back(len(tokens.prompt))
            raise
        call = Call(self, ticket, quota, context, tokens)
        try:
            stream = await self.model.submit(tokens, reader)
        except BaseException:
            call.end()
            raise
        self.metrics.prompt_tokens.inc(len(tokens.prompt))
        self.metrics.prompt_sizes.observe(len(tokens.prompt))
        self.metrics.params_n.observe(tokens.n)
        return stream, call

    def _take_quota(self, context: Context, num_prompt: int) -> Quota | None:
        if context.key is None:
            return None
        quota = self.quotas[context.key.name]
        wait_s = quota.wait_s(num_prompt)
        if wait_s > 0:
            self.metrics.rejected("quota")
            message = "this key has used what it may use for now"
            raise RequestError("rate_limited", message, hint=f"ask again in {wait_s:.0f} s", retry_after_s=wait_s)
        quota.take(num_prompt)
        return quota
