"""Chat records of the shapes that people have, as messages and tools. Knows no tokens.

Read are: `messages` as OpenAI's clients write them (with `tool_calls`, role `tool` or `ipython`); `conversations` of `from` and `value`,
as ShareGPT and LLaMA-Factory write them (function_call, observation); `prompt` or `question` or `instruction` (with `input`) beside
`completion`, `response`, `answer` or `output`; utterances with `intent` and `slots` (`intent_calls`); the other shapes of
`data.records.to_messages`. `tools` holds definitions, as a list or as JSON text, `builtin_tools` names of Llama's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from herd.base.errors import FormatError
from herd.data.records import Record, to_messages
from herd.recipes.intent_calls import intent_record, is_intent
from herd.text.messages import Message, ToolDefinition, as_messages, as_tools

TODAY = "23 July 2024"
"""The date that prompts with tools tell in training, unless a config says another: the same rows on every day."""

_PROMPTS = ("prompt", "question", "instruction")
_ANSWERS = ("completion", "response", "answer", "output")
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_call": "assistant",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialogue:
    """A conversation with the tools that are on in it."""

    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...] = ()
    builtin_tools: tuple[str, ...] = ()


def read_dialogue(record: Record) -> Dialogue:
    """The conversation of a record. Raises FormatError for a record of another shape."""
    if is_intent(record):
        record = intent_record(record)
    return Dialogue(messages=tuple(read_messages(record)), **read_tools(record))


def read_tools(record: Record) -> dict[str, Any]:
    """The arguments `tools` and `builtin_tools` of a `Dialogue`."""
    tools = record.get("tools") or ()
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise FormatError(f"`tools` is text that is not JSON: {error}", hint="give a list of tool definitions") from error
    if not isinstance(tools, list | tuple):
        raise FormatError(f"`tools` is {type(tools).__name__}", hint="give a list of tool definitions")
    others = [type(tool).__name__ for tool in tools if not isinstance(tool, ToolDefinition | Mapping)]
    if others:
        raise FormatError(f"`tools` has {others[0]} in it", hint="each tool is an object with a name, a description and parameters")
    system = record.get("system")
    names = record.get("builtin_tools") or ()
    if not isinstance(names, list | tuple) or (system is not None and not isinstance(system, str)):
        raise FormatError("`builtin_tools` is a list of names, `system` is text", hint="see the shapes in the guide on tuning")
    return {"tools": tuple(as_tools(cast("list[Any]", tools))), "builtin_tools": tuple(str(name) for name in names)}


def read_messages(record: Record) -> list[Message]:
    """The messages of a record, a leading `system` field included."""
    found = _conversation(record)
    system = record.get("system")
    if isinstance(system, str) and system and not any(message.role == "system" for message in found):
        return [Message.system(system), *found]
    return found


def _conversation(record: Record) -> list[Message]:
    if isinstance(record.get("messages"), list):
        return message_list(record["messages"])
    if isinstance(record.get("conversations"), list):
        return message_list(record["conversations"])
    for name in _PROMPTS:
        answers = [record[key] for key in _ANSWERS if isinstance(record.get(key), str | list)]
        if isinstance(record.get(name), str | list) and answers and not (name == "question" and record.get("context")):
            return [*prompt_messages(record), *answer_messages(answers[0])]
    return as_messages(cast("list[Any]", to_messages(record)))


def prompt_messages(record: Record) -> list[Message]:
    """The prompt of a record: a message of the user's, or a conversation that waits for an answer."""
    for name in _PROMPTS:
        value = record.get(name)
        if isinstance(value, list):
            return message_list(value)
        if isinstance(value, str):
            extra = record.get("input")
            return [Message.user(f"{value}\n\n{extra}" if isinstance(extra, str) and extra else value)]
    return read_messages(record)


def answer_messages(value: Any) -> list[Message]:
    """An answer: text, one message, or several (a call, its result, what is made of it); of a list of texts, the first."""
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        value = value[0]
    if isinstance(value, str):
        return [Message.assistant(value)]
    return message_list(value if isinstance(value, list) else [value])


def message_list(values: Sequence[Any]) -> list[Message]:
    """Messages in either shape. Raises FormatError."""
    return as_messages([_plain(value) for value in values])


def _plain(value: Any) -> Mapping[str, Any]:
    """A message in OpenAI's shape."""
    if not isinstance(value, Mapping):
        raise FormatError(f"a message is {str(value)[:80]!r}", hint="a message is an object with `role` and `content`")
    if "from" in value:
        return _from_speaker(value)
    if value.get("role") in ("tool", "ipython") and not isinstance(value.get("content"), str | None):
        return {**value, "content": json.dumps(value["content"], ensure_ascii=False)}
    if isinstance(value.get("tool_call"), Mapping):
        call = cast("Mapping[str, Any]", value["tool_call"])
        return {**value, "tool_calls": [{"function": {"name": call.get("name"), "arguments": call.get("arguments") or {}}}]}
    return value


def _from_speaker(value: Mapping[str, Any]) -> Mapping[str, Any]:
    speaker, text = value["from"], value.get("value")
    if not isinstance(speaker, str) or speaker not in _SPEAKERS or not isinstance(text, str):
        raise FormatError(f"a turn is from {speaker!r} and says {str(text)[:60]!r}", hint="from: " + ", ".join(_SPEAKERS))
    if speaker != "function_call":
        return {"role": _SPEAKERS[speaker], "content": text}
    try:
        calls = json.loads(text)
    except ValueError as error:
        raise FormatError(f"a function_call is not JSON: {error}", hint='write {"name": ..., "arguments": {...}} as text') from error
    listed = calls if isinstance(calls, list) else [calls]
    return {"role": "assistant", "tool_calls": [{"function": call} for call in listed]}
