"""Requests from what a script writes: texts, lists, dicts in OpenAI's shape. Shared by `LLM` and `AsyncLLM`. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, cast

from herd.base.errors import UsageError
from herd.engine.grammar.spec import Grammar
from herd.inference.params import SamplingParams
from herd.inference.port import ChatRequest, CompletionRequest, ToolChoice
from herd.text.messages import Message, ToolDefinition, as_messages, as_tools

Prompts = Sequence[str] | Sequence[Sequence[int]]
Messages = Iterable[Message | Mapping[str, Any]]
"""A conversation; messages may be dicts in OpenAI's shape."""


class ChatOptions(TypedDict, total=False):
    """What `chat` and `stream` take by name, of `LLM` and `AsyncLLM` alike; `LLM.chat` tells what each means."""

    tools: Iterable[ToolDefinition | Mapping[str, Any]]
    builtin_tools: Sequence[str]
    tool_choice: ToolChoice
    tool_name: str | None
    grammar: Grammar | None


def check_prompts(prompts: str | Prompts) -> Prompts:
    """One prompt as a list of one. Raises UsageError for a list of token ids, which is no list of prompts."""
    if isinstance(prompts, str):
        return [prompts]
    if any(isinstance(cast("object", prompt), int) for prompt in prompts):
        raise UsageError("the prompts are a list of token ids, not of prompts", hint="put the ids into a list: generate([ids])")
    return prompts


def completion_requests(
    prompts: str | Prompts, params: SamplingParams | None, *, grammar: Grammar | None, n: int
) -> list[CompletionRequest]:
    """A request for each prompt. Raises UsageError."""
    chosen = params or SamplingParams()
    return [
        CompletionRequest(prompt=prompt if isinstance(prompt, str) else tuple(prompt), grammar=grammar, params=chosen, n=n)
        for prompt in check_prompts(prompts)
    ]


def chat_request(
    messages: Messages,
    params: SamplingParams | None,
    *,
    tools: Iterable[ToolDefinition | Mapping[str, Any]] = (),
    builtin_tools: Sequence[str] = (),
    tool_choice: ToolChoice = "auto",
    tool_name: str | None = None,
    grammar: Grammar | None = None,
    n: int = 1,
) -> ChatRequest:
    """The request of a conversation. Raises FormatError, UsageError."""
    return ChatRequest(
        messages=tuple(as_messages(messages)),
        tools=tuple(as_tools(tools)),
        builtin_tools=tuple(builtin_tools),
        tool_choice=tool_choice,
        tool_name=tool_name,
        grammar=grammar,
        n=n,
        params=params or SamplingParams(),
    )
