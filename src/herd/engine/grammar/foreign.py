"""Grammars that the caller writes: a regular expression, or a context-free grammar in Lark's or llama.cpp's syntax.

llguidance reads them itself; this file refuses beforehand what would reach beyond the text of the answer (special tokens, grammars of other
kinds), what cannot be rolled back (`max_tokens`, `stop`), what is too large or too deep for its recursion, and rules that never end. One
thing it cannot see: terminals match as much as they can, so one that swallows what another needs (/[a-z]+/ before "x") leaves no way to the
end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from herd.base.errors import FormatError
from herd.engine.grammar.spec import GrammarLimits

MAX_RULES = 500
"""The library recurses from rule to rule: chains of 4,000 overflow a stack of 8 MiB, and an overflow ends the process."""
MAX_GROUPS = 100
_GBNF = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
_HINT = "the syntax is Lark's: `start: item+`, `ITEM: /[a-z]+/`; special tokens, attributes but [lazy], %json and @names are not taken"
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\f]+|//[^\n]*|\#[^\n]*)
      | (?P<line>\n)
      | (?P<directive>%[a-z_]+[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*"i?)
      | (?P<regex>/(?:[^/\\\n]|\\.)+/[imslux]*)
      | (?P<attributes>\[[a-z_, ]*\](?=\s*:))
      | (?P<name>[?!]?[a-zA-Z_][\w-]*)
      | (?P<count>\{\s*\d*\s*(?:,\s*\d*\s*)?\}|~\s*\d+(?:\s*\.\.\s*\d+)?)
      | (?P<mark>\.\.|->|[:|()\[\]?*+&~])
      | (?P<number>\.-?\d+)
      | (?P<bad>.)""",
    re.VERBOSE | re.DOTALL,
)


def regex_body(pattern: str, limits: GrammarLimits) -> str:
    """The body of a `start` rule that is one regular expression."""
    _check_size("the regular expression", pattern, limits)
    return f"/{regex_to_lark(pattern, 'd')}/"


def lark_text(text: str, limits: GrammarLimits) -> str:
    """A Lark grammar, checked; from llama.cpp's syntax if it is written so."""
    _check_size("the grammar", text, limits)
    if _GBNF.search(text):
        text = _from_gbnf(text)
        _check_size("the grammar", text, limits)
    rules = _rules(text)
    num_rules = sum(not name.startswith("(") for name in rules)
    if num_rules > MAX_RULES:
        raise FormatError(f"the grammar has {num_rules:,} rules (limit {MAX_RULES})", hint="merge rules, or say it as a JSON schema")
    if "start" not in rules:
        raise FormatError("the grammar has no rule `start`", hint=_HINT)
    ending = _ending(rules)
    endless = next((name for name in _reached(rules) if name not in ending), None)
    if endless is not None:
        raise FormatError(
            f"the rule {endless!r} of the grammar never comes to an end", hint="give it an alternative that does not lead back to it"
        )
    return '%llguidance {"no_forcing": true}\n' + text


def _check_size(what: str, text: str, limits: GrammarLimits) -> None:
    if len(text) > limits.max_foreign_chars:
        raise FormatError(f"{what} has {len(text):,} characters (limit {limits.max_foreign_chars:,})", hint="use a shorter one")


def _from_gbnf(text: str) -> str:
    try:
        return str(any_to_lark(text)).replace("%llguidance {}", "")
    except Exception as error:  # the converter raises whatever its recursive descent runs into
        raise FormatError(
            f"the grammar cannot be read: {str(error)[:200]}", hint="rules are written `root ::= ...`, as llama.cpp has them"
        ) from error


