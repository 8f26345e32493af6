"""The work behind the routes: a request is judged, prepared, admitted, submitted, measured and ended. Knows no HTTP but its refusals.

`Service.answer` is the one way to a model, the engine's or a remote one: whoever goes it is guarded, limited and counted alike.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from herd.base.errors import HerdError
from herd.engine.params import TokenParams
from herd.engine.stream import TokenRequest
from herd.inference.aio import AsyncModel, Stream, aside, size_of
from herd.inference.embed import EmbedReader
from herd.inference.port import AsyncAnswer, Caller, ChatRequest, CompletionRequest, Finished, Part, PromptRead, Usage
from herd.inference.prepare import Prepared
from herd.inference.reading import Reader
from herd.inference.remote import AsyncRemoteModel, RemoteStream, Vectors
from herd.stack.admission import Admission, Ticket
from herd.stack.config import ServerConfig
from herd.stack.engine_process import EngineProcess
from herd.stack.errors import RequestError
from herd.stack.guard import Context
from herd.stack.keys import Quota
from herd.stack.metrics import Metrics
from herd.stack.registrations import Registrations
from herd.stack.served import ServedModel, ServedModels
from herd.stack.shielding import RefusedAnswer, Shielding, Stopped, shields_of
from herd.stack.toolkit import ServerTools, networks_of
from herd.stack.tracing import Tracing
from herd.store.database import Database
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer

LONGEST_TOKEN = 128
"""Bytes of a token at most in Llama's vocabularies: a text of more bytes than that for each token of the context cannot fit."""

CHARS_PER_TOKEN = 4
"""What a remote's prompt is taken to have, for a key's limits."""
_Result = TypeVar("_Result")


class _Told(dict[int, Stopped]):
    """What was stopped; each one is told of when it comes."""

    def __init__(self, tell: Callable[[Stopped], None]) -> None:
        super().__init__()
        self._tell = tell

    def __setitem__(self, index: int, stopped: Stopped) -> None:
        super().__setitem__(index, stopped)
        self._tell(stopped)


def _stand_in(request: ChatRequest | CompletionRequest) -> TokenRequest:
    """For what the engine is not asked."""
    return TokenRequest(prompt=(), params=TokenParams(max_tokens=1), n=request.n)


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


class _Watched:
    """A stream that is measured, and whose request ends with it."""

    def __init__(self, call: Call, stream: Stream | RemoteStream) -> None:
        self._call, self._stream = call, stream

    def __aiter__(self) -> AsyncIterator[list[Part]]:
        return self._call.watch(self._stream)

    def close(self) -> None:
        """End it now, if it still runs."""
        self._stream.close()
        self._call.end(_written(self._stream))


def _written(stream: Stream | RemoteStream) -> int:
    """Tokens that the engine wrote so far; a remote tells them at the end alone."""
    return stream.num_tokens if isinstance(stream, Stream) else 0


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

    def __init__(self, service: Service, ticket: Ticket | None, quota: Quota | None, context: Context, model: ServedModel) -> None:
        self._service, self._ticket, self._quota, self._context = service, ticket, quota, context
        self._model = model
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._ended = False
        self._num_spent = 0

    async def watch(self, stream: Stream | RemoteStream) -> AsyncGenerator[list[Part], None]:
        """The stream's parts, each looked at on its way."""
        try:
            async for parts in stream:
                now = time.monotonic()
                for part in parts:
                    self._see(part, now)
                yield parts
        except HerdError as error:
            if self._model.remote is not None:
                self._service.metrics.asked(self._model.provider, error.code)
            raise
        finally:
            self.end(_written(stream))

    def _see(self, part: Part, now: float) -> None:
        metrics = self._service.metrics
        if isinstance(part.event, PromptRead):
            return
        if part.index not in self._first:
            self._first[part.index] = now
            if len(self._first) == 1:
                metrics.time_to_first_token.observe(now - self._context.started)
                if self._ticket is not None:
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
            model=self._model.id,
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
            if self._ticket is not None:
                self._service.admission.end(self._ticket)
            else:
                self._service.num_remote -= 1
            if self._quota is not None:
                self._quota.spend(max(0, num_written - self._num_spent))
                self._quota.end()


