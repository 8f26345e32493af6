"""Arguments against a tool's JSON Schema. Both are hostile: a model writes the one, a foreign server may have written the other.

Patterns run on an engine that is linear in the text, references to other documents are refused rather than fetched, and what is wrong is
said in words that a model can act on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jsonschema_rs

from herd.base.errors import FormatError
from herd.tools.errors import ToolArgumentsError

_MAX_DEPTH = 64
_MAX_SCHEMA_BYTES = 256 * 1024
_SHOWN_CHARS = 300
_SHOWN_PROBLEMS = 5


def _refuse(uri: str) -> Any:
    raise ValueError(f"references to other documents are not followed: {uri[:200]}")


@lru_cache(maxsize=512)
def _validator(schema_text: str) -> Any:
    return jsonschema_rs.Draft202012Validator(
        json.loads(schema_text), retriever=_refuse, pattern_options=jsonschema_rs.RegexOptions(), validate_formats=False
    )


def check_schema(name: str, schema: Mapping[str, Any]) -> None:
    """Whether a tool's parameters are a usable JSON Schema of an object. Raises FormatError."""
    hint = 'give a JSON Schema: {"type": "object", "properties": {...}, "required": [...]}'
    try:
        text = json.dumps(schema, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"the parameters of {name!r} are not JSON", hint=hint) from error
    if len(text) > _MAX_SCHEMA_BYTES:
        raise FormatError(f"the parameters of {name!r} take {len(text)} bytes of at most {_MAX_SCHEMA_BYTES}", hint="shorten them")
    if schema.get("type", "object") != "object":
        raise FormatError(f"the parameters of {name!r} are of type {schema.get('type')!r}, not 'object'", hint=hint)
    try:
        _validator(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the parameters of {name!r} are no JSON Schema: {str(error)[:_SHOWN_CHARS]}", hint=hint) from error


def check_arguments(name: str, schema: Mapping[str, Any], arguments: Any, *, max_bytes: int) -> Mapping[str, Any]:
    """The arguments, which are what the schema says. Raises ToolArgumentsError, which names each place that is not."""
    hint = "call the tool again with arguments that fit its parameters"
    if not isinstance(arguments, Mapping):
        raise ToolArgumentsError(f"the arguments of {name} are no JSON object", hint=hint)
    _check_values(name, arguments, 0)
    text = json.dumps(arguments, ensure_ascii=True)
    if len(text) > max_bytes:
        raise ToolArgumentsError(f"the arguments of {name} take {len(text)} bytes of at most {max_bytes}", hint="send less")
    # What was parsed from this text is plain JSON whatever kind of mapping came, and nobody else holds a reference to it.
    plain: dict[str, Any] = json.loads(text)
    problems = _problems(schema, plain)
    if problems:
        raise ToolArgumentsError(f"the arguments of {name} do not fit: {'; '.join(problems)}", hint=hint)
    return plain


def _problems(schema: Mapping[str, Any], arguments: dict[str, Any]) -> list[str]:
    validator = _validator(json.dumps(schema, sort_keys=True))
    found: list[str] = []
    for error in validator.iter_errors(arguments):
        place = "/".join(str(part) for part in error.instance_path)
        found.append(f"{place}: {error.message}"[:_SHOWN_CHARS] if place else error.message[:_SHOWN_CHARS])
        if len(found) == _SHOWN_PROBLEMS:
            break
    return found


def _check_values(name: str, value: Any, depth: int) -> None:
    """Only JSON, no deeper than anything sensible, and strings that have an encoding."""
    hint = "arguments are made of objects, lists, strings, finite numbers, true, false and null"
    if depth > _MAX_DEPTH:
        raise ToolArgumentsError(f"the arguments of {name} nest deeper than {_MAX_DEPTH}", hint="send flatter arguments")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ToolArgumentsError(f"the arguments of {name} have a key that is no string", hint=hint)
            _check_values(name, key, depth)
            _check_values(name, item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_values(name, item, depth + 1)
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ToolArgumentsError(f"the arguments of {name} hold a lone surrogate", hint="send text that is Unicode")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ToolArgumentsError(f"the arguments of {name} hold {value}, which JSON has no word for", hint=hint)
    elif not isinstance(value, (bool, int, type(None))):
        raise ToolArgumentsError(f"the arguments of {name} hold a {type(value).__name__}", hint=hint)
