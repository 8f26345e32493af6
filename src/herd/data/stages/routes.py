"""Code and maths go ways of their own: rules for prose would drop them for their symbols, and the mix wants to weigh them apart.

The paper finds such pages by classifiers trained on a model's labels; a trained one can take this stage's place (`quality`, with `route`).
These are counts: lines that look like statements, symbols and TeX commands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from herd.data.records import Record
from herd.data.stages.stage import Drop, Note

ROUTES = ("prose", "code", "maths")

_LOOK_AT = 8_000
_LONGEST_LINE = 200
_STATEMENT = re.compile(
    r"^\s*(?:def |class |import |from \w+ import|return\b|if .*:$|for .*:$|while .*:$|else:|elif |try:|except|with .*:$|#include|public "
    r"|private |static |const |let |var |function\b|fn |use |package |func |impl |struct |enum |SELECT |INSERT |CREATE |<\?php"
    r"|<\w+[^>]*>$|</\w+>$|@\w+)"
)
_ENDING = re.compile(r"(?:[;{}\]),]|=>|->|\):|\{\s*//.*|\*/)\s*$")
_ASSIGNMENT = re.compile(r"^\s*[\w.\[\]\"']+\s*(?:=|:=|\+=|<-)\s*\S|^\s*[\w.]+\(.*\)\s*$")
_TEX = re.compile(
    r"\\(?:frac|sum|int|sqrt|alpha|beta|gamma|delta|theta|lambda|mu|pi|sigma|phi|omega|cdot|times|leq|geq|infty|partial|nabla|mathbb"
    r"|mathcal|left|right|begin|end|text|in|to|lim|log|sin|cos|forall|exists|subset|cup|cap)\b|\$[^$\n]{1,200}\$"
)
_SIGNS = re.compile(r"[∑∫∏√∞≤≥≠≈∂∇∈∉⊂⊆∪∩∀∃→⇒⇔±×÷·αβγδεθλμπσφω]|(?<=[\w)] )[=<>](?= [\w(\\-])|\w\^\{?[\w-]")


def code_share(text: str) -> float:
    """The share of the lines that look like statements of a program."""
    lines = [line for line in text[:_LOOK_AT].split("\n") if line.strip()]
    if not lines:
        return 0.0
    return sum(_looks_like_code(line) for line in lines) / len(lines)


def _looks_like_code(line: str) -> bool:
    if len(line) > _LONGEST_LINE:
        return False
    if _STATEMENT.match(line) or _ASSIGNMENT.match(line):
        return True
    words = line.count(" ")
    return _ENDING.search(line) is not None and (words < 12 or line.startswith(("  ", "\t"))) and not line.rstrip().endswith(",")


def maths_density(text: str) -> float:
    """Formulas and mathematical signs per hundred words."""
    piece = text[:_LOOK_AT]
    words = piece.count(" ") + piece.count("\n") + 1
    return 100 * (3 * len(_TEX.findall(piece)) + len(_SIGNS.findall(piece))) / words


@dataclass(frozen=True, kw_only=True, slots=True)
class Routes:
    """Writes `route` into a record: code from `min_code_lines` on, else maths from `min_maths_density` on, else prose. Drops nothing.

    `fixed` sends everything one way, for a source of which it is known.
    """

    kind: ClassVar[str] = "routes"
    routes: tuple[str, ...] = ()
    min_code_lines: float = 0.4
    min_maths_density: float = 6.0
    fixed: Literal["prose", "code", "maths"] | None = None

    def files(self) -> tuple[str, ...]:
        """None."""
        return ()

    def apply(self, record: Record, note: Note) -> Record | Drop:
        """By the record's `text`."""
        route = self.fixed or route_of(record["text"], self.min_code_lines, self.min_maths_density)
        note(route, 1)
        return {**record, "route": route}


def route_of(text: str, min_code_lines: float = 0.4, min_maths_density: float = 6.0) -> str:
    """The route of a text."""
    if code_share(text) >= min_code_lines:
        return "code"
    return "maths" if maths_density(text) >= min_maths_density else "prose"
