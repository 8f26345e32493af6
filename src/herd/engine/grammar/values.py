"""Write the values that a JSON schema accepts, as JSON or as Python literals; both readers take the same value from what is written.

Order of properties is the schema's. Depth is unfolded (`max_depth`), so recursive schemas end, and a part that no finite value satisfies is
left out where it is optional and makes its owner impossible where it is not. A value is a Lark expression; None says there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from herd.engine.grammar.fields import Field, FieldWriter
from herd.engine.grammar.keywords import Flat, Schema, implied_types
from herd.engine.grammar.lark import LarkWriter, either, maybe, repeated
from herd.engine.grammar.scalars import Dialect, ScalarWriter
from herd.engine.grammar.schema import SchemaReader
from herd.engine.grammar.spec import GrammarLimits

MAX_PREFIX_ITEMS = 100


class ValueWriter:
    """Writes values of one schema document in one dialect."""

    def __init__(
        self, reader: SchemaReader, lark: LarkWriter, dialect: Dialect, limits: GrammarLimits, *, max_string: int | None = None
    ) -> None:
        self.reader, self.lark, self.dialect = reader, lark, dialect
        self.scalars = ScalarWriter(reader.refuse, lark, dialect, limits, max_string)
        self._limits, self._max_string = limits, max_string
        self._fields = FieldWriter(reader, lark, dialect.comma)
        self._written: dict[tuple[str, int], str | None] = {}

    def value(self, schema: Schema, depth: int = 0) -> str | None:
        """Any value that the schema accepts, `depth` brackets deep."""
        if schema is True or schema == {}:
            return self.anything(depth)
        pointer = self.reader.reference(schema)
        if pointer is not None:
            return self._reference(pointer, depth)
        options = self.reader.alternatives(schema)
        if options is not None:
            return either(self.value(option, depth) for option in options)
        return either(self._flat(flat, depth) for flat in self.reader.flatten(schema))

    def _reference(self, pointer: str, depth: int) -> str | None:
        if (pointer, depth) not in self._written:
            deepest = self._limits.max_depth if self.reader.recurs(pointer) else depth
            for inner in range(deepest, depth - 1, -1):  # from the inside out: each finds the next one written already
                self._write_reference(pointer, inner)
        return self._written[pointer, depth]

    def _write_reference(self, pointer: str, depth: int) -> None:
        if (pointer, depth) not in self._written:
            self._written[pointer, depth] = None  # a reference that comes back to itself at the same depth adds nothing
            body = self.value(self.reader.resolve(pointer), depth)
            self._written[pointer, depth] = None if body is None else self.lark.rule(body)

    def _flat(self, flat: Flat, depth: int) -> str | None:
        if "enum" in flat:
            return self.scalars.enum(flat)
        types = implied_types(flat)
        return self.anything(depth) if types is None else either(self._typed(name, flat, depth) for name in types)

    def _typed(self, name: str, flat: Flat, depth: int) -> str | None:
        if name == "null":
            return self.scalars.fixed(None)
        if name == "boolean":
            return self.scalars.fixed(True, False)
        if name == "string":
            return self.scalars.string(flat)
        if name in ("integer", "number"):
            return self.scalars.number(flat, integer=name == "integer")
        return self._array(flat, depth) if name == "array" else self.object(flat, depth)

    def anything(self, depth: int) -> str:
        """Any value at all, with as many brackets as are left."""
        key = ("", depth)
        if key not in self._written:
            inner = [self._array({}, depth), self.object({}, depth)]
            self._written[key] = self.lark.rule(either([*self.scalars.any_scalar(), *inner]) or "")
        return self._written[key] or ""

    def _array(self, flat: Flat, depth: int) -> str | None:
        if depth >= self._limits.max_depth:
            return None
        low, high = flat.get("minItems", 0), flat.get("maxItems")
        prefix = flat.get("prefixItems", [])
        if len(prefix) > MAX_PREFIX_ITEMS:
            raise self.reader.refuse(
                f"prefixItems has {len(prefix):,} schemas (limit {MAX_PREFIX_ITEMS})", "use items for those that are alike"
            )
        heads: list[str] = []
        for schema in prefix:
            head = self.value(schema, depth + 1)
            if head is None:
                high = len(heads) if high is None else min(high, len(heads))
                break
            heads.append(self.lark.rule(head))
        rest = self.value(flat.get("items", flat.get("unevaluatedItems", True)), depth + 1) if high is None or high > len(heads) else None
        if rest is None:
            high = len(heads) if high is None else min(high, len(heads))
        if high is not None and low > high:
            return None
        inner = self._items(heads if high is None else heads[:high], rest, low, high)
        return self.lark.rule(f"{self.dialect.bracket('[')} {inner} {self.dialect.bracket(']')}")

    def _items(self, heads: list[str], rest: str | None, low: int, high: int | None) -> str:
        """Heads in their order, then the rest; those past `low` may be missing from the end."""
        comma, body = self.dialect.comma, ""
        if rest is not None and (high is None or high > len(heads)):
            rest = self.lark.rule(rest)
            more = (max(0, low - len(heads)), None if high is None else high - len(heads))
            if heads:
                body = repeated(f"{comma} {rest}", *more)
            else:
                body = f"{rest} " + repeated(f"{comma} {rest}", max(0, low - 1), None if high is None else high - 1)
                body = body if low else maybe(body)
        for index in reversed(range(len(heads))):
            body = f"{comma + ' ' if index else ''}{heads[index]} {body}"
            body = body if index < low else maybe(self.lark.rule(body))
        return body

    def object(self, flat: Flat, depth: int) -> str | None:
        """An object."""
        if depth >= self._limits.max_depth:
            return None
        inner = self.fields(flat, depth, self.scalars.key)
        if inner is None:
            return None
        return self.lark.rule(f"{self.dialect.bracket('{')} {inner} {self.dialect.bracket('}')}")

    def fields(self, flat: Flat, depth: int, key: Callable[[str], str]) -> str | None:
        """The properties of an object, between its brackets; `key` spells a name and what follows it."""
        properties: Mapping[str, Schema] = flat.get("properties", {})
        required = flat.get("required", [])
        named = {**properties, **{name: flat.get("additionalProperties", True) for name in required if name not in properties}}
        self._fields.check(flat, named)
        written: list[Field] = []
        for name, schema in named.items():
            body = self.value(schema, depth + 1)
            if body is not None:
                written.append(Field(body=self.lark.rule(f"{key(name)} {self.lark.rule(body)}"), required=name in required))
            elif name in required:
                return None
        extra = self._extra(flat, named, depth)
        return self._fields.write(written, extra, flat.get("minProperties", 0), flat.get("maxProperties"))

    def _extra(self, flat: Flat, named: Mapping[str, Schema], depth: int) -> str | None:
        """A property that the schema does not name; None where there is to be none."""
        patterns: Mapping[str, Schema] = flat.get("patternProperties", {})
        is_open = "properties" not in flat and not patterns and flat.get("unevaluatedProperties", True)
        schema = flat.get("additionalProperties", is_open)
        if patterns and not named:
            [(pattern, schema)] = patterns.items()
            key = self.scalars.matching([pattern], 0, self._max_string)
        elif schema is False:
            return None
        else:
            key = self._free_key(flat, named)
        body = self.value(schema, depth + 1)
        return None if body is None or key is None else self.lark.rule(f"{key} {self.dialect.colon} {self.lark.rule(body)}")

    def _free_key(self, flat: Flat, named: Mapping[str, Schema]) -> str | None:
        if "propertyNames" in flat:
            return either(
                self._flat({**inner, "type": ["string"]}, 0) for inner in self.reader.flatten(flat["propertyNames"]) if _for_text(inner)
            )
        return self.scalars.name(named)


def _for_text(flat: Flat) -> bool:
    types = implied_types(flat)
    return types is None or "string" in types
