"""The keywords of one schema, checked: each has a value of its kind, and none is there that cannot be enforced.

Source: JSON Schema 2020-12. What cannot be enforced token by token is refused by name, never left out in silence; words without force
(title, description, examples, unknown ones) are passed over. Older drafts' exclusive flags and lists of items are read too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from herd.base.errors import FormatError

Schema = Any
Flat = dict[str, Any]
"""Checked keywords of one place, without references and combinations; `pattern` is the list `patterns`, `const` an `enum` of one."""
Refuse = Callable[[str, str], FormatError]
"""Makes the error of a problem, with a hint."""
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_UNSUPPORTED = (
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "contains", "minContains", "maxContains"),
    *("$dynamicRef", "$recursiveRef", "uniqueItems"),
)
KEYWORDS_OF: dict[str, tuple[str, ...]] = {
    "string": ("minLength", "maxLength", "patterns", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "unevaluatedItems"),
    "object": (
        *("properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties", "maxProperties"),
        "unevaluatedProperties",
    ),
}
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_MAX_COUNT = 2**31 - 1


def as_keywords(schema: Schema, refuse: Refuse) -> Mapping[str, Any]:
    """The schema as keywords. Raises FormatError for what is no schema and for keywords that cannot be enforced."""
    if not isinstance(schema, Mapping):
        raise refuse(f"{schema!r:.80} stands where a schema should", 'a schema is an object such as {"type": "string"}, true or false')
    keywords = cast("Mapping[str, Any]", schema)
    for word in _UNSUPPORTED:
        if word in keywords and not (word == "uniqueItems" and keywords[word] is False):
            raise refuse(f"{word!r} cannot be enforced while the answer is written", f"leave {word} out and check the answer against it")
    return keywords


def read_keywords(keywords: Mapping[str, Any], refuse: Refuse) -> Flat:
    """The keywords with force that stand in this very schema."""
    flat: Flat = {}
    for word, value in keywords.items():
        reader = _READERS.get(word)
        if reader is not None:
            reader(refuse, flat, word, value, keywords)
    return flat


def same(first: Any, second: Any) -> bool:
    """Equality of JSON values, in which true is not 1."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    return first == second


def json_types(value: Any) -> tuple[str, ...]:
    """The types that a JSON value has."""
    if value is None:
        return ("null",)
    if isinstance(value, bool):
        return ("boolean",)
    if isinstance(value, (int, float)):
        return ("integer", "number") if isinstance(value, int) or value.is_integer() else ("number",)
    return ("string",) if isinstance(value, str) else ("array",) if isinstance(value, list) else ("object",)


def types_of(flat: Flat) -> list[str]:
    """The types that answers to a flat schema may have: said, or implied by its keywords; all where it says nothing."""
    if "enum" in flat:
        return list(dict.fromkeys(name for value in flat["enum"] for name in json_types(value)))
    if "type" in flat:
        return flat["type"]
    implied = [name for name, words in KEYWORDS_OF.items() if any(word in flat for word in words)]
    return implied or list(TYPES)


def implied_types(flat: Flat) -> list[str] | None:
    """The types to write; None for anything at all."""
    types = types_of(flat)
    return None if "type" not in flat and "enum" not in flat and types == list(TYPES) else types


_Reader = Callable[[Refuse, Flat, str, Any, Mapping[str, Any]], None]


def _read_type(refuse: Refuse, flat: Flat, word: str, value: Any, _: Mapping[str, Any]) -> None:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or any(name not in TYPES for name in cast("list[Any]", names)):
        raise refuse(f"type is {value!r:.80}", "types: " + ", ".join(TYPES))
    flat[word] = list(dict.fromkeys(cast("list[str]", names)))


def _read_enum(refuse: Refuse, flat: Flat, word: str, value: Any, keywords: Mapping[str, Any]) -> None:
    if word == "enum" and (not isinstance(value, list) or not value):
        raise refuse(f"enum is {value!r:.80}", "it is a list of at least one value")
    values: list[Any] = [value] if word == "const" else value
    kept = flat.get("enum")
    flat["enum"] = values if kept is None else [item for item in kept if any(same(item, other) for other in values)]


def _read_count(refuse: Refuse, flat: Flat, word: str, value: Any, _: Mapping[str, Any]) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value != int(value):
        raise refuse(f"{word} is {value!r:.80}", "it is a whole number, 0 or more")
    flat[word] = min(int(value), _MAX_COUNT)


def _read_number(refuse: Refuse, flat: Flat, word: str, value: Any, keywords: Mapping[str, Any]) -> None:
    if word.startswith("exclusive") and isinstance(value, bool):  # drafts up to 4: a flag beside the bound
        if value:
            _read_number(refuse, flat, word, keywords.get("minimum" if word == "exclusiveMinimum" else "maximum"), {})
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (word == "multipleOf" and value <= 0):
        raise refuse(f"{word} is {value!r:.80}", "it is a number" + (" over 0" if word == "multipleOf" else ""))
    flat[word] = int(value) if word == "multipleOf" and isinstance(value, float) and value.is_integer() else value


def _read_text(refuse: Refuse, flat: Flat, word: str, value: Any, _: Mapping[str, Any]) -> None:
    if not isinstance(value, str):
        raise refuse(f"{word} is {value!r:.80}", "it is a text")
    if word == "pattern":
        flat["patterns"] = [value]
    else:
        flat[word] = value


def _read_required(refuse: Refuse, flat: Flat, word: str, value: Any, _: Mapping[str, Any]) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in cast("list[Any]", value)):
        raise refuse(f"required is {value!r:.80}", "it is a list of property names")
    flat[word] = list(dict.fromkeys(cast("list[str]", value)))


def _read_named(refuse: Refuse, flat: Flat, word: str, value: Any, _: Mapping[str, Any]) -> None:
    if not isinstance(value, Mapping):
        raise refuse(f"{word} is {value!r:.80}", "it is an object of names and schemas")
    flat[word] = dict(cast("Mapping[str, Any]", value))


def _read_items(refuse: Refuse, flat: Flat, word: str, value: Any, keywords: Mapping[str, Any]) -> None:
    """`items` and `prefixItems`; also the spelling of older drafts, a list of items with `additionalItems` for the rest."""
    if word == "prefixItems" and not isinstance(value, list):
        raise refuse(f"prefixItems is {value!r:.80}", "it is a list of schemas")
    if isinstance(value, list):
        flat["prefixItems"] = cast("list[Any]", value)
        if word == "items":
            flat["items"] = keywords.get("additionalItems", True)
    else:
        flat["items"] = value


def _read_schema(refuse: Refuse, flat: Flat, word: str, value: Any, _: Mapping[str, Any]) -> None:
    flat[word] = value


def _read_rest(refuse: Refuse, flat: Flat, word: str, value: Any, _: Mapping[str, Any]) -> None:
    if not isinstance(value, bool):
        raise refuse(f"{word} is {value!r:.80}", "true or false can be enforced")
    flat[word] = value


_READERS: dict[str, _Reader] = {
    "type": _read_type,
    "enum": _read_enum,
    "const": _read_enum,
    **dict.fromkeys(_COUNTS, _read_count),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), _read_number),
    "pattern": _read_text,
    "format": _read_text,
    "required": _read_required,
    "properties": _read_named,
    "patternProperties": _read_named,
    "prefixItems": _read_items,
    "items": _read_items,
    "additionalProperties": _read_schema,
    "propertyNames": _read_schema,
    "unevaluatedProperties": _read_rest,
    "unevaluatedItems": _read_rest,
}
