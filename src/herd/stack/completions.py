"""POST /v1/completions: texts or token ids gone on with, whole or as they are written. Evaluation harnesses score through it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from herd.inference.port import Finished, Part, PromptRead, TokenLogprob, TokensDone
from herd.stack.answers import (
    CompletionToken,
    TextOffsets,
    completion_logprobs,
    dumps,
    json_response,
    new_id,
    reason_fields,
    unless_gone,
    usage,
)
from herd.stack.chat import fingerprint, refuse_of_remote, stopped_fields
from herd.stack.errors import RequestError
from herd.stack.guard import Context
from herd.stack.jobs import Job
from herd.stack.receipts import make_receipt
from herd.stack.service import Service
from herd.stack.sse import DONE, EventStream, error_event, event
from herd.stack.translate import completion_requests
from herd.stack.types import CompletionBody
from herd.text.reply import TextDelta
from herd.text.tokenizer import Tokenizer


def completion_routes(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/completions", summary="Go on with a text", response_model=None)
    async def complete(body: CompletionBody, request: Request) -> Response:
        context: Context = request.scope["herd"]
        if not body.stream:
            return json_response(await unless_gone(request, answer_completion(service, body, context)))
        jobs = await unless_gone(request, _start(service, body, context))
        writer = _ChunkWriter(service, jobs, body, context)
        return EventStream(writer.chunks(), writer.close, service.config)

    return router


async def answer_completion(service: Service, body: CompletionBody, context: Context) -> dict[str, Any]:
    """The whole answer of a body. Raises HerdError."""
    return await _whole(service, await _start(service, body, context), body)


async def _start(service: Service, body: CompletionBody, context: Context) -> list[Job]:
    """Start all prompts or none."""
    refuse_of_remote(service, body, context)
    if service.find_for(body.model, context).remote is not None:
        _refuse_scoring(body)
    caller = service.caller(context, priority=body.priority, salt=body.cache_salt)
    asked = completion_requests(body, service.config.caps, caller)
    jobs: list[Job] = []
    try:
        for request in asked:
            jobs.append(await service.answer(request, context, body.model))  # noqa: PERF401 what began before an error has to be known
    except BaseException:
        for job in jobs:
            job.close()
        raise
    return jobs


def _refuse_scoring(body: CompletionBody) -> None:
    """Raises RequestError for what a remote model cannot be asked: its prompt's tokens are not known here."""
    asked = {"echo": body.echo, "best_of": body.best_of and body.best_of > (body.n or 1), "max_tokens": body.max_tokens == 0}
    name = next((name for name, wanted in asked.items() if wanted), None)
    if name is not None:
        raise RequestError("usage", f"{name} of this kind goes with the engine's own model alone", hint="leave it out", param=name)


@dataclass(slots=True)
class _Result:
    """One prompt's answers, and the prompt as it was read."""

    answers: dict[int, Finished] = field(default_factory=dict[int, Finished])
    prompt: PromptRead | None = None


async def _collect(job: Job) -> _Result:
    result = _Result()
    async for part in job.events():
        if isinstance(part.event, Finished):
            result.answers[part.index] = part.event
        elif isinstance(part.event, PromptRead):
            result.prompt = part.event
    return result


async def _whole(service: Service, jobs: Sequence[Job], body: CompletionBody) -> dict[str, Any]:
    try:
        results = await asyncio.gather(*map(_collect, jobs))
    finally:
        for job in jobs:
            job.close()
    n = body.n or 1
    choices = [
        _choice(service.tokenizer, job, result, place, number * n + rank, body)
        for number, (job, result) in enumerate(zip(jobs, results, strict=True))
        for rank, place in enumerate(_best(result, n))
    ]
    data: dict[str, Any] = {
        "id": new_id("cmpl-"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": jobs[0].model,
        "choices": choices,
        "usage": usage([answer.usage for _, answer in sorted(result.answers.items())] for result in results),
        "system_fingerprint": fingerprint(service) if jobs[0].local else None,
    }
    if body.max_tokens == 0:
        told = data["usage"]
        told["total_tokens"], told["completion_tokens"] = told["prompt_tokens"], 0
    if body.receipt and _receivable(jobs):
        receipts = [
            make_receipt(service.config.model_name, service.engine.info, job.request, result.answers.items())
            for job, result in zip(jobs, results, strict=True)
        ]
        data["receipt"] = receipts[0] if len(receipts) == 1 else receipts
    return data


def _receivable(jobs: Sequence[Job]) -> bool:
    """Whether the answers can be made again from their tokens: not those that a shield stopped."""
    return all(job.local and not job.stopped for job in jobs)


def _best(result: _Result, n: int) -> list[int]:
    """The n continuations with the highest log-probability a token; all, in order, where no more were written."""
    if len(result.answers) == n:
        return sorted(result.answers)

    def mean(index: int) -> float:
        found = result.answers[index].logprobs
        return sum(one.logprob for one in found) / max(1, len(found))

    return sorted(sorted(result.answers), key=mean, reverse=True)[:n]


def _token(tokenizer: Tokenizer, token_id: int, found: TokenLogprob | None) -> CompletionToken:
    return CompletionToken(tokenizer.token_bytes(token_id), tokenizer.special_name(token_id) is not None, found)


def _read(tokenizer: Tokenizer, prompt: PromptRead) -> list[CompletionToken]:
    return [_token(tokenizer, token_id, found) for token_id, found in zip(prompt.token_ids, prompt.logprobs, strict=True)]


def _choice(tokenizer: Tokenizer, job: Job, result: _Result, place: int, index: int, body: CompletionBody) -> dict[str, Any]:
    finished = result.answers[place]
    drop = body.max_tokens == 0
    text = "" if drop else finished.text
    tokens = [] if drop else [_token(tokenizer, found.token_id, found) for found in finished.logprobs]
    drop = drop and place not in job.stopped
    text = text if drop else finished.text
    if body.echo:
        prompt = tokenizer.decode(job.request.prompt, skip_special=True)
        text = prompt + text
        if result.prompt is not None:
            tokens = _read(tokenizer, result.prompt) + tokens
    choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None, **reason_fields(finished), **stopped_fields(job, place)}
    if drop:
        choice |= {"finish_reason": "length", "stop_reason": None}
    if body.logprobs is not None:
        choice["logprobs"] = completion_logprobs(tokens, TextOffsets())
    if body.return_token_ids:
        choice |= {"prompt_token_ids": list(job.request.prompt), "token_ids": [] if drop else list(finished.token_ids)}
    return choice


