"""The conversation behind `herd agent`: what each line does and how events are shown, with no terminal in it.

The answer goes to the screen as it comes; calls, waits and verdicts are remarks. Whoever is asked for an approval is asked through the
screen, which says no where nobody can be asked.
"""

from __future__ import annotations

import json
from typing import Protocol, runtime_checkable

from herd.agents.agent import Agent, ApprovalRequest, Session
from herd.agents.events import (
    AgentEvent,
    AnswerDelta,
    ShieldJudged,
    ToolDone,
    ToolStarted,
    TurnCancelled,
    TurnFailed,
    TurnFinished,
    TurnPaused,
)
from herd.agents.result import AgentResult
from herd.agents.trace import labels_of, trace_lines
from herd.base.errors import HerdError, UsageError, did_you_mean
from herd.cli.failures import known_error

HELP = """\
/help             this list
/tools            what the agent may call
/trace            every step of this session
/session          this session's name, its labels and what runs without asking
/new              begin a new session
/file FILE        give the tools a file
/remember FILE    a document that is searched and cited
/exit             leave (also Ctrl-D)

Ctrl-C ends a turn and keeps what was said."""
COMMANDS = ("/help", "/tools", "/trace", "/session", "/new", "/file", "/remember", "/exit")
_WHY = {
    "policy": "it acts outside",
    "rule_of_two": "with it untrusted input, private data and outside effect come together",
    "interrupted": "it was interrupted before and may have run already",
}


@runtime_checkable
class Screen(Protocol):
    """Where a conversation is shown, and who is asked."""

    def answer(self, text: str) -> None:
        """A piece of the answer."""
        ...

    def remark(self, text: str) -> None:
        """A line that is not the answer."""
        ...

    def decide(self, question: str) -> str:
        """`once`, `always` or `deny`."""
        ...


def printable(text: str) -> str:
    """Text without what a terminal would act on: what a model or a tool wrote is shown, never obeyed."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}" for character in text)


def question_of(request: ApprovalRequest) -> str:
    """What a person is asked."""
    arguments = printable(json.dumps(dict(request.arguments), ensure_ascii=False, default=str))
    return f"{request.tool}({arguments})\n{_WHY.get(request.why, request.why)}; run it?"


class Talk:
    """Turns of one agent. `done` is true after /exit, `stopped` while the last turn was interrupted, `failed` once one could not be run."""

    def __init__(self, agent: Agent, screen: Screen, *, session: Session | None = None) -> None:
        self.agent, self.screen = agent, screen
        self.session = session or agent.session()
        self.done = self.stopped = self.failed = False

    def handle(self, text: str) -> None:
        """Take one message or command."""
        self.stopped = False
        try:
            if text.lstrip().startswith("/"):
                self._command(text.strip())
            elif text.strip():
                self.say(text)
        except BrokenPipeError:
            raise
        except Exception as error:
            known = known_error(error)
            if known is None:
                raise
            self._explain(known)

    def _explain(self, error: HerdError) -> None:
        self.failed = True
        self.screen.remark(f"error: {error.message}")
        if error.hint:
            self.screen.remark(f"hint: {error.hint}")

    def say(self, text: str) -> AgentResult | None:
        """Run a turn and show it; Ctrl-C ends it."""
        events = self.session.stream(text)
        try:
            for event in events:
                self.show(event)
        except KeyboardInterrupt:
            self.stopped = True
            events.close()  # type: ignore[attr-defined]
            self.screen.remark("stopped; what was said is kept")
        return self.session.result

    def go_on(self) -> None:
        """Run on a turn that was left open, by a crash or for want of somebody to ask."""
        self.screen.remark("this session has a turn that is not over; it goes on now")
        for event in self.session.stream_answer():
            self.show(event)

    def show(self, event: AgentEvent) -> None:
        """An event, as a person reads it."""
        if isinstance(event, AnswerDelta):
            self.screen.answer(printable(event.text))
        elif isinstance(event, ToolStarted):
            self.screen.remark(
                f"-> {event.call.name}({printable(json.dumps(dict(event.call.arguments), ensure_ascii=False, default=str))[:300]})"
            )
        elif isinstance(event, ToolDone):
            first = printable(event.step.text).strip().split("\n")[0][:200]
            self.screen.remark(f"<- {event.step.call.name}: {'' if event.step.ok else str(event.step.error_code) + ': '}{first}")
        elif isinstance(event, ShieldJudged) and event.report.blocked:
            violation = event.report.violation
            self.screen.remark(f"!! {event.report.point.value} stopped by {violation.shield if violation else 'a shield'}")
        elif isinstance(event, TurnFinished):
            self._finished(event)
        elif isinstance(event, TurnPaused):
            waits = ", ".join(call.name for call in (*event.approvals, *event.client_calls))
            self.screen.remark(f"the turn waits: {waits}")
        elif isinstance(event, TurnFailed):
            self.failed = True
            self.screen.remark(f"error: {event.message}")
            if event.hint:
                self.screen.remark(f"hint: {event.hint}")
        elif isinstance(event, TurnCancelled):
            self.screen.answer("\n")

    def _finished(self, event: TurnFinished) -> None:
        result = self.session.result
        shown = result is not None and result.steps and getattr(result.steps[-1], "kind", "") == "inference"
        self.screen.answer("\n" if shown and event.text.strip() else printable(event.text) + "\n")
        for citation in event.citations:
            self.screen.remark(f"[{citation.number}] {printable(citation.title or citation.source)}")
        if event.false_citations:
            self.screen.remark(f"cites what nobody retrieved: {', '.join(map(str, event.false_citations))}")
        if event.status == "incomplete":
            self.screen.remark(f"incomplete: {event.reason}")

    def _command(self, text: str) -> None:
        name, _, argument = text.partition(" ")
        if name not in COMMANDS:
            raise UsageError(f"unknown command {name}", hint=did_you_mean(name, COMMANDS, otherwise="/help lists the commands"))
        getattr(self, f"_do_{name[1:]}")(argument.strip())

    def _do_help(self, _: str) -> None:
        self.screen.remark(HELP)

    def _do_exit(self, _: str) -> None:
        self.done = True

    def _do_tools(self, _: str) -> None:
        names = self.agent.tool_labels()
        for name, taint in names.items():
            self.screen.remark(f"{name}  {' '.join(labels_of(taint)) or '-'}")
        if not names:
            self.screen.remark("no tools; name some with --tools")

    def _do_trace(self, _: str) -> None:
        for line in trace_lines(self.session.turns):
            self.screen.remark(printable(line))

    def _do_session(self, _: str) -> None:
        record = self.session.record
        self.screen.remark(f"session: {record.id}, {record.num_turns} turns")
        self.screen.remark(f"labels: {', '.join(labels_of(record.taint)) or 'none'}")
        self.screen.remark(f"runs without asking: {', '.join(sorted(record.grants)) or 'nothing'}")

    def _do_new(self, _: str) -> None:
        self.session = self.agent.session()
        self.screen.remark(f"session: {self.session.id}")

    def _do_file(self, argument: str) -> None:
        if not argument:
            raise UsageError("/file needs a file name", hint="/file data.csv")
        self.session.add_file(argument)
        self.screen.remark(f"the tools have {argument}")

    def _do_remember(self, argument: str) -> None:
        if not argument:
            raise UsageError("/remember needs a file name", hint="/remember notes.md")
        self.session.remember_file(argument)
        self.screen.remark(f"remembered {argument}")
