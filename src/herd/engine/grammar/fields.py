"""Write a sequence of named parts, required or not, with commas between those that are there: properties, arguments.

Without bounds on their number it is a choice of the first part, then what may follow it, in blocks, so that a thousand optional parts
neither nest deeply nor repeat each other. With bounds it is one rule for each (next part, parts so far).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from herd.engine.grammar.keywords import Flat, Schema
from herd.engine.grammar.lark import LarkWriter, either, maybe, repeated
from herd.engine.grammar.schema import SchemaReader

MAX_FIELDS = 1_000
MAX_COUNTED_FIELDS = 64
_BLOCK = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One part: the name of the rule that writes it."""

    body: str
    required: bool


class FieldWriter:
    """Writes sequences for one document."""

    def __init__(self, reader: SchemaReader, lark: LarkWriter, comma: str) -> None:
        self._reader, self._lark, self._comma = reader, lark, comma

    def check(self, flat: Flat, named: Mapping[str, Schema]) -> None:
        """Refuse what no sequence can promise."""
        patterns: Mapping[str, Schema] = flat.get("patternProperties", {})
        if len(named) > MAX_FIELDS:
            raise self._reader.refuse(
                f"an object has {len(named):,} properties (limit {MAX_FIELDS:,})", "split it, or group its properties"
            )
        if (named and any(schema is not True and schema != {} for schema in patterns.values())) or (not named and len(patterns) > 1):
            raise self._reader.refuse(
                "patternProperties stand beside other properties",
                "one pattern alone can be enforced: use additionalProperties for the rest",
            )
        if named and "propertyNames" in flat:
            raise self._reader.refuse("propertyNames stand beside properties", "leave propertyNames out")

    def write(self, fields: list[Field], extra: str | None, low: int, high: int | None) -> str | None:
        """The sequence with at least `low` parts and at most `high`; None if there is none."""
        num_required = sum(field.required for field in fields)
        if low > len(fields) + (extra is not None):
            if extra is None:
                return None
            raise self._reader.refuse(f"minProperties is {low:,}", "it can be one more than the named properties: free names may repeat")
        if low <= num_required and (high is None or (extra is None and high >= len(fields))):
            return self._open(fields, extra)
        if num_required == len(fields):
            rest = None if high is not None and high < len(fields) else self._extras(extra, low, high, len(fields))
            return None if rest is None else " ".join([f" {self._comma} ".join(field.body for field in fields), rest])
        if len(fields) > MAX_COUNTED_FIELDS:
            raise self._reader.refuse(
                f"minProperties or maxProperties count {len(fields):,} properties (limit {MAX_COUNTED_FIELDS})", "leave the bounds out"
            )
        return self._counted(fields, extra, low, high)

    def _open(self, fields: list[Field], extra: str | None) -> str:
        tail = self._tails(fields, extra)
        heads: list[str | None] = []
        for index, field in enumerate(fields):
            heads.append(f"{field.body} {tail(index + 1)}")
            if field.required:
                return either(heads) or ""
        if extra is not None:
            heads.append(f"{extra} {tail(len(fields))}")
        chosen = either(heads)
        return "" if chosen is None else maybe(chosen)

    def _tails(self, fields: list[Field], extra: str | None) -> Callable[[int], str]:
        """What may follow when something stands before: the parts from an index on, to the end of its block, then the next block."""
        parts = [f"{self._comma} {field.body}" if field.required else maybe(f"{self._comma} {field.body}") for field in fields]

        @cache
        def tail(index: int) -> str:
            if index == len(fields):
                return "" if extra is None else self._lark.rule(repeated(f"{self._comma} {extra}", 0, None))
            end = min((index // _BLOCK + 1) * _BLOCK, len(fields))
            return self._lark.rule(" ".join([*parts[index:end], tail(end)]).rstrip())

        return tail

    def _counted(self, fields: list[Field], extra: str | None, low: int, high: int | None) -> str | None:
        """From the last part to the first: what may follow when so many parts stand before it."""
        after = [self._extras(extra, low, high, count) for count in range(len(fields) + 1)]
        for field in reversed(fields):
            before: list[str | None] = []
            for count in range(len(fields)):
                rest = None if high is not None and count >= high else after[count + 1]
                taken = None if rest is None else f"{self._comma + ' ' if count else ''}{field.body} {rest}"
                choice = either([taken, None if field.required else after[count]])
                before.append(self._lark.rule(choice) if choice else choice)
            after = [*before, None]
        return after[0]

    def _extras(self, extra: str | None, low: int, high: int | None, count: int) -> str | None:
        missing, room = max(0, low - count), None if high is None else high - count
        if extra is None or room == 0:
            return None if missing else ""
        if count:
            return repeated(f"{self._comma} {extra}", missing, room)
        body = f"{extra} " + repeated(f"{self._comma} {extra}", missing - 1, None if room is None else room - 1)
        return body if missing else maybe(body)
