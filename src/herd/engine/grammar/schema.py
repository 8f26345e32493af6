"""Read JSON schemas: follow references, multiply out allOf, anyOf and oneOf. Source: JSON Schema 2020-12.

`flatten` turns a schema into the flat ones whose union it is. A oneOf is taken where its options can be told to exclude each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import unquote

from herd.base.errors import FormatError
from herd.engine.grammar.keywords import Flat, Schema, as_keywords, read_keywords, types_of
from herd.engine.grammar.merge import common_types, merge
from herd.engine.grammar.spec import GrammarLimits


class SchemaReader:
    """One schema document; references are resolved within it."""

    def __init__(self, root: Schema, limits: GrammarLimits, *, what: str = "the schema") -> None:
        self.root = root
        self.what = what
        self._limits = limits
        self._num_visited = 0
        self._references: dict[str, list[str]] = {}

    def refuse(self, problem: str, hint: str) -> FormatError:
        """The error for a problem of this document."""
        return FormatError(f"{self.what}: {problem}", hint=hint)

    def flatten(self, schema: Schema, following: frozenset[str] = frozenset()) -> list[Flat]:
        """The flat schemas whose union this one is; an empty list accepts nothing."""
        self._count()
        if schema is True:
            return [{}]
        if schema is False:
            return []
        keywords = as_keywords(schema, self.refuse)
        flats = [read_keywords(keywords, self.refuse)]
        reference = keywords.get("$ref")
        if reference is not None:
            pointer = self.pointer(reference)
            target = [] if pointer in following else self.flatten(self.resolve(pointer), following | {pointer})
            flats = self._product(flats, target)
        for part in self._schemas(keywords, "allOf"):
            flats = self._product(flats, self.flatten(part, following))
        for word in ("anyOf", "oneOf"):
            if word in keywords:
                options = [self.flatten(part, following) for part in self._schemas(keywords, word)]
                if word == "oneOf":
                    self._check_exclusive(options)
                flats = self._product(flats, [flat for option in options for flat in option])
        return flats

    def pointer(self, reference: object) -> str:
        """A reference into this document, checked."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise self.refuse(f"cannot follow the reference {reference!r:.80}", "references are # or #/$defs/NAME, within the schema")
        return reference

    def resolve(self, pointer: str) -> Schema:
        """The schema that a pointer leads to."""
        node = self._find(pointer)
        if node is None:
            raise self.refuse(f"the reference {pointer!r:.80} leads nowhere", "write the schema it names, under $defs")
        return node

    def recurs(self, pointer: str) -> bool:
        """Whether a reference can lead back to itself, through whatever stands at its end."""
        reached, waiting = set[str](), [pointer]
        while waiting:
            for found in self._references_at(waiting.pop()):
                if found == pointer:
                    return True
                if found not in reached:
                    reached.add(found)
                    waiting.append(found)
        return False

    def _references_at(self, pointer: str) -> list[str]:
        """What looks like references in a part of the document; a constant may hold some that are none."""
        if pointer not in self._references:
            found: list[str] = []
            waiting: list[Any] = [self._find(pointer)]
            while waiting:
                node = waiting.pop()
                if isinstance(node, Mapping):
                    reference = cast("Mapping[str, Any]", node).get("$ref")
                    found += [reference] if isinstance(reference, str) else []
                    waiting += cast("Mapping[str, Any]", node).values()
                elif isinstance(node, list):
                    waiting += cast("list[Any]", node)
            self._references[pointer] = found
        return self._references[pointer]

    def _find(self, pointer: str) -> Schema:
        """The schema at a pointer; None if there is none."""
        node: Any = self.root
        for raw in pointer.split("/")[1:]:
            part = unquote(raw).replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping):
                node = cast("Mapping[str, Any]", node).get(part)
            elif isinstance(node, list) and part.isdecimal() and int(part) < len(cast("list[Any]", node)):
                node = cast("list[Any]", node)[int(part)]
            else:
                return None
        return node

    def alternatives(self, schema: Schema) -> list[Schema] | None:
        """The options of a schema that is nothing but anyOf or oneOf, so that each can be written once; None for any other."""
        if not isinstance(schema, Mapping):
            return None
        keywords = as_keywords(schema, self.refuse)
        words = [word for word in ("anyOf", "oneOf") if word in keywords]
        if len(words) != 1 or read_keywords(keywords, self.refuse) or "$ref" in keywords or "allOf" in keywords:
            return None
        options = self._schemas(keywords, words[0])
        if words[0] == "oneOf":
            self._check_exclusive([self.flatten(option) for option in options])
        return options

    def reference(self, schema: Schema) -> str | None:
        """The pointer of a schema that is nothing but a reference; None for any other."""
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            return None
        keywords = as_keywords(schema, self.refuse)
        if read_keywords(keywords, self.refuse) or any(word in keywords for word in ("allOf", "anyOf", "oneOf")):
            return None
        return self.pointer(keywords["$ref"])

    def _count(self) -> None:
        self._num_visited += 1
        if self._num_visited > self._limits.max_nodes:
            raise self.refuse(
                f"it unfolds to more than {self._limits.max_nodes:,} parts", "use fewer combinations and fewer repeated references"
            )

    def _schemas(self, keywords: Mapping[str, Any], word: str) -> list[Schema]:
        parts = keywords.get(word, [])
        if not isinstance(parts, list) or (word in keywords and not parts):
            raise self.refuse(f"{word} is {parts!r:.80}", "it is a list of at least one schema")
        return cast("list[Schema]", parts)

    def _product(self, left: list[Flat], right: list[Flat]) -> list[Flat]:
        pairs: list[Flat] = []
        for first in left:
            for second in right:
                self._count()
                merged = merge(first, second, self.refuse)
                if merged is not None:
                    pairs.append(merged)
        return pairs

    def _check_exclusive(self, options: list[list[Flat]]) -> None:
        for index, option in enumerate(options):
            for later, other in enumerate(options[index + 1 :], index + 1):
                for first in option:
                    for second in other:
                        self._count()
                        if not (self._excludes(first, second) and self._excludes(second, first)):
                            raise self.refuse(
                                f"options {index + 1} and {later + 1} of a oneOf may both accept an answer",
                                "make them differ in type or in a required property with a const, or write anyOf",
                            )

    def _excludes(self, written: Flat, other: Flat) -> bool:
        """Whether whatever is written by one flat schema is refused by another. Objects are closed as they are written."""
        if merge(written, other, self.refuse) is None or not common_types(types_of(written), types_of(other)):
            return True
        if types_of(written) != ["object"]:
            return False
        known, required = written.get("properties", {}), written.get("required", [])
        there = other.get("properties", {})
        closed = bool(known) and written.get("additionalProperties", False) is False
        if closed and any(name not in known and name not in required for name in other.get("required", [])):
            return True
        shut = other.get("additionalProperties") is False and not other.get("patternProperties")
        if shut and any(name not in there for name in required):
            return True
        return any(name in known and self._never_both(known[name], there.get(name, True)) for name in required)

    def _never_both(self, first: Schema, second: Schema) -> bool:
        pairs = self._product(self.flatten(first), self.flatten(second))
        return not any(common_types(types_of(pair), types_of(pair)) for pair in pairs)
