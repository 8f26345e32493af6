"""Several shields at once: everything that stands at a touch point runs concurrently under one deadline, and what cannot judge objects.

A shield that raises or is too slow counts as a violation, unless it is named in `fail_open`. Redacting shields change the text rather
than stop it: their findings are put together and applied once. Knows the `Shield` protocol and no shield.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from herd.base.errors import ConfigError, GateError, HerdError, did_you_mean
from herd.base.log import get_logger
from herd.inference.port import AsyncAnswer
from herd.safety.stream import GuardedAnswer
from herd.safety.verdict import Content, Finding, Shield, TouchPoint, Treatment, Verdict, redact
from herd.text.messages import Message, ToolCall

log = get_logger(__name__)

DEADLINE_S = 10.0
FAILED_MESSAGE = "This could not be checked, so it was stopped."


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What the shields of a touch point said.

    Attributes:
        point: where.
        text: the text to go on with: redacted where shields asked for that, else as it was.
        verdicts: one for each shield that stands there, in the order of the shields.
        elapsed_s: seconds all of them took together.
    """

    point: TouchPoint
    text: str
    verdicts: tuple[Verdict, ...] = ()
    elapsed_s: float = field(default=0.0, compare=False)

    @property
    def blocked(self) -> bool:
        """Whether the text has to be stopped."""
        return any(verdict.blocks for verdict in self.verdicts)

    @property
    def unsafe(self) -> bool:
        """Whether any shield objects, be it with a warning."""
        return any(verdict.unsafe for verdict in self.verdicts)

    @property
    def violation(self) -> Verdict | None:
        """The verdict that stops the text: the first one that judged it, before those that failed."""
        blocking = [verdict for verdict in self.verdicts if verdict.blocks]
        return min(blocking, key=lambda verdict: verdict.failed, default=None)

    @property
    def categories(self) -> tuple[str, ...]:
        """Codes of all that is violated, each once."""
        return tuple(dict.fromkeys(code for verdict in self.verdicts if verdict.unsafe for code in verdict.categories))

    def to_dict(self) -> dict[str, Any]:
        """Its JSON."""
        return {
            "point": self.point.value,
            "unsafe": self.unsafe,
            "blocked": self.blocked,
            "categories": list(self.categories),
            "text": self.text,
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "elapsed_s": round(self.elapsed_s, 6),
        }


class Shields:
    """A set of shields with one deadline.

    Args:
        shields: what judges; names must differ.
        deadline_s: seconds that a touch point may take in all.
        fail_open: names of shields that may fail without an objection.
        treatments: what an objection of a shield leads to, by name, in place of what the shield says.

    Raises:
        ConfigError: a name twice, or one that no shield has; a deadline that is not above 0.
    """

    def __init__(
        self,
        shields: Sequence[Shield],
        *,
        deadline_s: float = DEADLINE_S,
        fail_open: Collection[str] = (),
        treatments: Mapping[str, Treatment] | None = None,
    ) -> None:
        names = [shield.name for shield in shields]
        twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
        if twice is not None:
            raise ConfigError(f"two shields are named {twice!r}", hint="give each shield its own name")
        for name in (*fail_open, *(treatments or {})):
            if name not in names:
                raise ConfigError(f"there is no shield {name!r}", hint=did_you_mean(name, names, otherwise="shields: " + ", ".join(names)))
        if not deadline_s > 0.0:
            raise ConfigError(f"the deadline is {deadline_s!r} seconds, it must be above 0", hint=f"the default is {DEADLINE_S:g}")
        self.shields, self.deadline_s = tuple(shields), deadline_s
        self._fail_open, self._treatments = frozenset(fail_open), dict(treatments or {})

    async def check(self, content: Content) -> Report:
        """Judge a content by every shield that stands at its point."""
        standing = [shield for shield in self.shields if content.point in shield.points]
        started = time.monotonic()
        verdicts = await asyncio.gather(*(self._one(shield, content) for shield in standing))
        findings: list[Finding] = [finding for verdict in verdicts for finding in verdict.findings]
        text = redact(content.text, findings)
        return Report(point=content.point, text=text, verdicts=tuple(verdicts), elapsed_s=time.monotonic() - started)

    async def _one(self, shield: Shield, content: Content) -> Verdict:
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.deadline_s):
                verdict = await shield.check(content)
        except TimeoutError:
            verdict = self._failed(shield.name, f"no verdict within {self.deadline_s:g} s")
        except Exception as error:  # whatever a shield raises, the text was not judged
            log.warning("shield %s failed: %s", shield.name, error, exc_info=not isinstance(error, HerdError))
            verdict = self._failed(shield.name, f"{type(error).__name__}: {error}")
        treatment = self._treatments.get(shield.name, verdict.treatment)
        return replace(verdict, treatment=treatment, elapsed_s=time.monotonic() - started)

    def _failed(self, name: str, why: str) -> Verdict:
        unsafe = name not in self._fail_open
        return Verdict(shield=name, unsafe=unsafe, failed=True, reason=why, user_message=FAILED_MESSAGE if unsafe else "")

    async def input(self, text: str, conversation: Sequence[Message] = ()) -> Report:
        """Judge what a user says."""
        return await self.check(Content(point=TouchPoint.INPUT, text=text, conversation=tuple(conversation)))

    async def output(self, text: str, conversation: Sequence[Message] = ()) -> Report:
        """Judge what the model answers to a conversation."""
        return await self.check(Content(point=TouchPoint.OUTPUT, text=text, conversation=tuple(conversation)))

    async def tool_input(self, call: ToolCall, conversation: Sequence[Message] = ()) -> Report:
        """Judge a call before the tool runs."""
        text = json.dumps({"name": call.name, "parameters": call.arguments}, ensure_ascii=False)
        return await self.check(Content(point=TouchPoint.TOOL_INPUT, text=text, conversation=tuple(conversation)))

    async def tool_output(self, text: str, conversation: Sequence[Message] = ()) -> Report:
        """Judge what a tool gave back, before the model reads it."""
        return await self.check(Content(point=TouchPoint.TOOL_OUTPUT, text=text, conversation=tuple(conversation)))

    def guard(self, answer: AsyncAnswer, conversation: Sequence[Message] = (), *, window: int = 400, overlap: int = 200) -> GuardedAnswer:
        """A streamed answer that lets go only of what the output and tool-input shields let pass. What they redact is stopped here."""

        async def judge(point: TouchPoint, text: str) -> bool:
            report = await self.check(Content(point=point, text=text, conversation=tuple(conversation)))
            return not report.blocked and report.text == text

        return GuardedAnswer(answer, judge, window=window, overlap=overlap)


def require(report: Report) -> str:
    """The text to go on with. Raises GateError, with the shield's reason, where it is blocked."""
    violation = report.violation
    if violation is None:
        return report.text
    raise GateError(
        f"the {report.point.value} was stopped by {violation.shield}: {violation.reason or ', '.join(violation.categories) or 'unsafe'}",
        hint=violation.user_message or "change the text, or the shields",
    )
