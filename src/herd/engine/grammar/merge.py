"""What satisfies two schemas at once, keyword by keyword: for allOf, and for references and unions that stand beside other keywords."""

from __future__ import annotations

import math
from typing import Any

from herd.engine.grammar.keywords import Flat, Refuse, Schema, same

_LOWER = ("minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum")
_UPPER = ("maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum")


def merge(first: Flat, second: Flat, refuse: Refuse) -> Flat | None:
    """What satisfies both; None if their types or values exclude each other."""
    merged = {**first, **second}
    for word in first.keys() & second.keys():
        merged[word] = _merge_word(word, first[word], second[word], refuse)
        if merged[word] == [] and word in ("type", "enum"):
            return None
    if "properties" in merged:
        merged["properties"] = _merged_properties(first, second)
    if "prefixItems" in merged:
        merged["prefixItems"] = _merged_prefix(first, second)
    return merged


def _merge_word(word: str, first: Any, second: Any, refuse: Refuse) -> Any:
    if word == "type":
        return common_types(first, second)
    if word == "enum":
        return [value for value in first if any(same(value, other) for other in second)]
    if word in _LOWER:
        return max(first, second)
    if word in _UPPER:
        return min(first, second)
    if word in ("patterns", "required"):
        return list(dict.fromkeys([*first, *second]))
    if word in ("unevaluatedItems", "unevaluatedProperties"):
        return first and second
    if word in ("items", "additionalProperties"):
        return both(first, second)
    if word == "multipleOf" and isinstance(first, int) and isinstance(second, int):
        return math.lcm(first, second)
    if word in ("multipleOf", "patternProperties", "propertyNames") and first != second:
        raise refuse(f"two different {word} meet in one place", "write one that says both")
    return first


def both(first: Schema, second: Schema) -> Schema:
    """A schema that demands two."""
    if first is True or first == second:
        return second
    return first if second is True else {"allOf": [first, second]}


def common_types(first: list[str], second: list[str]) -> list[str]:
    """The types in both lists; a whole number is a number."""
    common = [name for name in first if name in second]
    for one, other in ((first, second), (second, first)):
        if "integer" in one and "integer" not in other and "number" in other and "integer" not in common:
            common.append("integer")
    return common


def _merged_properties(first: Flat, second: Flat) -> dict[str, Schema]:
    """The properties of both; one that the other does not name has to pass its additionalProperties."""
    mine, theirs = first.get("properties", {}), second.get("properties", {})
    merged = {name: both(schema, theirs.get(name, second.get("additionalProperties", True))) for name, schema in mine.items()}
    merged |= {name: both(first.get("additionalProperties", True), schema) for name, schema in theirs.items() if name not in mine}
    return merged


def _merged_prefix(first: Flat, second: Flat) -> list[Schema]:
    mine, theirs = first.get("prefixItems", []), second.get("prefixItems", [])
    length = max(len(mine), len(theirs))
    padded = [items + [flat.get("items", True)] * (length - len(items)) for flat, items in ((first, mine), (second, theirs))]
    return [both(one, other) for one, other in zip(*padded, strict=True)]
