"""Write strings, numbers and fixed values, in JSON or as Python literals.

Both readers take the same value from what is written: escapes are those that mean the same to both, and the two quotes of Python are both
open to the model. Numbers are of bounded length; a text in quotes is bounded where the schema or the caller says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from herd.engine.grammar import numbers
from herd.engine.grammar.formats import FORMATS
from herd.engine.grammar.keywords import KEYWORDS_OF, Flat, Refuse, json_types
from herd.engine.grammar.lark import LarkWriter, either, literal
from herd.engine.grammar.spec import GrammarLimits

_PLAIN = r"[^\"\\\x00-\x1F\x7F]"
_PLAIN_SINGLE = r"[^'\\\x00-\x1F\x7F]"
_SCALAR = r"\\u(?:[0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2})"
_PAIR = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_COMPACT = '"x-guidance": {"whitespace_flexible": false}'
MAX_BOUND = 10**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """How values are spelled: the words, the quotes, and the white space around punctuation (Lark expressions)."""

    python: bool
    colon: str
    comma: str
    space: str = ""

    def bracket(self, text: str) -> str:
        """A bracket with the white space that may stand inside of it."""
        if not self.space:
            return literal(text)
        return f"/{self.space}\\{text}/" if text in "]}" else f"/\\{text}{self.space}/"


def json_dialect(whitespace: int) -> Dialect:
    """JSON, compact or with up to so many characters of white space at each place."""
    if not whitespace:
        return Dialect(python=False, colon='":"', comma='","')
    space = rf"[ \n\r\t]{{0,{whitespace}}}"
    return Dialect(python=False, colon=f"/{space}:{space}/", comma=f"/{space},{space}/", space=space)


JSON_SPACED = Dialect(python=False, colon="/: ?/", comma="/, ?/")
"""JSON as models write it in tool calls: a space after colon and comma, or none."""
PYTHON = Dialect(python=True, colon="/: ?/", comma="/, ?/")


class ScalarWriter:
    """Writes what holds nothing else. `foreign` says whether patterns of the caller were written."""

    def __init__(self, refuse: Refuse, lark: LarkWriter, dialect: Dialect, limits: GrammarLimits, max_string: int | None) -> None:
        self.foreign = False
        self._refuse, self._lark, self._dialect = refuse, lark, dialect
        self._limits, self._max_string = limits, max_string

    def any_scalar(self) -> list[str]:
        """Each kind of value that is no list and no object."""
        number = self._lark.pattern(numbers.any_number(self._limits.max_digits))
        return [self.fixed(None, True, False), number, self.string({}) or ""]

    def fixed(self, *values: Any) -> str:
        """One of some values."""
        return self._lark.terminal(" | ".join(literal(spelling) for value in values for spelling in self._spellings(value)))

    def key(self, name: str) -> str:
        """A name and the colon after it."""
        return f"{self.fixed(name)} {self._dialect.colon}"

    def _spellings(self, value: Any) -> list[str]:
        """The texts of a fixed value."""
        if not self._dialect.python:
            separators = (", ", ": ") if self._dialect == JSON_SPACED else (",", ":")
            return [json.dumps(value, ensure_ascii=False, separators=separators).replace("\x7f", "\\u007f")]
        if isinstance(value, str):
            return list(dict.fromkeys((repr(value), json.dumps(value, ensure_ascii=False).replace("\x7f", "\\x7f"))))
        return [repr(value)]

    def enum(self, flat: Flat) -> str | None:
        """One of the values of an enum that pass the keywords beside it."""
        values = [value for value in flat["enum"] if self._admits(flat, value)]
        return self.fixed(*values) if values else None

    def _admits(self, flat: Flat, value: Any) -> bool:
        """Whether a fixed value passes the other keywords beside it, as far as those concern values written out."""
        types = json_types(value)
        if "type" in flat and not any(name in flat["type"] for name in types):
            return False
        if types[0] == "string":
            if "patterns" in flat:
                raise self._refuse("an enum or const stands beside a pattern", "leave out the values that do not match, then the pattern")
            return flat.get("minLength", 0) <= len(value) <= flat.get("maxLength", len(value))
        if types[0] in ("array", "object"):
            if any(word in flat for word in KEYWORDS_OF[types[0]]):
                raise self._refuse(f"an enum or const of an {types[0]} stands beside keywords for it", "leave out those keywords")
            return True
        return "number" not in types or _within(flat, value)

    def string(self, flat: Flat) -> str | None:
        """A string; None if its bounds leave none."""
        low, high = flat.get("minLength", 0), flat.get("maxLength")
        if self._max_string is not None:
            high = self._max_string if high is None else min(high, self._max_string)
        if high is not None and low > high:
            return None
        if "patterns" in flat:
            return self.matching(flat["patterns"], low, high)
        form = FORMATS.get(flat.get("format", ""))
        if form is not None:
            body = f'"\\"" /{form}/ "\\""'
            bounded = low > 0 or high is not None
            return self._lark.terminal(f"{body} & /.{{{low + 2},{'' if high is None else high + 2}}}/" if bounded else body)
        times = "*" if not low and high is None else f"{{{low},{'' if high is None else high}}}"
        double = self._lark.pattern(f'"({_PLAIN}|{self._escapes(chr(34))}){times}"')
        if not self._dialect.python:
            return double
        return either([double, self._lark.pattern(f"'({_PLAIN_SINGLE}|{self._escapes(chr(39))}){times}'")])

    def _escapes(self, quote: str) -> str:
        """Escapes that mean the same to both readers; an escaped slash and pairs of surrogates are JSON's alone."""
        if self._dialect.python:
            return rf"\\[{quote}\\bfnrt]|{_SCALAR}"
        return rf"\\[\"\\\/bfnrt]|{_SCALAR}|{_PAIR}"

    def matching(self, patterns: list[str], low: int, high: int | None) -> str:
        """A string that matches patterns of the caller, in the library's own reading of them."""
        self.foreign = True
        longest = max(len(pattern) for pattern in patterns)
        if longest > self._limits.max_foreign_chars:
            raise self._refuse(f"a pattern has {longest:,} characters (limit {self._limits.max_foreign_chars:,})", "use a shorter pattern")
        bounds: dict[str, Any] = {"type": "string", "minLength": low} | ({} if high is None else {"maxLength": high})
        schema = bounds | {"pattern": patterns[0]} if len(patterns) == 1 else bounds | {"allOf": [{"pattern": each} for each in patterns]}
        return self._lark.rule(f"%json {json.dumps(schema)[:-1]}, {_COMPACT}}}")

    def number(self, flat: Flat, *, integer: bool) -> str | None:
        """A number; None if its bounds leave none."""
        digits, step = self._limits.max_digits, flat.get("multipleOf")
        low, high, low_open, high_open = _bounds(flat)
        if any(bound is not None and abs(bound) >= MAX_BOUND for bound in (low, high)):
            raise self._refuse("a bound of a number is beyond 1e30", "use smaller numbers")
        if step is not None and not isinstance(step, int):
            places = -Decimal(repr(step)).normalize().adjusted()
            if integer or Decimal(repr(step)) != Decimal(10) ** -places:
                raise self._refuse(f"multipleOf is {step}", "whole numbers can be enforced, and 0.1, 0.01 and so on for `number`")
            return self._with_places(places, low, high)
        if integer or step is not None:
            return self._integer(low, high, low_open, high_open, step or 1)
        if not any(word in flat for word in KEYWORDS_OF["number"]):
            return self._lark.pattern(numbers.any_number(digits))
        edges = numbers.filled(None if low is None else int(low), None if high is None else int(high), digits)
        bottom, top = Decimal(edges[0]) if low is None else low, Decimal(edges[1]) if high is None else high
        regex = numbers.decimals(bottom, top, low_open=low_open, high_open=high_open, digits=digits)
        return None if regex is None else self._lark.pattern(regex)

    def _integer(self, low: Decimal | None, high: Decimal | None, low_open: bool, high_open: bool, step: int) -> str | None:
        if low is None and high is None and step == 1:
            return self._lark.pattern(numbers.any_integer(self._limits.max_digits))
        first = None if low is None else numbers.whole_above(low, included=not low_open)
        last = None if high is None else numbers.whole_below(high, included=not high_open)
        first, last = numbers.filled(first, last, self._limits.max_digits)
        if -(-first // step) * step > last:
            return None
        if step > 1:
            schema = {"type": "integer", "minimum": first, "maximum": last, "multipleOf": step}
            return self._lark.rule(f"%json {json.dumps(schema)[:-1]}, {_COMPACT}}}")
        regex = numbers.integers(first, last)
        return None if regex is None else self._lark.pattern(regex)

    def _with_places(self, places: int, low: Decimal | None, high: Decimal | None) -> str:
        if low is not None or high is not None:
            raise self._refuse("a fraction as multipleOf stands beside bounds", "leave one of them out")
        digits = self._limits.max_digits
        return self._lark.pattern(rf"{numbers.any_integer(digits)}(\.[0-9]{{1,{min(places, digits)}}})?")

    def name(self, taken: Iterable[str]) -> str:
        """A property's name that is none of those taken."""
        double = self._free_name('"', _PLAIN, taken)
        return either([double, self._free_name("'", _PLAIN_SINGLE, taken)]) or "" if self._dialect.python else double

    def _free_name(self, quote: str, plain: str, taken_names: Iterable[str]) -> str:
        """A name in these quotes, in which each text has one spelling, so that the taken ones can be told."""
        times = "*" if self._max_string is None else f"{{0,{self._max_string}}}"
        free = f"/{quote}({plain}|\\\\[{quote}\\\\bfnrt]){times}{quote}/"
        taken = [literal(_requoted(name, quote)) for name in taken_names]
        return self._lark.terminal(f"{free} & ~({' | '.join(taken)})" if taken else free)


def _requoted(name: str, quote: str) -> str:
    inner = json.dumps(name, ensure_ascii=False)[1:-1]
    return quote + (inner if quote == '"' else inner.replace('\\"', '"').replace("'", "\\'")) + quote


def _within(flat: Flat, value: int | float) -> bool:
    above, below = flat.get("exclusiveMinimum"), flat.get("exclusiveMaximum")
    inside = (above is None or value > above) and (below is None or value < below)
    step = flat.get("multipleOf")
    inside &= step is None or Fraction(repr(value)) % Fraction(repr(step)) == 0
    return inside and flat.get("minimum", value) <= value <= flat.get("maximum", value)


def _bounds(flat: Flat) -> tuple[Decimal | None, Decimal | None, bool, bool]:
    """The tighter bound on each side, and whether it is open; a bound that no written number reaches is none."""
    low, high = flat.get("minimum"), flat.get("maximum")
    above, below = flat.get("exclusiveMinimum"), flat.get("exclusiveMaximum")
    low_open = above is not None and (low is None or above >= low)
    high_open = below is not None and (high is None or below <= high)
    low, high = above if low_open else low, below if high_open else high
    bottom = None if low is None or low <= -MAX_BOUND else Decimal(repr(low))
    top = None if high is None or high >= MAX_BOUND else Decimal(repr(high))
    return bottom, top, low_open and bottom is not None, high_open and top is not None
