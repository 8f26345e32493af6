"""Random JSON schemas of the kinds that people write: nested, with references, unions, bounds, enums, formats, unicode, large."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]
_WORDS = [
    "name",
    "città",
    "数学",
    "a b",
    'quote"d',
    "back\\slash",
    "x",
    "é",
    "type",
    "items",
    "tab\there",
    "प्रकार",
    "$ref",
    "smile😀",
    "z_9",
    "-",
]
_PATTERNS = ["^[a-z]{1,8}$", r"^\d{3}-\d{4}$", "ab+c", "^(yes|no)$", r"^[A-Z][a-z]*( [A-Z][a-z]*){0,2}$", 'say "hi"', r"\\d", "^a|b$"]
_FORMATS = ["date", "time", "date-time", "uuid", "email", "ipv4", "ipv6", "hostname", "uri", "duration", "no-such-format"]


def random_schema(seed: int) -> Schema:
    """One schema; the same seed gives the same."""
    return _Maker(random.Random(seed)).document(large=seed % 25 == 0)


class _Maker:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.names: list[str] = []

    def document(self, *, large: bool) -> Schema:
        rng = self.rng
        if large:
            return self.object(1, count=rng.randint(60, 200))
        self.names = [f"def{index}" for index in range(rng.randint(0, 3))]
        definitions = {name: self.schema(2, recursive=True) for name in self.names}
        root = self.schema(4) if rng.random() < 0.5 else self.object(3)
        return {**root, "$defs": definitions} if definitions else root

    def schema(self, budget: int, *, recursive: bool = False) -> Schema:
        rng = self.rng
        leaves = [self.string, self.integer, self.number, self.enum, self.const, self.simple]
        if budget <= 0 or rng.random() < 0.25:
            return rng.choice(leaves)()
        inner = [self.object, self.array, self.prefix, self.any_of, self.one_of, self.all_of, self.map]
        if self.names and rng.random() < 0.3:
            return {"$ref": f"#/$defs/{rng.choice(self.names)}"} if not recursive else self.guarded(rng.choice(self.names))
        return rng.choice(inner)(budget - 1)

    def guarded(self, name: str) -> Schema:
        """A reference that may recur, behind something optional."""
        reference = {"$ref": f"#/$defs/{name}"}
        return self.rng.choice(
            [{"type": "array", "items": reference}, {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"in": reference}}]}]
        )

    def string(self) -> Schema:
        rng = self.rng
        schema: Schema = {"type": "string"}
        kind = rng.randrange(5)
        if kind == 0:
            schema["minLength"] = rng.randint(0, 4)
            schema["maxLength"] = schema["minLength"] + rng.randint(0, 6)
        elif kind == 1:
            schema["pattern"] = rng.choice(_PATTERNS)
            # A model that knows nothing would wait for ever for what a pattern wants somewhere.
            if rng.random() < 0.3 or not schema["pattern"].startswith("^"):
                schema["maxLength"] = rng.randint(8, 30)
        elif kind == 2:
            schema["format"] = rng.choice(_FORMATS)
        return schema

    def integer(self) -> Schema:
        rng = self.rng
        schema: Schema = {"type": "integer"}
        if rng.random() < 0.6:
            schema[rng.choice(["minimum", "exclusiveMinimum"])] = rng.choice([0, 1, -5, -1000, 7, 2.5, 10**9])
        if rng.random() < 0.5:
            schema[rng.choice(["maximum", "exclusiveMaximum"])] = rng.choice([10**9 + 50, 10**9 + 51.5, 10**12])
        if rng.random() < 0.2:
            schema["multipleOf"] = rng.choice([2, 3, 10, 7.0])
        return schema

    def number(self) -> Schema:
        rng = self.rng
        schema: Schema = {"type": "number"}
        if rng.random() < 0.6:
            schema[rng.choice(["minimum", "exclusiveMinimum"])] = rng.choice([0, -1, -0.5, 0.25, 3.125, -273.15, 1e6])
        if rng.random() < 0.5:
            schema[rng.choice(["maximum", "exclusiveMaximum"])] = rng.choice([1e6 + 1, 2e6, 1e9 + 0.5, 1e40])
        return schema

    def enum(self) -> Schema:
        rng = self.rng
        pool: list[Any] = [None, True, False, 0, 1.5, -3, 10**20, *_WORDS, [1, "a"], {"k": [None]}, []]
        return {"enum": rng.sample(pool, rng.randint(1, 6))}

    def const(self) -> Schema:
        return {"const": self.rng.choice([None, True, 42, -0.5, "fixed", "é\n\"'", [1, 2, {"a": "b"}], {}])}

    def simple(self) -> Schema:
        return self.rng.choice(
            [{"type": "boolean"}, {"type": "null"}, {}, {"type": ["string", "null"]}, {"type": ["integer", "boolean", "string"]}]
        )

    def object(self, budget: int, *, count: int | None = None) -> Schema:
        rng = self.rng
        size = rng.randint(0, 5) if count is None else count
        names = rng.sample(_WORDS, size) if count is None else [f"{rng.choice(_WORDS)}{index}" for index in range(size)]
        schema: Schema = {"type": "object", "properties": {name: self.schema(budget - 1 if count is None else 0) for name in names}}
        if names and rng.random() < 0.8:
            schema["required"] = rng.sample(names, rng.randint(0, len(names)))
        if rng.random() < 0.3:
            schema["additionalProperties"] = rng.choice([False, True, self.schema(0)])
        elif rng.random() < 0.2 and names and count is None:
            schema["minProperties"] = rng.randint(1, len(names))
            schema["maxProperties"] = rng.randint(max(schema["minProperties"], len(schema.get("required", []))), len(names))
        return schema

    def map(self, budget: int) -> Schema:
        rng = self.rng
        schema: Schema = {"type": "object", "additionalProperties": self.schema(budget - 1)}
        kind = rng.randrange(3)
        if kind == 0:
            schema["propertyNames"] = {"pattern": "^[a-z]+$"}
        elif kind == 1:
            schema = {"type": "object", "patternProperties": {"^k[0-9]$": self.schema(budget - 1)}, "additionalProperties": False}
        if rng.random() < 0.3:
            schema["maxProperties"] = rng.randint(0, 3)
        return schema

    def array(self, budget: int) -> Schema:
        rng = self.rng
        schema: Schema = {"type": "array", "items": self.schema(budget - 1)}
        if rng.random() < 0.5:
            schema["minItems"] = rng.randint(0, 3)
        if rng.random() < 0.5:
            schema["maxItems"] = schema.get("minItems", 0) + rng.randint(0, 3)
        return schema

    def prefix(self, budget: int) -> Schema:
        rng = self.rng
        schema: Schema = {"type": "array", "prefixItems": [self.schema(budget - 1) for _ in range(rng.randint(1, 3))]}
        if rng.random() < 0.6:
            schema["items"] = rng.choice([False, True, self.schema(0)])
        if rng.random() < 0.5:
            schema["minItems"] = rng.randint(0, len(schema["prefixItems"]))
        if rng.random() < 0.3:
            schema["maxItems"] = rng.randint(schema.get("minItems", 0), 5)
        return schema

    def any_of(self, budget: int) -> Schema:
        return {"anyOf": [self.schema(budget - 1) for _ in range(self.rng.randint(1, 4))]}

    def one_of(self, budget: int) -> Schema:
        options = [
            {"type": "object", "properties": {"kind": {"const": f"k{index}"}, "value": self.schema(budget - 1)}, "required": ["kind"]}
            for index in range(self.rng.randint(1, 3))
        ]
        return {"oneOf": options}

    def all_of(self, budget: int) -> Schema:
        first, second = self.object(budget - 1), self.object(budget - 1)
        for schema in (first, second):
            for word in ("additionalProperties", "minProperties", "maxProperties"):
                schema.pop(word, None)
        second["properties"] = {f"{name}2": inner for name, inner in second["properties"].items()}
        second["required"] = [f"{name}2" for name in second.get("required", [])]
        return {"allOf": [first, second]}
