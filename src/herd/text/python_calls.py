"""Calls written as Python: `name(key="value", n=3)`, in the list format of Llama 3.2 and in the built-in form `tool.call(query="...")`.

Parsed by Python's own grammar, never run: only keyword arguments with literal values that JSON can hold too are calls, anything else is
not one. Length and nesting are bounded before the parser sees the text, so its time is linear and its stack safe.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from herd.base.errors import FormatError
from herd.text.messages import ToolCall

MAX_CHARS = 200_000
MAX_DEPTH = 64


def too_deep(text: Iterable[str]) -> bool:
    """Whether brackets nest beyond what a call may hold."""
    depth = 0
    for character in text:
        if character in "([{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif character in ")]}":
            depth -= 1
    return False


def outside_strings(text: str, quotes: str) -> Iterator[str]:
    """The characters that stand in no string; what is no code may be taken for one, so this bounds nothing that Python itself does not."""
    open_quote, escaped = "", False
    for character in text:
        if open_quote:
            closes = character == open_quote and not escaped
            open_quote, escaped = "" if closes else open_quote, character == "\\" and not escaped
        elif character in quotes:
            open_quote = character
        else:
            yield character


def _parse(text: str) -> ast.expr | None:
    if len(text) > MAX_CHARS or (too_deep(text) and too_deep(outside_strings(text, "\"'"))):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _name(node: ast.expr) -> str | None:
    """A dotted name, or None."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _call(node: ast.expr) -> ToolCall | None:
    if not isinstance(node, ast.Call) or node.args:
        return None
    name = _name(node.func)
    if name is None:
        return None
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            return None
        try:
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return None
    return ToolCall(name=name, arguments=arguments) if _is_json(arguments) else None


def _is_json(arguments: Mapping[str, Any]) -> bool:
    """Whether arguments can leave as JSON: no sets, bytes, ellipses, infinities, numbers of thousands of digits, nor values too deep."""
    try:
        text = json.dumps(arguments, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return False
    return not too_deep(outside_strings(text, '"'))


def parse_call_list(text: str) -> tuple[ToolCall, ...] | None:
    """The calls of `[f(a=1), g()]`, or None if the text is not exactly such a list with at least one call."""
    node = _parse(text)
    if not isinstance(node, ast.List) or not node.elts:
        return None
    calls = [_call(element) for element in node.elts]
    return None if None in calls else tuple(call for call in calls if call is not None)


def parse_method_call(text: str) -> ToolCall | None:
    """The call of `tool.call(query="...")`, named `tool`; None if the text is not exactly that.

    A query that Python cannot read is taken from between the first quote and the last: unescaped quotes, as models write them, and
    what passes the bounds.
    """
    text = text.strip()
    node = _parse(text)
    call = None if node is None else _call(node)
    if call is not None:
        return ToolCall(name=call.name.removesuffix(".call"), arguments=call.arguments) if call.name.endswith(".call") else None
    name, found, rest = text.partition('.call(query="')
    if found and name.isidentifier() and rest.endswith('")'):
        return ToolCall(name=name, arguments={"query": _unescaped(rest[:-2])})
    return None


def _unescaped(text: str) -> str:
    """What a JSON string of this inside says, as `tool_calls` renders queries; the text itself if it is none."""
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return text


def render_call(name: str, arguments: Mapping[str, Any]) -> str:
    """`name(key='value', n=3)`. Raises FormatError for names and values that Python cannot spell."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise FormatError(f"the tool name {name!r} is not a Python name", hint="rename the tool, or use the JSON tool-call format")
    wrong = [key for key in arguments if not key.isidentifier()]
    if wrong:
        raise FormatError(f"the argument name {wrong[0]!r} of {name} is not a Python name", hint="use the JSON tool-call format")
    text = f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    if parse_call_list(f"[{text}]") != (ToolCall(name=name, arguments=dict(arguments)),):
        raise FormatError(f"the arguments of {name} are not Python literals: {text[:120]}", hint="use the JSON tool-call format")
    return text
