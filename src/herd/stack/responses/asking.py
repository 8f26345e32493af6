"""From a body of POST /v1/responses to a request of the inference port, and how a conversation is shortened where that is asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from herd.base.errors import ContextOverflowError
from herd.engine.grammar.spec import Grammar
from herd.inference.params import SamplingParams
from herd.inference.port import ChatRequest, ToolChoice
from herd.stack.config import Caps
from herd.stack.errors import RequestError
from herd.stack.responses.items import kept_items, messages_of_items
from herd.stack.responses.types import AllowedTools, Asked, ChosenTool, FunctionToolIn, ResponseBody
from herd.stack.translate import refuse_over
from herd.text.messages import Message, ToolDefinition, as_tools

LEAST_ROOM = 256
"""Tokens that a shortened conversation leaves for the answer, where the body does not say."""


def instructions_of(body: Asked) -> list[Message]:
    """What comes first."""
    if body.instructions is None:
        return []
    if isinstance(body.instructions, str):
        return [Message.system(body.instructions)] if body.instructions else []
    return messages_of_items(kept_items(body.instructions, lambda _: None, param="instructions"))


def params_of(body: ResponseBody, *, stop_at: int | None) -> SamplingParams:
    """The sampling parameters."""
    given: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "seed": body.seed,
        "max_tokens": stop_at,
        "logprobs": (body.top_logprobs or 0) if wants_logprobs(body) else None,
    }
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})


def wants_logprobs(body: ResponseBody) -> bool:
    """Whether the log-probabilities of the text are to be told."""
    return bool(body.top_logprobs) or "message.output_text.logprobs" in (body.include or ())


def include_of(body: ResponseBody) -> frozenset[str]:
    """What else is told. Who asks for likeliest tokens wants to see them."""
    return frozenset(body.include or ()) | ({"message.output_text.logprobs"} if body.top_logprobs else set())


def grammar_of(body: Asked) -> Grammar | None:
    """What the text has to look like."""
    given = None if body.text is None else body.text.format
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return Grammar.json_object()
    if given.schema_ is None:
        raise RequestError("format", "text.format has no schema", hint="put it at text.format.schema", param="text.format")
    return Grammar.json_schema(given.schema_)


def matches(chosen: ChosenTool, tool: Any) -> bool:
    """Whether a tool is the one that is named."""
    if tool.type == "function":
        return chosen.type == "function" and chosen.name == tool.name
    if tool.type == "mcp":
        return chosen.type == "mcp" and chosen.server_label == tool.server_label
    return chosen.type == tool.type or (chosen.type.startswith("web_search") and tool.type.startswith("web_search"))


def choice_of(body: Asked) -> tuple[ToolChoice, ChosenTool | None, Sequence[Any]]:
    """Whether a tool has to be called, the one that has to be, and the tools that are on offer. Raises RequestError."""
    tools, choice = list(body.tools or ()), body.tool_choice
    if choice is None or isinstance(choice, str):
        return choice or "auto", None, tools
    named = choice.tools if isinstance(choice, AllowedTools) else [choice]
    for one in named:
        if not any(matches(one, tool) for tool in tools):
            told = one.name or one.server_label or one.type
            raise RequestError(
                "usage", f"tool_choice names {told!r:.100}, which is none of the tools", hint="add it to tools", param="tool_choice"
            )
    if isinstance(choice, AllowedTools):
        return choice.mode, None, [tool for tool in tools if any(matches(one, tool) for one in named)]
    return "required", choice, tools


def functions_of(tools: Sequence[Any]) -> tuple[ToolDefinition, ...]:
    """The client's functions among the tools."""
    found = [tool for tool in tools if isinstance(tool, FunctionToolIn)]
    return tuple(as_tools([{"name": tool.name, "description": tool.description, "parameters": tool.parameters} for tool in found]))


def check_body(body: Asked, caps: Caps) -> None:
    """Raises RequestError for fields that contradict each other, or are over what this server gives."""
    refuse_over("tools", len(body.tools or ()), caps.tools)
    if body.previous_response_id is not None and body.conversation is not None:
        raise RequestError("usage", "previous_response_id and conversation are both there", hint="give one of them", param="conversation")
    names = [tool.name for tool in body.tools or () if isinstance(tool, FunctionToolIn)]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise RequestError("usage", f"two functions are named {twice!r:.100}", hint="give each a name of its own", param="tools")
    if not isinstance(body, ResponseBody):
        return
    if body.background and body.store is False:
        raise RequestError("usage", "a response in the background has to be stored", hint="leave out store", param="background")
    refuse_over("top_logprobs", body.top_logprobs or 0, caps.logprobs)


def turns_of(messages: Sequence[Message]) -> list[int]:
    """Where turns begin: at messages of the user."""
    return [place for place, message in enumerate(messages) if message.role == "user"]


async def fitting(request: ChatRequest, count: Callable[[ChatRequest], Awaitable[int]], context: int, *, auto: bool) -> ChatRequest:
    """The request, without its oldest turns where it is too long and `auto`. Instructions and the last turn always stay."""
    if not auto:
        return request
    wanted = min(request.params.max_tokens or LEAST_ROOM, context // 2)

    async def fits(candidate: ChatRequest) -> bool:
        try:
            return await count(candidate) + wanted <= context
        except ContextOverflowError:
            return False

    if await fits(request):
        return request
    messages = list(request.messages)
    turns = turns_of(messages)
    head = [message for message in messages[: turns[0] if turns else 0] if message.role == "system"]

    def without(num: int) -> ChatRequest:
        return replace(request, messages=(*head, *messages[turns[num] :]))

    low, high = 0, len(turns) - 1
    if high < 1 or not await fits(without(high)):
        return request
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if await fits(without(middle)) else (middle + 1, high)
    return without(low)