class Service:
    """The engine's model, remote ones beside it, and the shields around them all. What clients register is kept in the database, if any."""

    def __init__(
        self,
        config: ServerConfig,
        engine: EngineProcess,
        tokenizer: Tokenizer,
        prompt_format: PromptFormat | None = None,
        *,
        database: Database | None = None,
    ) -> None:
        self.config, self.engine, self.tokenizer = config, engine, tokenizer
        self.model = AsyncModel(engine, tokenizer, prompt_format=prompt_format)
        self.models = ServedModels(config.model_name, config.providers)
        self.metrics = Metrics(engine, config.model_name)
        self.tracing = Tracing()
        self.admission = Admission(ttft_target_s=config.ttft_target_s, max_waiting=config.max_waiting, clock=time.monotonic)
        self.quotas = {key.name: Quota(key) for key in config.keys}
        self.shielding = Shielding(shields_of(config.shields), self.metrics) if config.shields else None
        self.database = database
        self.registrations = Registrations(database)
        self.tools = ServerTools(self.registrations, networks=networks_of(config.mcp_networks))
        self.num_remote = 0
        """Requests that remotes are answering."""
        self.created = int(time.time())

    async def close(self) -> None:
        """Let go of tools and of connections to remotes."""
        await self.tools.close()
        await self.models.close()

    def find(self, name: str, owner: str) -> ServedModel:
        """A model by a name of the server's, or by one that this key registered. Raises RequestError for one that is not served."""
        if self.models.serves(name):
            return self.models.find(name)
        own = self.registrations.get(owner, "models", name)
        if own is not None and not self.models.serves(own["target"]):
            message = f"the model {name!r:.200} stands for {own['target']!r:.200}, which is not served"
            raise RequestError("not_found", message, hint="unregister it, or put the model back into herd.toml", param="model")
        return self.models.find(name if own is None else own["target"])

    def find_for(self, name: str, context: Context) -> ServedModel:
        """The same, for who asks."""
        return self.find(name, "" if context.key is None else context.key.name)

    def find_local(self, name: str, context: Context, what: str) -> ServedModel:
        """The engine's model by any name. Raises RequestError for a remote one, of which `what` cannot be had."""
        return self.models.find_local(self.find_for(name, context).id, what)

    def caller(self, context: Context, *, priority: int | None, salt: str | None) -> Caller:
        """Who asks. Each key has cached prefixes of its own; a request may ask for less priority than its key has, never for more."""
        key = context.key
        tenant = "" if key is None else key.name
        own = f"{tenant}\0{salt or ''}".encode() if tenant or salt else b""
        if key is not None:
            priority = key.priority if priority is None else max(priority, key.priority)
        return Caller(tenant=tenant, salt=own, priority=priority or 0)

    async def answer(self, request: ChatRequest | CompletionRequest, context: Context, model: str = "", *, guarded: bool = True) -> Job:
        """Answer a conversation, or go on with a text, by a model of any name. Raises HerdError before anything has begun.

        What is no valid request is told so before a shield reads it: an error is the same with shields and without.

        `guarded` false is for what the shields themselves ask.
        """
        served = self.find_for(model, context)
        if served.type != "llm":
            raise RequestError("usage", f"the model {served.id!r} only makes vectors", hint="name another one", param="model")
        if served.remote is None:
            self._check_size(size_of(request))
        shielding = self.shielding if guarded else None
        prepared: Prepared | None = None
        if shielding is not None:
            prepared = await self._checked(served, request)
            asked = request
            decode = self.tokenizer.decode if served.remote is None else None
            request, stopped = await shielding.incoming(request, decode=decode)
            if stopped is not None:
                self._note(context, stopped)
                refused = RefusedAnswer(stopped.message, request.n)
                return Job(_stand_in(request), refused, served.id, local=False, stopped=dict.fromkeys(range(request.n), stopped))
            if request is not asked:
                prepared = None
        if served.remote is not None:
            return await self._ask_remote(served, served.remote, request, context, shielding)
        if prepared is None:
            prepared = await self.model.prepare(request)
        stream, call = await self._submit(prepared.tokens, self.model.reader(prepared), context)
        tokens = prepared.tokens
        job = Job(tokens, _Watched(call, stream), served.id, sure=tokens.grammar is not None)
        used = lambda: Usage(prompt_tokens=len(tokens.prompt), completion_tokens=stream.num_tokens)  # noqa: E731
        self._guard(job, request, shielding, used, context)
        return job

    async def _checked(self, served: ServedModel, request: ChatRequest | CompletionRequest) -> Prepared | None:
        """The request in token ids, where the engine has them. Raises HerdError for one that would be refused."""
        if served.remote is not None:
            served.remote.check(request)
            return None
        prepared = await self.model.prepare(request)
        await self.engine.check(prepared.tokens)
        return prepared

    async def _ask_remote(
        self,
        served: ServedModel,
        remote: AsyncRemoteModel,
        request: ChatRequest | CompletionRequest,
        context: Context,
        shielding: Shielding | None,
    ) -> Job:
        call = self._begin_remote(served, size_of(request) // CHARS_PER_TOKEN + 1, context)
        try:
            stream = await (remote.chat(request) if isinstance(request, ChatRequest) else remote.complete(request))
        except BaseException as error:
            call.end()
            self.metrics.asked(served.provider, error.code if isinstance(error, HerdError) else "left")
            raise
        self.metrics.asked(served.provider, "taken")
        job = Job(_stand_in(request), _Watched(call, stream), served.id, local=False, sure=True)
        self._guard(job, request, shielding, lambda: Usage(prompt_tokens=0, completion_tokens=0), context)
        return job

    def _begin_remote(self, served: ServedModel, num_prompt: int, context: Context) -> Call:
        """Count a request that goes to a remote; its prompt is estimated, since only the remote can count it."""
        quota = self._take_quota(context, num_prompt)
        if self.num_remote >= self.config.max_waiting:
            self.metrics.rejected("queue")
            if quota is not None:
                quota.give_back(num_prompt)
            message = f"{self.num_remote:,} requests are with remote servers, the most is {self.config.max_waiting:,}"
            raise RequestError("busy", message, hint="ask again in a second", retry_after_s=1.0)
        self.num_remote += 1
        return Call(self, None, quota, context, served)

    def _guard(
        self,
        job: Job,
        request: ChatRequest | CompletionRequest,
        shielding: Shielding | None,
        used: Callable[[], Usage],
        context: Context,
    ) -> None:
        """Put the shields before a job's answer."""
        if shielding is not None:
            told = _Told(lambda stopped: self._note(context, stopped))
            job.stopped = told
            job.answer = shielding.outgoing(job.answer, request, used, told)

    def _note(self, context: Context, stopped: Stopped) -> None:
        """What the log may know of it."""
        why = ",".join(stopped.categories) or ("failed" if stopped.failed else "unsafe")
        context.log_fields["stopped"] = f"{stopped.point.value}:{stopped.shield}:{why}"

    async def embed_remote(self, served: ServedModel, texts: Sequence[str | tuple[int, ...]], context: Context, **fields: Any) -> Vectors:
        """Texts as vectors by a remote model. Raises HerdError."""
        assert served.remote is not None
        call = self._begin_remote(served, sum(map(len, texts)) // CHARS_PER_TOKEN + 1, context)
        try:
            vectors = await served.remote.embed(texts, **fields)
            self.metrics.asked(served.provider, "taken")
            return vectors
        except HerdError as error:
            self.metrics.asked(served.provider, error.code)
            raise
        finally:
            call.end()

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
        call = Call(self, ticket, quota, context, self.models.local)
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