@dataclass(slots=True)
class _Rule:
    """The names that stand in a rule, and its alternatives, each the names that it cannot do without."""

    names: set[str] = field(default_factory=set)
    alternatives: list[set[str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "bad"
        if kind == "bad" or (kind == "directive" and not match.group().startswith(("%import ", "%ignore "))):
            raise FormatError(f"line {line} of the grammar: cannot take {match.group()[:40]!r}", hint=_HINT)
        if kind == "attributes" and match.group().replace(" ", "") != "[lazy]":
            raise FormatError(f"line {line} of the grammar: cannot take the attribute {match.group()[:40]!r}", hint=_HINT)
        if kind == "line":
            line += 1
        if kind != "space":
            yield _Token(kind, match.group(), line)


def _rules(text: str) -> dict[str, _Rule]:
    """The rules and terminals by name."""
    tokens = [*_tokens(text), _Token("line", "\n", 0)]
    rules: dict[str, _Rule] = {}
    index = 0
    while index < len(tokens):
        if tokens[index].kind in ("line", "directive"):
            rules.update(_imported(tokens[index]))
            index += 1
            continue
        name, index = _heading(tokens, index)
        body, index = _body(tokens, index)
        names = {token.text for token in body if token.kind == "name"}
        rules[name] = _Rule(names=names, alternatives=_Body(body, rules).alternatives())
    return rules


def _imported(token: _Token) -> dict[str, _Rule]:
    if not token.text.startswith("%import"):
        return {}
    names = re.findall(r"[A-Z][A-Z_0-9]*", token.text)
    return {name: _Rule(alternatives=[set()]) for name in names}


def _heading(tokens: list[_Token], index: int) -> tuple[str, int]:
    start = tokens[index]
    index += 1
    while index < len(tokens) and tokens[index].kind in ("attributes", "number"):
        index += 1
    if start.kind != "name" or index >= len(tokens) or tokens[index].text != ":":
        raise FormatError(f"line {start.line} of the grammar: {start.text[:40]!r} begins no rule", hint=_HINT)
    return start.text.lstrip("?!"), index + 1


def _body(tokens: list[_Token], index: int) -> tuple[list[_Token], int]:
    """The tokens up to the next rule: a line end closes a rule unless a group is open or `|` follows."""
    body: list[_Token] = []
    depth = 0
    while index < len(tokens):
        token = tokens[index]
        index += 1
        if token.kind == "line":
            while index < len(tokens) and tokens[index].kind == "line":
                index += 1
            if depth == 0 and (index == len(tokens) or tokens[index].text != "|"):
                break
            continue
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(token.text, 0)
        if depth > MAX_GROUPS:
            raise FormatError(
                f"line {token.line} of the grammar: groups nest deeper than {MAX_GROUPS}", hint="name the inner groups as rules"
            )
        body.append(token)
    return body, index


class _Body:
    """Reads the body of a rule for what it needs; what is wrong in it is the library's to say. A group becomes a rule of its own."""

    def __init__(self, tokens: list[_Token], rules: dict[str, _Rule]) -> None:
        self._tokens, self._rules, self._index = tokens, rules, 0

    def _peek(self) -> str:
        return self._tokens[self._index].text if self._index < len(self._tokens) else ""

    def alternatives(self) -> list[set[str]]:
        """Each alternative as the names that it needs."""
        found = [self._sequence()]
        while self._peek() == "|":
            self._index += 1
            found.append(self._sequence())
        return found

    def _sequence(self) -> set[str]:
        needed: set[str] = set()
        while self._index < len(self._tokens) and self._peek() not in ("|", ")", "]"):
            needed |= self._item()
        return needed

    def _item(self) -> set[str]:
        token = self._tokens[self._index]
        self._index += 1
        if token.text == "->":
            self._index += 1
            return set()
        names = {token.text} if token.kind == "name" else set[str]()
        if token.text in ("(", "["):
            group = _Rule(alternatives=self.alternatives())
            self._index += 1
            name = f"({len(self._rules)}"
            self._rules[name] = group
            names = {name} if token.text == "(" else set()
        if self._peek() in ("?", "*") or re.match(r"(?:\{|~)\s*(?:0|,)", self._peek()):
            self._index += 1
            return set()
        return names


def _ending(rules: dict[str, _Rule]) -> set[str]:
    """The rules that some finite text satisfies, as far as their needed names tell; names not defined here are left to the library."""
    ending: set[str] = set()
    grew = True
    while grew:
        grew = False
        for name, rule in rules.items():
            if name not in ending and any(all(part in ending or part not in rules for part in needed) for needed in rule.alternatives):
                ending.add(name)
                grew = True
    return ending


def _reached(rules: dict[str, _Rule]) -> list[str]:
    reached, waiting = ["start"], ["start"]
    while waiting:
        for name in rules[waiting.pop()].names:
            if name in rules and name not in reached:
                reached.append(name)
                waiting.append(name)
    return reached
