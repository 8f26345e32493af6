"""The response object: every field that any generation of clients wants, none left out, those that OpenResponses wants not null."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from herd.inference.params import SamplingParams
from herd.inference.port import Usage
from herd.stack.answers import new_id
from herd.stack.responses.types import ConversationRef, ResponseBody

State = Literal["queued", "in_progress", "completed", "failed", "incomplete", "cancelled"]
ENDED = frozenset({"completed", "failed", "incomplete", "cancelled"})
KEPT_S = 30 * 86_400
"""Seconds that a response is kept."""
_DEFAULTS = SamplingParams()
_SECRETS = ("authorization", "headers")


def conversation_id(body: Any) -> str | None:
    """The conversation that a body names."""
    named = body.conversation
    return named.id if isinstance(named, ConversationRef) else named


def told_tools(body: Any) -> list[dict[str, Any]]:
    """The tools as they are told again; what opens a door is not."""
    told: list[dict[str, Any]] = []
    for tool in body.tools or ():
        data = tool.model_dump(mode="json", exclude_none=True)
        if data["type"] == "function":
            data = {"type": "function", "name": tool.name, "description": tool.description, "parameters": tool.parameters}
            data["strict"] = tool.strict is not False
        elif data["type"] == "mcp":
            data = {key: value for key, value in data.items() if key not in _SECRETS}
            data.setdefault("require_approval", "always")
        elif data["type"] == "code_interpreter":
            data.setdefault("container", {"type": "auto"})
        told.append(data)
    return told


def _told_choice(body: Any) -> Any:
    choice = body.tool_choice
    if choice is None:
        return "auto"
    return choice if isinstance(choice, str) else choice.model_dump(mode="json", exclude_none=True)


def _told_format(body: Any) -> dict[str, Any]:
    given = None if body.text is None else body.text.format
    if given is None:
        return {"type": "text"}
    if given.type != "json_schema":
        return {"type": given.type}
    return {
        "type": "json_schema",
        "name": given.name or "response",
        "description": given.description,
        "schema": given.schema_,
        "strict": given.strict is not False,
    }


def new_response(body: ResponseBody, model: str, *, state: State) -> dict[str, Any]:
    """A response that has said nothing yet."""
    conversation = conversation_id(body)
    instructions = body.instructions
    if isinstance(instructions, list):
        instructions = [item.model_dump(mode="json", exclude_none=True) for item in instructions]
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": state,
        "background": body.background is True,
        "error": None,
        "incomplete_details": None,
        "instructions": instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "conversation": None if conversation is None else {"id": conversation},
        "prompt": None,
        "prompt_cache_key": body.prompt_cache_key,
        "prompt_cache_retention": body.prompt_cache_retention,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": _DEFAULTS.temperature if body.temperature is None else body.temperature,
        "top_p": _DEFAULTS.top_p if body.top_p is None else body.top_p,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "top_logprobs": body.top_logprobs or 0,
        "text": {"format": _told_format(body), "verbosity": (body.text and body.text.verbosity) or "medium"},
        "tool_choice": _told_choice(body),
        "tools": told_tools(body),
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
    }


def usage_of(usages: Sequence[Usage]) -> dict[str, Any] | None:
    """The usage of all steps of a response: each read its prompt, most of it from what the step before had left in the cache."""
    if not usages:
        return None
    prompt, answer = sum(one.prompt_tokens for one in usages), sum(one.completion_tokens for one in usages)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in usages), "cache_write_tokens": 0},
        "output_tokens": answer,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + answer,
    }


def ended(response: dict[str, Any], state: State, output: Iterable[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """The response at its end."""
    completed = int(time.time()) if state == "completed" else None
    return {**response, "status": state, "completed_at": completed, "output": list(output), **fields}
