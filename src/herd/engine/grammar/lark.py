"""Write a grammar in llguidance's variant of Lark: rules and terminals by content, so that equal parts exist once.

A rule is made of others that exist already, so names never dangle and nothing recurses. Rules in lower case, terminals (regular, matched as
one piece) in capitals. Knows no schema and no tool.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from herd.base.errors import FormatError

MAX_LITERAL_CHARS = 16_384
"""A longer text that is forced whole costs more than a second before its first token."""
MAX_LARK_CHARS = 4 * 2**20


class LarkWriter:
    """Collects definitions. `rule` and `terminal` give back the name to use; a body that was seen before keeps its name."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._lines: list[str] = []
        self._num_chars = 0

    def rule(self, body: str) -> str:
        """The name of a rule with this body; a body that is one name is that name."""
        return body if body.isidentifier() else self._define(body, "r")

    def terminal(self, body: str) -> str:
        """The name of a terminal with this body."""
        return self._define(body, "T")

    def lazy(self, body: str) -> str:
        """The name of a rule that is one terminal which ends as soon as it can."""
        return self._define(body, "l")

    def pattern(self, regex: str) -> str:
        """The name of a terminal that is one regular expression, whose slashes are escaped already."""
        return self.terminal(f"/{regex}/")

    def _define(self, body: str, letter: str) -> str:
        key = letter + body
        if key not in self._names:
            name = f"{letter}{len(self._names)}"
            self._num_chars += len(body) + len(name) + 3
            if self._num_chars > MAX_LARK_CHARS:
                raise FormatError(
                    f"the grammar is over {MAX_LARK_CHARS:,} characters when it is written out", hint="use a smaller schema or fewer tools"
                )
            self._names[key] = name
            self._lines.append(f"{name}{'[lazy]' if letter == 'l' else ''}: {body}")
        return self._names[key]

    def text(self, start: str, *, forcing: bool) -> str:
        """The whole grammar. Without forcing, the model chooses the pieces of text that has no alternative."""
        options = "" if forcing else '%llguidance {"no_forcing": true}\n'
        return f"{options}start: {start}\n" + "\n".join(self._lines) + "\n"


def literal(text: str) -> str:
    """Exactly this text."""
    if len(text) > MAX_LITERAL_CHARS:
        raise FormatError(
            f"the grammar forces a text of {len(text):,} characters (limit {MAX_LITERAL_CHARS:,}): {text[:40]!r}...",
            hint="constants, enumerated values and names have to be shorter",
        )
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def either(options: Iterable[str | None]) -> str | None:
    """Any of the options that exist; None if none does."""
    kept = list(dict.fromkeys(option for option in options if option is not None))
    if len(kept) <= 1:
        return kept[0] if kept else None
    return "(" + " | ".join(kept) + ")"


def maybe(body: str) -> str:
    """The body or nothing."""
    return f"({body})?"


def repeated(body: str, low: int, high: int | None) -> str:
    """The body from `low` to `high` times."""
    if high is not None and high <= 0:
        return ""
    if low <= 0 and high is None:
        return f"({body})*"
    return f"({body}){{{max(low, 0)},{'' if high is None else high}}}"
