"""The work behind the routes: a request is judged, prepared, admitted, submitted, measured and ended. Knows no HTTP but its refusals.

`Service.answer` is the one way to a model, the engine's or a remote one: whoever goes it is guarded, limited and counted alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from herd.base.errors import HerdError
from herd.engine.params import TokenParams
from herd.engine.stream import TokenRequest
from herd.inference.aio import AsyncModel, Stream, aside, size_of
from herd.inference.embed import EmbedReader
from herd.inference.port import Caller, ChatRequest, CompletionRequest, Usage
from herd.inference.prepare import Prepared
from herd.inference.reading import Reader
from herd.inference.remote import AsyncRemoteModel, Vectors
from herd.stack.admission import Admission
from herd.stack.call import Call, Watched
from herd.stack.config import ServerConfig
from herd.stack.engine_process import EngineProcess
from herd.stack.errors import RequestError
from herd.stack.guard import Context
from herd.stack.jobs import EmbedJob, Job
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
        job = Job(tokens, Watched(call, stream), served.id, sure=tokens.grammar is not None)
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
        job = Job(_stand_in(request), Watched(call, stream), served.id, local=False, sure=True)
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
        return Call(self.metrics, self.tracing, quota, context, served, leave=self._remote_left)

    def _remote_left(self) -> None:
        self.num_remote -= 1

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
        call = Call(
            self.metrics,
            self.tracing,
            quota,
            context,
            self.models.local,
            leave=partial(self.admission.end, ticket),
            first_token=partial(self.admission.first_token, ticket),
        )
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
