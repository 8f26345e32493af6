"""Filters on attributes in OpenAI's form, read and told to the database as SQL; values are always bound, never spelled.

    {"type": "eq" | "ne" | "gt" | "gte" | "lt" | "lte", "key": K, "value": text, number or true/false}
    {"type": "in" | "nin", "key": K, "value": [...]}
    {"type": "and" | "or", "filters": [...]}

`ne` and `nin` are the opposites of `eq` and `in`: they hold where the attribute is absent or of another type. Order is that of numbers, or
of texts by code point; between different types nothing is larger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from sqlalchemy import ColumnElement, Numeric, String, and_, case, false, func, literal, not_, or_, select, true
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB

from herd.base.errors import UsageError
from herd.store.errors import UnstorableTextError

Value = str | int | float | bool
_COMPARISONS = ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin")
_ORDERED = ("gt", "gte", "lt", "lte")
MAX_NODES = 100
MAX_DEPTH = 8
MAX_KEYS = 16
MAX_KEY_CHARS = 64
MAX_VALUE_CHARS = 512


@dataclass(frozen=True, slots=True)
class Comparison:
    """One attribute against a value, or values."""

    type: str
    key: str
    value: Value | tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Compound:
    """All of these, or any."""

    type: Literal["and", "or"]
    filters: tuple[Filter, ...]


Filter = Comparison | Compound


def _wrong(message: str, hint: str) -> UsageError:
    error = UsageError(f"filters: {message}", hint=hint)
    error.param = "filters"  # type: ignore[attr-defined]
    return error


def read_filter(data: Any) -> Filter:
    """A filter as it came. Raises UsageError."""
    left = [MAX_NODES]
    return _read(data, left, 1)


def _read(data: Any, left: list[int], depth: int) -> Filter:
    left[0] -= 1
    if left[0] < 0 or depth > MAX_DEPTH:
        raise _wrong(f"there are over {MAX_NODES} of them, or they stand over {MAX_DEPTH} deep", "use fewer")
    if not isinstance(data, Mapping):
        raise _wrong(f"{data!r:.80} is no object", 'write {"type": "eq", "key": ..., "value": ...}')
    node = cast("Mapping[str, Any]", data)
    kind = node.get("type")
    if kind in ("and", "or"):
        inner = node.get("filters")
        if not isinstance(inner, Sequence) or isinstance(inner, str) or not inner:
            raise _wrong(f"{kind!r} has no `filters`", "give it a list of filters")
        return Compound(kind, tuple(_read(one, left, depth + 1) for one in cast("Sequence[Any]", inner)))
    if kind not in _COMPARISONS:
        raise _wrong(f"type is {kind!r:.80}", "choose one of " + ", ".join((*_COMPARISONS, "and", "or")))
    key, value = node.get("key"), node.get("value")
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY_CHARS:
        raise _wrong(f"key is {key!r:.80}", f"name an attribute of 1 to {MAX_KEY_CHARS} characters")
    if kind in ("in", "nin"):
        values = cast("list[Any]", value) if isinstance(value, list) else []
        left[0] -= len(values)
        if not values or left[0] < 0 or not all(_is_value(one) for one in values):
            raise _wrong(f"the value of {kind!r} is no list of texts, numbers or true/false", f"give 1 to {MAX_NODES} values")
        return Comparison(kind, key, tuple(values))
    if not _is_value(value) or (kind in _ORDERED and isinstance(value, bool)):
        raise _wrong(
            f"the value of {kind!r} is {value!r:.80}", "give a text or a number" + (", or true/false" if kind in ("eq", "ne") else "")
        )
    return Comparison(kind, key, cast("Value", value))


def _is_value(value: Any) -> bool:
    if isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return -(2**53) <= value <= 2**53  # also refuses NaN
    return isinstance(value, str) and len(value) <= MAX_VALUE_CHARS and storable(value)


def storable(text: str) -> bool:
    """Whether every database can hold a text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def check_attributes(attributes: Mapping[str, Any] | None) -> dict[str, Value] | None:
    """Attributes that filters can see. Raises UsageError."""
    if attributes is None:
        return None
    if len(attributes) > MAX_KEYS:
        raise UsageError(f"there are {len(attributes)} attributes of at most {MAX_KEYS}", hint="use fewer")
    for key, value in attributes.items():
        if not 0 < len(key) <= MAX_KEY_CHARS or not storable(key):
            raise UsageError(f"the attribute's name {key!r:.80} is none", hint=f"use 1 to {MAX_KEY_CHARS} characters")
        if isinstance(value, str) and not storable(value):
            raise UnstorableTextError(f"the attribute {key!r} holds a NUL character or half a character", hint="send whole UTF-8")
        if not _is_value(value):
            raise UsageError(
                f"the attribute {key!r} is {value!r:.80}", hint=f"use a text of up to {MAX_VALUE_CHARS} characters, a number or true/false"
            )
    return dict(attributes)


def condition(wanted: Filter, column: Any, *, sqlite: bool) -> ColumnElement[bool]:
    """The filter over a JSON column."""
    if isinstance(wanted, Compound):
        parts = [condition(one, column, sqlite=sqlite) for one in wanted.filters]
        return and_(true(), *parts) if wanted.type == "and" else or_(false(), *parts)
    one = _sqlite if sqlite else _postgresql
    if isinstance(wanted.value, tuple):
        found = or_(false(), *(one("eq", column, wanted.key, value) for value in wanted.value))
        return not_(found) if wanted.type == "nin" else found
    if wanted.type == "ne":
        return not_(one("eq", column, wanted.key, wanted.value))
    return one(wanted.type, column, wanted.key, wanted.value)


def _compared(kind: str, left: Any, right: Any) -> ColumnElement[bool]:
    return {"eq": left == right, "gt": left > right, "gte": left >= right, "lt": left < right, "lte": left <= right}[kind]


def _sqlite(kind: str, column: Any, key: str, value: Value) -> ColumnElement[bool]:
    """json_each finds a key whatever is in its name; types are looked at, since SQLite orders any text above any number."""
    each = func.json_each(column).table_valued("key", "value", "type").alias()
    if isinstance(value, bool):
        holds = each.c.type == ("true" if value else "false")
    elif isinstance(value, str):
        holds = and_(each.c.type == "text", _compared(kind, sql_cast(each.c.value, String), literal(value)))
    else:
        holds = and_(each.c.type.in_(("integer", "real")), _compared(kind, each.c.value, literal(value)))
    return select(literal(1)).select_from(each).where(each.c.key == key, holds).correlate(column.table).exists()


def _postgresql(kind: str, column: Any, key: str, value: Value) -> ColumnElement[bool]:
    found = func.jsonb_extract_path(column, key)
    if kind == "eq":
        same = found == sql_cast(literal(json.dumps(value), String), JSONB)  # 1 and 1.0 are the same, true and 1 are not
        return func.coalesce(same, false())
    text = func.jsonb_extract_path_text(column, key)
    if isinstance(value, str):
        return case((func.jsonb_typeof(found) == "string", _compared(kind, text.collate("C"), literal(value))), else_=false())
    return case((func.jsonb_typeof(found) == "number", _compared(kind, sql_cast(text, Numeric), literal(value, Numeric))), else_=false())
