"""A session as people read it: every turn, step, verdict and wait, with its times, from what is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from herd.agents.steps import ModelStep, RetrievalStep, ShieldStep, Step, ToolStep
from herd.agents.turn import Turn
from herd.tools.tool import Taint

_SHOWN = 160
LABELS = ("reads_untrusted", "reads_private", "acts_outside")


def labels_of(taint: Taint) -> list[str]:
    """The labels that stand, by name."""
    return [name for name in LABELS if getattr(taint, name)]


def trace_lines(turns: Sequence[Turn]) -> Iterator[str]:
    """The lines of a trace."""
    for number, turn in enumerate(turns, start=1):
        took = "" if turn.ended_at is None else f", {turn.ended_at - turn.started_at:.2f} s"
        why = f" ({turn.reason})" if turn.reason else ""
        usage = turn.usage
        yield f"turn {number}  {turn.status}{why}{took}, {usage.prompt_tokens} tokens read, {usage.completion_tokens} written  {turn.id}"
        for message in turn.inputs:
            yield f"  {message.role}: {_short(message.text)}"
        for step in turn.steps:
            yield from (f"  {line}" for line in _lines_of(step))
        if found := labels_of(turn.taint_now()):
            yield f"  labels: {', '.join(found)}"
        for citation in turn.citations:
            yield f"  cites [{citation.number}] {citation.title or citation.source} (support {citation.support:.0%})"
        if turn.false_citations:
            yield f"  cites what nobody retrieved: {', '.join(map(str, turn.false_citations))}"
        if turn.error is not None:
            yield f"  error: {turn.error.get('code')}: {turn.error.get('message')}"
        elif turn.text:
            yield f"  answer: {_short(turn.text)}"


def _lines_of(step: Step) -> Iterator[str]:
    took = f"{max(step.ended_at - step.started_at, 0.0):.2f} s"
    if isinstance(step, ModelStep):
        said = ", ".join(_call(call.name, call.arguments) for call in step.message.tool_calls) or _short(step.message.text)
        notes = [
            note
            for note in (f"without tools: {step.final}" if step.final else "", f"stopped by {step.stopped_by}" if step.stopped_by else "")
            if note
        ]
        yield f"model {took}, {step.usage.completion_tokens} tokens{' [' + '; '.join(notes) + ']' if notes else ''}: {said}"
    elif isinstance(step, ToolStep):
        state = step.state if step.state != "done" else "ok" if step.ok else f"failed ({step.error_code})"
        asked = f", asked for {step.why}: {step.approved or 'no answer yet'}" if step.why else ""
        yield f"tool  {took}, {state}{asked}: {_call(step.call.name, step.call.arguments)}"
        if step.text:
            yield f"      gave {_short(step.text)}"
        for verdict in step.verdicts:
            if verdict.get("unsafe"):
                why = verdict.get("reason") or ", ".join(verdict.get("categories", ()))
                yield f"      {verdict.get('point')} shield {verdict.get('shield')}: {why}"
    elif isinstance(step, ShieldStep):
        names = ", ".join(str(verdict.get("shield")) for verdict in step.report.get("verdicts", ()))
        yield f"shields at {step.point} {took}: {'stopped it' if step.blocked else 'let it pass'} ({names})"
    elif isinstance(step, RetrievalStep):
        yield f"memory {took}: {len(step.passages)} passages for {_short(step.query)}"


def _call(name: str, arguments: object) -> str:
    return f"{name}({_short(json.dumps(arguments, ensure_ascii=False, default=str))})"


def _short(text: str) -> str:
    """One printable line of a text."""
    line = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(line.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."
