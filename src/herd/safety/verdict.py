"""What is judged, where, and what came of it: the shapes that every shield shares. Knows no shield.

A `Content` goes to a shield at one of four touch points; a `Verdict` comes back. A `Finding` is a place in the text that a rule named; a
finding that is redacted is replaced in the text rather than held against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, runtime_checkable

from herd.text.messages import Message


class TouchPoint(StrEnum):
    """Where text is judged: what a user says, what the model answers, what a tool is asked, what a tool gives back."""

    INPUT = "input"
    OUTPUT = "output"
    TOOL_INPUT = "tool-input"
    TOOL_OUTPUT = "tool-output"


ALL_POINTS = frozenset(TouchPoint)
THIRD_PARTY = frozenset({TouchPoint.TOOL_OUTPUT})
"""Points whose text was written by neither the user nor the model: instructions in it are not to be followed."""
Treatment = Literal["block", "warn", "ignore"]
TREATMENTS: tuple[Treatment, ...] = ("block", "warn", "ignore")


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """A text at a touch point. `conversation` is what was said before it; at an output its last message is the user's."""

    point: TouchPoint
    text: str
    conversation: tuple[Message, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Characters `start` to `end` of the text, as the rule `rule` saw them.

    Attributes:
        rule: the rule's name.
        start: first character.
        end: the character after the last.
        label: what it is, in a word: a CWE, `email`, a category.
        treatment: what the rule's severity asks for.
        line: the line it stands on, from 1.
        detail: a sentence about it.
        replacement: what stands in its place in the redacted text; None leaves it.
    """

    rule: str
    start: int
    end: int
    label: str
    treatment: Treatment = "block"
    line: int = 1
    detail: str = ""
    replacement: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Its JSON. The text itself is not in it: what is found is often a secret."""
        named = ("rule", "label", "treatment", "line", "start", "end", "detail", "replacement")
        return {name: getattr(self, name) for name in named if getattr(self, name) not in ("", None)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one shield says of a content.

    Attributes:
        shield: its name.
        unsafe: whether it objects.
        treatment: what follows from the objection: `block` stops the text, `warn` lets it pass with a word.
        score: the probability of harm, where the shield has one.
        categories: codes of what is violated (S1 to S14, custom ones, `injection`, `jailbreak`, `pii`, `secret`, CWEs).
        reason: a sentence for a log.
        user_message: a sentence that may be shown to whoever wrote the text.
        findings: places in the text.
        failed: the shield could not judge; `unsafe` is then what failing closed (or open) makes of it.
        elapsed_s: seconds it took.
    """

    shield: str
    unsafe: bool
    treatment: Treatment = "block"
    score: float | None = None
    categories: tuple[str, ...] = ()
    reason: str = ""
    user_message: str = ""
    findings: tuple[Finding, ...] = field(default=())
    failed: bool = False
    elapsed_s: float = field(default=0.0, compare=False)

    @property
    def blocks(self) -> bool:
        """Whether the text has to be stopped."""
        return self.unsafe and self.treatment == "block"

    def to_dict(self) -> dict[str, Any]:
        """Its JSON."""
        return {
            "shield": self.shield,
            "unsafe": self.unsafe,
            "treatment": self.treatment,
            "score": self.score,
            "categories": list(self.categories),
            "reason": self.reason,
            "findings": [finding.to_dict() for finding in self.findings],
            "failed": self.failed,
            "elapsed_s": round(self.elapsed_s, 6),
        }


@runtime_checkable
class Shield(Protocol):
    """What judges. `points` are the touch points it stands at; `check` returns a verdict, or raises, which counts as a violation."""

    @property
    def name(self) -> str:
        """Its name, for people and configurations."""
        ...

    @property
    def points(self) -> frozenset[TouchPoint]:
        """Where it stands."""
        ...

    async def check(self, content: Content) -> Verdict:
        """Judge a text."""
        ...


def redact(text: str, findings: Iterable[Finding]) -> str:
    """The text with every finding that has a replacement put in its place; where two overlap, the one that begins first stays.

    >>> redact("mail a@b.ch now", [Finding(rule="email", start=5, end=11, label="email", replacement="[email]")])
    'mail [email] now'
    """
    parts: list[str] = []
    place = 0
    for finding in sorted((found for found in findings if found.replacement is not None), key=lambda found: (found.start, -found.end)):
        if finding.start >= place:
            parts += [text[place : finding.start], finding.replacement or ""]
        # What overlaps begins inside a replaced place: its rest must go too, or half a secret would stay.
        place = max(place, finding.end)
    return "".join(parts) + text[place:]


def worst(treatments: Sequence[Treatment]) -> Treatment:
    """The gravest of several; `ignore` of none."""
    found: Treatment = "ignore"
    for treatment in treatments:
        found = treatment if TREATMENTS.index(treatment) < TREATMENTS.index(found) else found
    return found
