"""Tool calls as the model writes them: built-in `name.call(query="...")`, JSON, `<function=NAME>{...}</function>`, a Python list, raw code.

Rendering, and the parsing of one whole call; `reply` decides where calls stand in an answer. JSON is read by a JSON parser as it is: no
quote is ever replaced. Times are linear in the text. Formats: Llama 3.1 and 3.2 prompt format documents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from keyword import iskeyword
from typing import Any, Literal, cast

from herd.base.errors import FormatError
from herd.text.messages import BUILTIN_TOOLS, CODE_INTERPRETER, ToolCall
from herd.text.python_calls import outside_strings, parse_call_list, parse_method_call, render_call, too_deep

ToolStyle = Literal["json", "function", "python_list"]
"""How calls of tools that the caller defines are written."""
TOOL_STYLES: tuple[ToolStyle, ...] = ("json", "function", "python_list")

FUNCTION_OPEN, FUNCTION_CLOSE = "<function=", "</function>"


def json_text(value: Any, **options: Any) -> str:
    """JSON as Python's default separators write it, characters kept. Raises FormatError for values JSON has no word for."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, **options)
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(
            f"not JSON: {error}", hint="arguments are made of objects, lists, strings, finite numbers, true, false and null"
        ) from error


def render_builtin(call: ToolCall) -> str:
    """A built-in call. A query with quotes, backslashes or line ends is escaped as a string literal, so that it parses back to itself."""
    if call.name == CODE_INTERPRETER:
        return str(call.arguments.get("code", ""))
    wrong = [key for key in call.arguments if not key.isidentifier() or iskeyword(key)]
    if wrong:
        raise FormatError(
            f"the argument name {wrong[0]!r} of {call.name} is not a Python name", hint='built-in tools take one argument, "query"'
        )
    arguments = ", ".join(f"{key}={json_text(str(value))}" for key, value in call.arguments.items())
    return f"{call.name}.call({arguments})"


def render_custom(calls: Sequence[ToolCall], style: ToolStyle) -> str:
    """Calls of the caller's tools. Raises FormatError for several calls in a format that carries one."""
    if style == "python_list":
        return "[" + ", ".join(render_call(call.name, call.arguments) for call in calls) + "]"
    if style == "function":
        return "".join(f"{FUNCTION_OPEN}{_function_name(call)}>{json_text(call.arguments)}{FUNCTION_CLOSE}" for call in calls)
    return "; ".join(json_text({"type": "function", "name": call.name, "parameters": call.arguments}) for call in calls)


def _function_name(call: ToolCall) -> str:
    if any(character in call.name for character in '<>"\n') or call.name != call.name.strip() or not call.name:
        raise FormatError(f"the tool name {call.name!r} cannot stand in a <function=...> tag", hint="rename the tool")
    return call.name


def _object_call(value: Any) -> ToolCall | None:
    """The call that a JSON object is, in any of the shapes that Llama models write; None if it is none."""
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    inner = fields.get("function")
    if isinstance(inner, dict) and "name" not in fields:
        fields = cast("dict[str, Any]", inner)
    name = fields.get("name", fields.get("function"))
    arguments = fields.get("parameters", fields.get("arguments"))
    if isinstance(arguments, str):
        arguments = _loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name=name, arguments=cast("dict[str, Any]", arguments))


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is not a finite number")
    return value


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
"""A decoder of what `json_text` can write again: `NaN`, `Infinity` and 1e999 are no JSON."""


def _too_deep(text: str) -> bool:
    """Whether objects and lists nest beyond what a call may hold. Brackets inside strings do not count."""
    return too_deep(text) and too_deep(outside_strings(text, '"'))


def _loads(text: str) -> Any:
    if _too_deep(text):
        return None
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def parse_json_calls(text: str) -> tuple[ToolCall, ...] | None:
    """One call object, or several with white space, `;` or `,` between them, or a JSON list of them; None if the text is anything else."""
    if _too_deep(text):
        return None
    values: list[Any] = []
    position = _skip(text, 0)
    while position < len(text):
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            return None
        values.extend(cast("list[Any]", value) if isinstance(value, list) else [value])
        position = _skip(text, position)
    calls = [_object_call(value) for value in values]
    return tuple(call for call in calls if call is not None) if calls and None not in calls else None


def _skip(text: str, position: int, skipped: str = " \t\r\n;,") -> int:
    """The next place that is neither white space nor a separator of calls."""
    while position < len(text) and text[position] in skipped:
        position += 1
    return position


def parse_function_tags(text: str) -> tuple[tuple[ToolCall, ...], str]:
    """The calls that a text opens with as `<function=NAME>{...}</function>`, and the text after them. A last closing tag may be missing."""
    calls: list[ToolCall] = []
    position = len(text) if _too_deep(text) else _skip(text, 0)
    end = 0
    while text.startswith(FUNCTION_OPEN, position):
        bracket = text.find(">", position)
        try:
            value, after = _DECODER.raw_decode(text, _skip(text, bracket + 1, " \t\r\n"))
        except (ValueError, RecursionError):
            break
        name = text[position + len(FUNCTION_OPEN) : bracket].strip().strip('"')
        if bracket < 0 or not name or not isinstance(value, dict):
            break
        calls.append(as_builtin(ToolCall(name=name, arguments=cast("dict[str, Any]", value))))
        close = _skip(text, after, " \t\r\n")
        end = close + len(FUNCTION_CLOSE) if text.startswith(FUNCTION_CLOSE, close) else after
        position = _skip(text, end)
    return tuple(calls), text[end:]


def as_builtin(call: ToolCall, builtin: Sequence[str] = BUILTIN_TOOLS) -> ToolCall:
    """A call of a built-in tool in a custom format, with its first argument taken as the query, as Meta's parser does."""
    if call.name not in builtin or call.name == CODE_INTERPRETER or "query" in call.arguments or not call.arguments:
        return call
    return ToolCall(name=call.name, arguments={"query": next(iter(call.arguments.values()))}, id=call.id)


def parse_calls(text: str) -> tuple[ToolCall, ...] | None:
    """The calls that a whole text is, in whichever format; None if it is not calls and nothing else."""
    stripped = text.strip()
    if stripped.startswith(FUNCTION_OPEN):
        tagged, rest = parse_function_tags(stripped)
        return tagged if tagged and not rest.strip() else None
    if stripped.startswith("{"):
        return _mapped(parse_json_calls(stripped))
    if stripped.startswith("["):
        return _mapped(parse_call_list(stripped) or parse_json_calls(stripped))
    call = parse_method_call(stripped) if ".call(" in stripped[:80] else None
    return (call,) if call is not None and call.name in BUILTIN_TOOLS else None


def _mapped(calls: tuple[ToolCall, ...] | None) -> tuple[ToolCall, ...] | None:
    return None if calls is None else tuple(as_builtin(call) for call in calls)
