"""One line of a batch file: a request as JSON, in OpenAI's batch form or plain. No torch.

    {"custom_id": "a", "messages": [...], "temperature": 0, "max_tokens": 40}
    {"custom_id": "b", "prompt": "Once upon a time", "n": 2, "seed": 1}
    {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "...", "messages": [...]}}

Fields are those of `SamplingParams`, with OpenAI's names beside them (`max_completion_tokens`, `top_logprobs`, `response_format`).
`model` is passed over: the file is run by the model that was loaded. What is unknown is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from herd.base.errors import FormatError, did_you_mean
from herd.engine.grammar.spec import Grammar
from herd.inference.params import SamplingParams
from herd.inference.port import ChatRequest, CompletionRequest
from herd.inference.requests import chat_request

URLS = ("/v1/chat/completions", "/v1/completions")
_ENVELOPE = ("custom_id", "method", "url", "body")
_CHAT = ("messages", "tools", "builtin_tools", "tool_choice", "tool_name")
_OTHERS = ("prompt", "n", "model", "response_format", "grammar", "max_completion_tokens", "top_logprobs")
_GRAMMARS: dict[str, Callable[[Any], Grammar]] = {
    "json_schema": Grammar.json_schema,
    "regex": Grammar.regex,
    "lark": Grammar.lark,
    "choice": Grammar.choice,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line's name and what it asks."""

    custom_id: str
    request: ChatRequest | CompletionRequest


def name_of(data: Any, number: int) -> str:
    """A line's `custom_id`, or its number where it has none."""
    given = cast("Mapping[str, Any]", data).get("custom_id") if isinstance(data, dict) else None
    return given if isinstance(given, str) else f"line-{number}"