class _ChunkWriter:
    """Answers of all prompts as OpenAI's chunks, in the order in which they are written."""

    def __init__(self, service: Service, jobs: Sequence[Job], body: CompletionBody, context: Context) -> None:
        self._service, self._jobs, self._body, self._context = service, jobs, body, context
        self._n = body.n or 1
        self._with_usage = body.stream_options is not None and body.stream_options.include_usage
        head = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": jobs[0].model,
            "system_fingerprint": fingerprint(service) if jobs[0].local else None,
        }
        self._head = dumps(head)[:-1]
        self._results = [_Result() for _ in jobs]
        self._offsets: dict[int, TextOffsets] = {}
        self._held: dict[int, list[CompletionToken]] = {}

    def close(self) -> None:
        """End all."""
        for job in self._jobs:
            job.close()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Everything, to the end or to an error, which is an event too."""
        try:
            async with aclosing(_merged(self._jobs)) as ticks:
                async for number, parts in ticks:
                    data = b"".join(self._part(number, part) for part in parts)
                    if data:
                        yield data
        except Exception as error:
            yield error_event(error, self._context.request_id)
            return
        if all(len(result.answers) == self._n for result in self._results):
            yield self._last()

    def _last(self) -> bytes:
        told: dict[str, Any] = {}
        if self._with_usage:
            told["usage"] = usage([answer.usage for answer in result.answers.values()] for result in self._results)
        if self._body.receipt and _receivable(self._jobs):
            name, info = self._service.config.model_name, self._service.engine.info
            made = [
                make_receipt(name, info, job.request, result.answers.items()) for job, result in zip(self._jobs, self._results, strict=True)
            ]
            told["receipt"] = made[0] if len(made) == 1 else made
        return (event(self._head + b"," + dumps({"choices": [], **told})[1:]) if told else b"") + (
            DONE if self._context.done_event else b""
        )

    def _part(self, number: int, part: Part) -> bytes:
        index = number * self._n + part.index
        shown = part.event
        echoed = b"" if index in self._held else self._echo(number, index, shown)
        drop = self._body.max_tokens == 0
        if isinstance(shown, TokensDone) and not drop:
            self._held[index] += [_token(self._service.tokenizer, found.token_id, found) for found in shown.logprobs]
        elif isinstance(shown, TextDelta) and not drop:
            return echoed + self._chunk(index, shown.text)
        elif isinstance(shown, Finished):
            self._results[number].answers[part.index] = shown
            return echoed + self._chunk(index, "", finished=shown, more=stopped_fields(self._jobs[number], part.index))
        return echoed

    def _echo(self, number: int, index: int, shown: object) -> bytes:
        """The prompt, before the first of an answer."""
        if isinstance(shown, PromptRead):
            self._results[number].prompt = shown
            return b""
        self._held[index] = []
        if not self._body.echo:
            return b""
        tokenizer, read = self._service.tokenizer, self._results[number].prompt
        if read is not None:
            self._held[index] = _read(tokenizer, read)
        return self._chunk(index, tokenizer.decode(self._jobs[number].request.prompt, skip_special=True))

    def _chunk(self, index: int, text: str, *, finished: Finished | None = None, more: dict[str, Any] | None = None) -> bytes:
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None, "finish_reason": None}
        if finished is not None:
            cut = self._body.max_tokens == 0 and not more
            choice |= {"finish_reason": "length", "stop_reason": None} if cut else reason_fields(finished) | (more or {})
        held = self._held[index]
        if self._body.logprobs is not None and held:
            choice["logprobs"] = completion_logprobs(held, self._offsets.setdefault(index, TextOffsets()))
            held.clear()
        return event(self._head + b',"choices":[' + dumps(choice) + (b'],"usage":null}' if self._with_usage else b"]}"))


async def _merged(jobs: Sequence[Job]) -> AsyncGenerator[tuple[int, list[Part]], None]:
    """The parts of several jobs as they come."""
    if len(jobs) == 1:
        async with aclosing(jobs[0].parts()) as ticks:
            async for parts in ticks:
                yield 0, parts
        return
    queue: asyncio.Queue[tuple[int, list[Part] | BaseException | None]] = asyncio.Queue()

    async def pump(number: int, job: Job) -> None:
        end: BaseException | None = None
        try:
            async with aclosing(job.parts()) as ticks:
                async for parts in ticks:
                    queue.put_nowait((number, parts))
        except Exception as error:
            end = error
        queue.put_nowait((number, end))

    tasks = [asyncio.create_task(pump(number, job)) for number, job in enumerate(jobs)]
    try:
        num_open = len(jobs)
        while num_open:
            number, parts = await queue.get()
            if isinstance(parts, BaseException):
                raise parts
            if parts is None:
                num_open -= 1
            else:
                yield number, parts
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
