"""POST /v1/chat/completions: a conversation answered, whole or as it is written."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from herd.inference.port import Finished, Part, TokenLogprob, TokensDone
from herd.stack.answers import chat_logprob, dumps, json_response, new_id, reason_fields, unless_gone, usage
from herd.stack.deltas import Deltas, Sum
from herd.stack.errors import RequestError
from herd.stack.guard import Context
from herd.stack.jobs import Job
from herd.stack.receipts import make_receipt
from herd.stack.service import Service
from herd.stack.sse import DONE, EventStream, error_event, event
from herd.stack.stored_completions import keep, refuse_unless_kept
from herd.stack.translate import chat_request
from herd.stack.types import ChatBody, Sampling


def chat_routes(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions", summary="Answer a conversation", response_model=None)
    async def chat(body: ChatBody, request: Request) -> Response:
        context: Context = request.scope["herd"]
        if body.stream:
            job = await unless_gone(request, _start(service, body, context))
            writer = _ChunkWriter(service, job, body, context)
            return EventStream(writer.chunks(), job.close, service.config)
        return json_response(await unless_gone(request, answer_chat(service, body, context)))

    return router


async def answer_chat(service: Service, body: ChatBody, context: Context) -> dict[str, Any]:
    """The whole answer of a body, kept where that is asked for. Raises HerdError."""
    data = await _whole(service, await _start(service, body, context), body)
    await keep(service.database, body, context, data)
    return data


async def _start(service: Service, body: ChatBody, context: Context) -> Job:
    refuse_of_remote(service, body, context)
    refuse_unless_kept(service.database, body)
    caller = service.caller(context, priority=body.priority, salt=body.cache_salt)
    return await service.answer(chat_request(body, service.config.caps, caller), context, body.model)


def refuse_of_remote(service: Service, body: Sampling, context: Context) -> None:
    """Raises RequestError for what only the engine of this process can tell, asked of a remote model."""
    for name in ("return_token_ids", "receipt"):
        if getattr(body, name) and service.find_for(body.model, context).remote is not None:
            message = f"{name} goes with the engine's own model alone"
            raise RequestError("usage", message, hint=f"leave it out, or name {service.models.local.id!r}", param=name)


async def _whole(service: Service, job: Job, body: ChatBody) -> dict[str, Any]:
    """The answers, once all are there."""
    answers: dict[int, Finished] = {}
    told = [Deltas(sure=job.sure) for _ in range(job.request.n)]
    sums = [Sum() for _ in told]
    async for part in job.events():
        for delta in told[part.index].of(part.event):
            sums[part.index].add(delta)
        if isinstance(part.event, Finished):
            answers[part.index] = part.event
    head = _head(service, job, "chat.completion")
    return _completion(service, job, body, head, answers, sums)


def _head(service: Service, job: Job, kind: str) -> dict[str, Any]:
    """What an answer and each of its chunks begin with."""
    return {
        "id": new_id("chatcmpl-"),
        "object": kind,
        "created": int(time.time()),
        "model": job.model,
        "system_fingerprint": fingerprint(service) if job.local else None,
    }


def _completion(
    service: Service, job: Job, body: ChatBody, head: dict[str, Any], answers: Mapping[int, Finished], sums: Sequence[Sum]
) -> dict[str, Any]:
    """The object of all answers."""
    choices = [_choice(index, answers[index], sums[index].message(), body, job) for index in sorted(answers)]
    told = {**head, "choices": choices, "usage": usage([[answers[index].usage for index in sorted(answers)]])}
    return told | _extras(service, job, body, answers)


def fingerprint(service: Service) -> str:
    """Names weights and numerics: equal ones give equal answers to equal requests."""
    return "herd-" + str(service.engine.info["weights_digest"])[:16] + "-" + str(service.engine.info["dtype"])


def timings_fields(answers: Iterable[Finished]) -> dict[str, Any]:
    """How fast an answer was written, under llama.cpp's names: as tokens came from the model, before any shield held their text back.

    Of several answers in one stream nothing is told: they share the time.
    """
    told = [answer for answer in answers if answer.timings.tokens_per_s > 0]
    if len(told) != 1:
        return {}
    timings, count = told[0].timings, told[0].usage.completion_tokens
    prompt_ms, predicted_ms = round(timings.prefill_s * 1000, 3), round(timings.decode_s * 1000, 3)
    return {
        "timings": {
            "prompt_ms": prompt_ms,
            "predicted_n": count,
            "predicted_ms": predicted_ms,
            "predicted_per_second": timings.tokens_per_s,
        }
    }


def _extras(service: Service, job: Job, body: ChatBody, answers: Mapping[int, Finished]) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if body.return_token_ids:
        extras["prompt_token_ids"] = list(job.request.prompt)
    # What a shield stopped cannot be made again from its tokens.
    if body.receipt and job.local and not job.stopped:
        extras["receipt"] = make_receipt(service.config.model_name, service.engine.info, job.request, answers.items())
    return extras


def stopped_fields(job: Job, index: int) -> dict[str, Any]:
    """Why a shield stopped an answer, if one did: OpenAI has no field for it."""
    return {"herd": job.stopped[index].to_dict()} if index in job.stopped else {}


def _choice(index: int, finished: Finished, message: dict[str, Any], body: ChatBody, job: Job) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index, "message": message, "logprobs": None, **reason_fields(finished), **stopped_fields(job, index)}
    if body.logprobs:
        choice["logprobs"] = {"content": [chat_logprob(found) for found in finished.logprobs], "refusal": None}
    if body.return_token_ids:
        choice["token_ids"] = list(finished.token_ids)
    return choice


class _Choice:
    """What is kept of one answer while it streams: what was told, and log-probabilities that were not."""

    def __init__(self, *, sure: bool) -> None:
        self.begun = False
        self.deltas = Deltas(sure=sure)
        self.logprobs: list[TokenLogprob] = []


class _ChunkWriter:
    """Parts of answers as OpenAI's chunks. Texts that come together go in one chunk."""

    def __init__(self, service: Service, job: Job, body: ChatBody, context: Context) -> None:
        self._service, self._job, self._body, self._context = service, job, body, context
        self._with_usage = body.stream_options is not None and body.stream_options.include_usage
        self._told = _head(service, job, "chat.completion.chunk")
        self._head = dumps(self._told)[:-1]
        self._tail = b',"usage":null}' if self._with_usage else b"}"
        self._choices: dict[int, _Choice] = {}
        self._answers: dict[int, Finished] = {}
        self._sums = [Sum() for _ in range(job.request.n)] if body.store else []

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Everything, to the end or to an error, which is an event too."""
        try:
            async with aclosing(self._job.parts()) as ticks:
                async for parts in ticks:
                    data = self._tick(parts)
                    if data:
                        yield data
            if len(self._answers) == self._job.request.n:
                await self._keep()
        except Exception as error:
            yield error_event(error, self._context.request_id)
            return
        if len(self._answers) < self._job.request.n:
            return
        yield self._last()

    async def _keep(self) -> None:
        """Keep what was streamed, before its end is told."""
        if self._body.store:
            head = {**self._told, "object": "chat.completion"}
            data = _completion(self._service, self._job, self._body, head, self._answers, self._sums)
            await keep(self._service.database, self._body, self._context, data)

    def _last(self) -> bytes:
        end = b""
        extras = _extras(self._service, self._job, self._body, self._answers)
        if self._with_usage or extras:
            told: dict[str, Any] = {"choices": [], **extras}
            told["usage"] = usage([[answer.usage for answer in self._answers.values()]]) if self._with_usage else None
            told |= timings_fields(self._answers.values())
            end = event(self._head + b"," + dumps(told)[1:])
        return end + (DONE if self._context.done_event else b"")

    def _tick(self, parts: list[Part]) -> bytes:
        """The chunks of what came together; texts of one answer that follow each other are one."""
        out: list[bytes] = []
        texts: list[str] = []
        last = -1
        for part in parts:
            if part.index != last:
                self._flush(out, last, texts)
            last = part.index
            choice = self._choice(last, out)
            for delta in choice.deltas.of(part.event):
                if self._sums:
                    self._sums[last].add(delta)
                if "content" in delta:
                    texts.append(delta["content"])
                else:
                    self._flush(out, last, texts)
                    out.append(self._chunk(last, delta))
            if isinstance(part.event, TokensDone):
                choice.logprobs += part.event.logprobs
            elif isinstance(part.event, Finished):
                self._flush(out, last, texts)
                self._answers[last] = part.event
                out.append(self._chunk(last, {}, part.event))
        self._flush(out, last, texts)
        return b"".join(out)

    def _choice(self, index: int, out: list[bytes]) -> _Choice:
        choice = self._choices.setdefault(index, _Choice(sure=self._job.sure))
        if not choice.begun:
            choice.begun = True
            out.append(self._chunk(index, {"role": "assistant", "content": ""}))
        return choice

    def _flush(self, out: list[bytes], index: int, texts: list[str]) -> None:
        if texts:
            out.append(self._chunk(index, {"content": "".join(texts)}))
            texts.clear()

    def _chunk(self, index: int, delta: dict[str, Any], finished: Finished | None = None) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        held = self._choices[index].logprobs if self._body.logprobs else []
        if held and (delta or finished):
            choice["logprobs"] = {"content": [chat_logprob(found) for found in held], "refusal": None}
            held.clear()
        if finished is not None:
            choice |= reason_fields(finished) | stopped_fields(self._job, index)
            if self._body.return_token_ids:
                choice["token_ids"] = list(finished.token_ids)
        return event(self._head + b',"choices":[' + dumps(choice) + b"]" + self._tail)
