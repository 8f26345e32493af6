"""The inference routes of the Llama Stack 0.2 (/v1/inference/...), which its clients still call: the same answers in its own words.

A request is put into OpenAI's body and answered by the same code, so that limits, shields and remotes hold here as there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from herd.inference.port import CompletionRequest, Event, Finished, TokenLogprob, TokensDone
from herd.stack.answers import dumps, finite, json_response, new_id, token_text, unless_gone
from herd.stack.embeddings import answer_embedding
from herd.stack.errors import RequestError
from herd.stack.guard import Context
from herd.stack.jobs import Job
from herd.stack.service import Service
from herd.stack.sse import EventStream, error_event, event
from herd.stack.stack_types import (
    BatchChatCompletionBody,
    BatchCompletionBody,
    ChatCompletionBody,
    Content,
    InferenceBody,
    StackCompletionBody,
    StackEmbeddingsBody,
    StackMessage,
    StackTool,
    TextContentItem,
)
from herd.stack.translate import chat_request, grammar_of, params_of, refuse_over
from herd.stack.types import ChatBody, EmbeddingBody, Sampling, StructuredOutputs
from herd.text.messages import BUILTIN_TOOLS, Message
from herd.text.reply import CallDelta, CallDone, TextDelta

AT_ONCE = 8
"""Of a batch; each is a request of its own, and is limited as one."""
_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array", "dict": "object"}
_REASONS = {"stop": "end_of_turn", "tool_calls": "end_of_message", "length": "out_of_tokens", "content_filter": "end_of_turn"}


def legacy_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post("/v1/inference/chat-completion", summary="Answer a conversation, in 0.2's words", response_model=None)
    async def chat(body: ChatCompletionBody, request: Request) -> Response:
        context: Context = request.scope["herd"]
        choice = body.tool_choice or (body.tool_config.tool_choice if body.tool_config else None)
        job = await unless_gone(request, _chat(service, body, body.messages, body.tools, choice, context))
        if body.stream:
            return EventStream(_chat_events(job, body, context), job.close, service.config)
        return json_response(await unless_gone(request, _whole_chat(job, body)))

    @router.post("/v1/inference/batch-chat-completion", summary="Answer several conversations, in 0.2's words", response_model=None)
    async def batch_chat(body: BatchChatCompletionBody, request: Request) -> Response:
        context: Context = request.scope["herd"]
        choice = body.tool_config.tool_choice if body.tool_config else None

        async def one(messages: Sequence[StackMessage]) -> dict[str, Any]:
            return await _whole_chat(await _chat(service, body, messages, body.tools, choice, context), body)

        return json_response({"batch": await unless_gone(request, _several(map(one, body.messages_batch)))})

    @router.post("/v1/inference/completion", summary="Go on with a text, in 0.2's words", response_model=None)
    async def complete(body: StackCompletionBody, request: Request) -> Response:
        context: Context = request.scope["herd"]
        job = await unless_gone(request, _completion(service, body, body.content, context))
        if body.stream:
            return EventStream(_completion_events(job, body, context), job.close, service.config)
        return json_response(await unless_gone(request, _whole_completion(job, body)))

    @router.post("/v1/inference/batch-completion", summary="Go on with several texts, in 0.2's words", response_model=None)
    async def batch_complete(body: BatchCompletionBody, request: Request) -> Response:
        context: Context = request.scope["herd"]

        async def one(content: Content) -> dict[str, Any]:
            return await _whole_completion(await _completion(service, body, content, context), body)

        return json_response({"batch": await unless_gone(request, _several(map(one, body.content_batch)))})

    @router.post("/v1/inference/embeddings", summary="Texts as vectors, in 0.2's words", response_model=None)
    async def embed(body: StackEmbeddingsBody, request: Request) -> Response:
        context: Context = request.scope["herd"]
        if body.text_truncation not in (None, "none"):
            raise RequestError("usage", "text_truncation: nothing is ever cut here", hint="shorten the text", param="text_truncation")
        asked = EmbeddingBody(model=body.model_id, input=[_text(item) for item in body.contents], dimensions=body.output_dimension)
        made = await unless_gone(request, answer_embedding(service, asked, context))
        return json_response({"embeddings": [row["embedding"] for row in made["data"]]})

    return router


async def _several(work: Iterable[Any]) -> list[dict[str, Any]]:
    slots = asyncio.Semaphore(AT_ONCE)

    async def held(one: Any) -> dict[str, Any]:
        async with slots:
            return await one

    return list(await asyncio.gather(*map(held, work)))


def _text(content: Content) -> str:
    if isinstance(content, str):
        return content
    return content.text if isinstance(content, TextContentItem) else "".join(item.text for item in content)


def _sampling(body: InferenceBody) -> dict[str, Any]:
    """OpenAI's fields for 0.2's."""
    given, fields = body.sampling_params, dict[str, Any]()
    if given is None:
        return fields
    strategy = given.strategy
    if strategy is not None and strategy.type == "greedy":
        fields["temperature"] = 0.0
    elif strategy is not None and strategy.type == "top_p":
        fields |= {"temperature": strategy.temperature, "top_p": strategy.top_p}
    elif strategy is not None:
        fields |= {"top_k": strategy.top_k, "temperature": strategy.temperature}
    fields |= {"max_tokens": given.max_tokens or None, "repetition_penalty": given.repetition_penalty, "stop": given.stop}
    return {name: value for name, value in fields.items() if value is not None}


def _structured(body: InferenceBody) -> dict[str, Any]:
    form = body.response_format
    if form is None:
        return {}
    given: Any = form.json_schema if form.type == "json_schema" else form.bnf
    if not isinstance(given, dict):
        raise RequestError(
            "format",
            f"response_format of type {form.type} has no {'bnf' if form.type == 'grammar' else form.type}",
            param="response_format",
        )
    if form.type == "json_schema":
        return {"structured_outputs": {"json": given}}
    text = given.get("grammar")
    if not isinstance(text, str):
        raise RequestError("format", "response_format.bnf has no text", hint='write {"grammar": "root ::= ..."}', param="response_format")
    return {"structured_outputs": {"grammar": text}}


def _tool(tool: StackTool) -> dict[str, Any]:
    parameters = tool.parameters or {}
    properties: dict[str, Any] = {}
    for name, one in parameters.items():
        properties[name] = {"type": _TYPES.get(one.param_type, one.param_type)} | (
            {"description": one.description} if one.description else {}
        )
        if one.default is not None:
            properties[name]["default"] = one.default
    required = [name for name, one in parameters.items() if one.required is not False]
    schema = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": tool.tool_name, "description": tool.description or "", "parameters": schema}}


def _message(message: StackMessage) -> dict[str, Any]:
    data: dict[str, Any] = {"role": message.role, "content": None if message.content is None else _text(message.content)}
    if message.tool_calls:
        data["tool_calls"] = [
            {
                "id": call.call_id or None,
                "type": "function",
                "function": {
                    "name": call.tool_name,
                    "arguments": call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments, ensure_ascii=False),
                },
            }
            for call in message.tool_calls
        ]
    if message.call_id:
        data["tool_call_id"] = message.call_id
    return data


async def _chat(
    service: Service,
    body: InferenceBody,
    messages: Sequence[StackMessage],
    tools: Sequence[StackTool] | None,
    choice: str | None,
    context: Context,
) -> Job:
    builtin = [tool.tool_name for tool in tools or () if tool.tool_name in BUILTIN_TOOLS and not tool.parameters]
    defined = [_tool(tool) for tool in tools or () if tool.tool_name not in builtin]
    fields: dict[str, Any] = {"model": body.model_id, "messages": [_message(message) for message in messages], **_sampling(body)}
    if (not builtin and not defined) or choice == "none":
        fields |= _structured(body)
    elif body.response_format is not None:
        raise RequestError("usage", "an answer cannot both follow a grammar and call tools", hint="leave out one", param="response_format")
    if defined:
        fields["tools"] = defined
    if builtin:
        fields["builtin_tools"] = builtin
    if choice and (defined or builtin):
        named = choice not in ("auto", "none", "required")
        fields["tool_choice"] = {"type": "function", "function": {"name": choice}} if named else choice
    if body.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": body.logprobs.top_k or 0}
    asked = ChatBody.model_validate(fields)
    caller = service.caller(context, priority=None, salt=None)
    return await service.answer(chat_request(asked, service.config.caps, caller), context, body.model_id)


async def _completion(service: Service, body: InferenceBody, content: Content, context: Context) -> Job:
    caps = service.config.caps
    top = None if body.logprobs is None else body.logprobs.top_k or 0
    refuse_over("logprobs", top or 0, caps.logprobs)
    sampling = Sampling.model_validate({name: value for name, value in _sampling(body).items() if name != "max_tokens"})
    limit = None if body.sampling_params is None else body.sampling_params.max_tokens or None
    shaped = _structured(body).get("structured_outputs")
    asked = CompletionRequest(
        prompt=_text(content),
        grammar=None if shaped is None else grammar_of(StructuredOutputs.model_validate(shaped)),
        params=params_of(sampling, caps, max_tokens=limit, logprobs=top),
        caller=service.caller(context, priority=None, salt=None),
    )
    return await service.answer(asked, context, body.model_id)


async def _events(job: Job) -> tuple[list[Event], Finished]:
    events = [part.event async for part in job.events()]
    last = events[-1]
    assert isinstance(last, Finished)
    return events, last


async def _whole_chat(job: Job, body: InferenceBody) -> dict[str, Any]:
    events, last = await _events(job)
    # A call that was cut comes as text, as it does in a stream.
    text = "".join(one.text for one in events if isinstance(one, TextDelta))
    data: dict[str, Any] = {"completion_message": _message_object(last, text), "metrics": _metrics(last)}
    data["logprobs"] = _logprobs(last.logprobs) if body.logprobs is not None else None
    return data | _stopped(job)


def _message_object(last: Finished, text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "stop_reason": _REASONS[last.reason], "tool_calls": _calls(last.message)}


async def _whole_completion(job: Job, body: InferenceBody) -> dict[str, Any]:
    _, last = await _events(job)
    data: dict[str, Any] = {"content": last.text, "stop_reason": _REASONS[last.reason], "metrics": _metrics(last)}
    data["logprobs"] = _logprobs(last.logprobs) if body.logprobs is not None else None
    return data | _stopped(job)


def _stopped(job: Job) -> dict[str, Any]:
    return {"herd": job.stopped[0].to_dict()} if 0 in job.stopped else {}


def _calls(message: Message) -> list[dict[str, Any]]:
    return [
        {
            "call_id": call.id or new_id("call_"),
            "tool_name": call.name,
            "arguments": dict(call.arguments),
            "arguments_json": json.dumps(dict(call.arguments), ensure_ascii=False),
        }
        for call in message.tool_calls
    ]


def _metrics(last: Finished) -> list[dict[str, Any]]:
    used = last.usage
    counts = {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }
    return [{"metric": name, "value": value, "unit": "tokens"} for name, value in counts.items()]


def _logprobs(found: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    rows: list[Mapping[str, float]] = [
        {token_text(data): finite(value) for _, data, value in one.top} | {token_text(one.data): finite(one.logprob)} for one in found
    ]
    return [{"logprobs_by_token": row} for row in rows]


async def _chat_events(job: Job, body: InferenceBody, context: Context) -> AsyncGenerator[bytes, None]:
    """start, progress and complete, as 0.2 sends them."""
    yield _chat_event("start", {"type": "text", "text": ""})
    held: list[TokenLogprob] = []
    started = False
    try:
        async with aclosing(job.events()) as parts:
            async for part in parts:
                one = part.event
                if isinstance(one, TokensDone):
                    held += one.logprobs
                    continue
                delta: dict[str, Any] | None = None
                if isinstance(one, TextDelta):
                    delta = {"type": "text", "text": one.text}
                elif isinstance(one, CallDelta):
                    state = "in_progress" if started else "started"
                    started = True
                    delta = {"type": "tool_call", "parse_status": state, "tool_call": one.text}
                elif isinstance(one, CallDone):
                    started = False
                    (call,) = _calls(Message.assistant("", [one.call]))
                    delta = {"type": "tool_call", "parse_status": "succeeded", "tool_call": call}
                elif isinstance(one, Finished):
                    rest = {"stop_reason": _REASONS[one.reason], "logprobs": _taken(held, body)}
                    yield _chat_event("complete", {"type": "text", "text": ""}, rest, metrics=_metrics(one), **_stopped(job))
                if delta is not None:
                    yield _chat_event("progress", delta, {"logprobs": _taken(held, body)})
    except Exception as error:
        yield error_event(error, context.request_id)


def _taken(held: list[TokenLogprob], body: InferenceBody) -> list[dict[str, Any]] | None:
    if body.logprobs is None or not held:
        return None
    told = _logprobs(held)
    held.clear()
    return told


def _chat_event(kind: str, delta: dict[str, Any], rest: dict[str, Any] | None = None, **more: Any) -> bytes:
    inner = {"event_type": kind, "delta": delta, "logprobs": None, "stop_reason": None, **(rest or {})}
    return event(dumps({"event": inner, **more}))


async def _completion_events(job: Job, body: InferenceBody, context: Context) -> AsyncGenerator[bytes, None]:
    held: list[TokenLogprob] = []
    try:
        async with aclosing(job.events()) as parts:
            async for part in parts:
                one = part.event
                if isinstance(one, TokensDone):
                    held += one.logprobs
                elif isinstance(one, TextDelta):
                    yield event(dumps({"delta": one.text, "stop_reason": None, "logprobs": _taken(held, body)}))
                elif isinstance(one, Finished):
                    last = {"delta": "", "stop_reason": _REASONS[one.reason], "logprobs": _taken(held, body), "metrics": _metrics(one)}
                    yield event(dumps(last | _stopped(job)))
    except Exception as error:
        yield error_event(error, context.request_id)