def read_json(raw: bytes) -> Any:
    """The JSON of a line. Raises FormatError."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the line is not JSON: {error}", hint="write one JSON object a line, in UTF-8") from error


def read_line(data: Any, number: int, defaults: SamplingParams) -> Line:
    """The request of a line; what it leaves open is as in `defaults`. Raises FormatError, UsageError."""
    body = _body(_object("the line", data))
    known = (*_CHAT, *_OTHERS, *_KINDS)
    for name in body:
        if name not in known:
            raise FormatError(f"unknown field {name!r}", hint=did_you_mean(name, known, otherwise="leave it out"))
    if ("messages" in body) == ("prompt" in body):
        raise FormatError("a line has either messages or a prompt", hint="give one of the two")
    params, grammar = _params(body, defaults), _grammar(body)
    n = _whole("n", body.get("n", 1))
    if "prompt" in body:
        for name in _CHAT:
            if name in body:
                raise FormatError(f"{name} goes with messages, not with a prompt", hint=f"leave {name} out, or give messages")
        request = CompletionRequest(prompt=_prompt(body["prompt"]), grammar=grammar, n=n, params=params)
        return Line(custom_id=name_of(data, number), request=request)
    choice, name = _tool_choice(body)
    messages, tools = (
        [_object(f"an entry of {field}", entry) for entry in _list(field, body.get(field, []))] for field in ("messages", "tools")
    )
    builtin = _texts("builtin_tools", body.get("builtin_tools", []))
    request = chat_request(messages, params, tools=tools, builtin_tools=builtin, tool_choice=choice, tool_name=name, grammar=grammar, n=n)
    return Line(custom_id=name_of(data, number), request=request)


def _body(data: Mapping[str, Any]) -> dict[str, Any]:
    if "body" not in data:
        return {name: value for name, value in data.items() if name != "custom_id"}
    extra = [name for name in data if name not in _ENVELOPE]
    if extra:
        raise FormatError(f"{extra[0]!r} stands beside the body", hint="put it into the body")
    if data.get("url", URLS[0]) not in URLS:
        raise FormatError(f"the url is {data['url']!r}", hint="a batch can ask " + " or ".join(URLS))
    return dict(_object("the body", data["body"]))


def _params(body: Mapping[str, Any], defaults: SamplingParams) -> SamplingParams:
    given = {name: kind(name, body[name]) for name, kind in _KINDS.items() if name in body and name not in ("logprobs", "stop")}
    if "max_completion_tokens" in body:
        given["max_tokens"] = _optional(_whole)("max_completion_tokens", body["max_completion_tokens"])
    if "stop" in body:
        stop = body["stop"]
        given["stop"] = () if stop is None else (stop,) if isinstance(stop, str) else _texts("stop", stop)
    wanted = body.get("logprobs")
    if isinstance(wanted, bool):
        given["logprobs"] = _whole("top_logprobs", body.get("top_logprobs") or 0) if wanted else None
    elif wanted is not None:
        given["logprobs"] = _whole("logprobs", wanted)
    return replace(defaults, **given)


def _grammar(body: Mapping[str, Any]) -> Grammar | None:
    shape = body.get("response_format")
    if shape is not None:
        kind = _object("response_format", shape).get("type")
        if kind == "json_object":
            return Grammar.json_object()
        if kind == "json_schema":
            inner = _object("json_schema of response_format", shape.get("json_schema"))
            return Grammar.json_schema(_object("schema of response_format", inner.get("schema")))
        if kind != "text":
            raise FormatError(f"response_format has the type {kind!r}", hint="types: text, json_object, json_schema")
    given = body.get("grammar")
    if given is None:
        return None
    (kind, value), *more = _object("grammar", given).items() or [("", None)]
    if more or kind not in _GRAMMARS:
        raise FormatError("grammar is an object of one field", hint="fields: " + ", ".join(_GRAMMARS))
    return _GRAMMARS[kind](_texts(kind, value) if kind == "choice" else value if kind == "json_schema" else _text(kind, value))


def _tool_choice(body: Mapping[str, Any]) -> tuple[Any, str | None]:
    choice, name = body.get("tool_choice", "auto"), _optional(_text)("tool_name", body.get("tool_name"))
    if isinstance(choice, dict):
        inner = _object("function of tool_choice", cast("Mapping[str, Any]", choice).get("function"))
        return "auto", _text("name of tool_choice", inner.get("name"))
    return _text("tool_choice", choice), name


def _prompt(value: Any) -> str | tuple[int, ...]:
    return value if isinstance(value, str) else _wholes("prompt", value)


_Kind = Callable[[str, Any], Any]


def _wrong(name: str, wanted: str, value: Any) -> FormatError:
    return FormatError(f"{name} is {json.dumps(value)[:100]}, it must be {wanted}", hint=f"correct {name}, or leave it out")


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(name, "an object", value)
    return cast("Mapping[str, Any]", value)


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(name, "a list", value)
    return cast("list[Any]", value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, "a text", value)
    return value


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, "a whole number", value)
    return value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(name, "a number", value)
    return float(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    return tuple(_text(f"an entry of {name}", entry) for entry in _list(name, value))


def _wholes(name: str, value: Any) -> tuple[int, ...]:
    return tuple(_whole(f"an entry of {name}", entry) for entry in _list(name, value))


def _bias(name: str, value: Any) -> dict[int, float]:
    found = _object(name, value)
    if not all(key.isascii() and key.isdecimal() for key in found):
        raise _wrong(name, "an object of token ids and numbers", value)
    return {int(key): _number(f"an entry of {name}", bias) for key, bias in found.items()}


def _optional(kind: _Kind) -> _Kind:
    return lambda name, value: None if value is None else kind(name, value)


_BY_TYPE: dict[str, _Kind] = {
    "float": _number,
    "int": _whole,
    "bool": _flag,
    "int | None": _optional(_whole),
    "tuple[int, ...]": _wholes,
    "tuple[int, ...] | None": _optional(_wholes),
    "tuple[str, ...]": _texts,
    "Mapping[int, float]": _bias,
}
_KINDS: dict[str, _Kind] = {field.name: _BY_TYPE[str(field.type)] for field in fields(SamplingParams)}
