"""A turn: what was said before it, what came in, its steps so far, and where it stands. The state that `loop.run_turn` moves on.

A turn is data alone: read from a store after a crash, it goes on where its steps end. It runs without any session too: give `history`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

from herd.agents.config import DECISIONS, Decision
from herd.agents.errors import TurnStateError
from herd.agents.ids import new_id
from herd.agents.steps import ModelStep, Passage, RetrievalStep, ShieldStep, Step, ToolStep, message_from_dict, message_to_dict
from herd.base.errors import did_you_mean
from herd.inference.port import Usage
from herd.text.messages import BUILTIN_TOOLS, Message, ToolCall
from herd.tools.tool import Attachment, Taint

TurnStatus = Literal["running", "waiting", "completed", "incomplete", "cancelled", "failed"]
"""Of a turn. `waiting`: for outputs of the application or a person's yes. `incomplete`: it ended at a limit, with an answer."""
OPEN: tuple[TurnStatus, ...] = ("running", "waiting")


@dataclass(frozen=True, kw_only=True, slots=True)
class Citation:
    """A passage that the answer cites, by where the mark stands in its text. Checked: the passage was retrieved in this session."""

    number: int
    start: int
    end: int
    source: str
    title: str = ""
    document_id: str = ""
    text: str = ""
    support: float = 0.0
    """Share of the words of the sentence before the mark that stand in the passage: near 0, the passage does not say it."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """What the application gives for a call of a client tool."""

    text: str
    ok: bool = True


@dataclass(kw_only=True, slots=True)
class Turn:
    """A turn.

    Attributes:
        id: its name.
        session_id: the session it belongs to, or the name that tools keep their own sessions under.
        inputs: messages that came in: of the user, or a system's.
        history: messages before it. The system message comes from the agent's instructions and is not among them.
        taint: labels that the session had before it, and of what came in with it.
        grants: tools that a person said "always" to in this session.
        files: files of the session, for tools that read them.
        steps: in order.
        status: see `TurnStatus`.
        reason: why it ended, where that is not "the model was done": a limit's name, `blocked`, an error's code.
        text: the answer, once it ended.
        citations: of the answer, to passages that were really retrieved.
        false_citations: numbers that the answer cites and nobody retrieved.
        error: code, message and hint of what failed.
        decisions: what a person decided on calls that wait, by call id.
        outputs: what the application gave for calls that wait, by call id.
        passages: those retrieved earlier in the session, which may be cited still.
        num_events: events told so far; the next one's sequence.
        active_s: seconds that it ran in earlier runs.
    """

    id: str = field(default_factory=lambda: new_id("turn"))
    session_id: str = field(default_factory=lambda: new_id("session"))
    inputs: tuple[Message, ...] = ()
    history: tuple[Message, ...] = ()
    taint: Taint = field(default_factory=Taint)
    grants: set[str] = field(default_factory=set[str])
    files: tuple[Attachment, ...] = ()
    steps: list[Step] = field(default_factory=list[Step])
    status: TurnStatus = "running"
    reason: str | None = None
    text: str = ""
    citations: tuple[Citation, ...] = ()
    false_citations: tuple[int, ...] = ()
    error: Mapping[str, Any] | None = None
    decisions: dict[str, Decision] = field(default_factory=dict[str, Decision])
    outputs: dict[str, Output] = field(default_factory=dict[str, Output])
    passages: tuple[Passage, ...] = ()
    num_events: int = 0
    active_s: float = 0.0
    started_at: float = field(default_factory=time.time)
    ended_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is not over."""
        return self.status in OPEN

    @property
    def model_steps(self) -> list[ModelStep]:
        """Answers of the model."""
        return [step for step in self.steps if isinstance(step, ModelStep)]

    @property
    def tool_steps(self) -> list[ToolStep]:
        """Calls of tools."""
        return [step for step in self.steps if isinstance(step, ToolStep)]

    @property
    def waiting(self) -> list[ToolStep]:
        """Calls that wait for a person or for the application."""
        return [step for step in self.tool_steps if step.state in ("approval", "client")]

    @property
    def usage(self) -> Usage:
        """Tokens of all its model steps."""
        used = [step.usage for step in self.model_steps]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in used),
            completion_tokens=sum(usage.completion_tokens for usage in used),
            cached_tokens=sum(usage.cached_tokens for usage in used),
        )

    def taint_now(self) -> Taint:
        """The labels of all that is in the conversation: of before, and of each call that was begun, whatever came of it."""
        labels = self.taint
        for step in self.tool_steps:
            if step.began:
                labels = labels | step.taint
        return labels | Taint(reads_untrusted=True, reads_private=True) if self._retrieved else labels

    @property
    def _retrieved(self) -> bool:
        return any(isinstance(step, RetrievalStep) and step.passages for step in self.steps)

    def all_passages(self) -> tuple[Passage, ...]:
        """What may be cited: passages that were retrieved, in this turn or earlier in the session."""
        found = list(self.passages)
        for step in self.steps:
            if isinstance(step, RetrievalStep):
                found += step.passages
            elif isinstance(step, ToolStep) and step.ok and step.state == "done":
                found += passages_of(step.data)
        return tuple(found)

    def said(self) -> list[Message]:
        """The messages of the turn itself, what comes in first: every call with a result, as the prompt format wants it.

        A turn whose input the shields stopped leaves no message: what is not let in once is not let in by the next turn.
        """
        if any(isinstance(step, ShieldStep) and step.blocked and step.point != "output" for step in self.steps):
            return []
        messages = list(self.inputs)
        by_call = {step.call_id: step for step in self.tool_steps}
        for step in self.steps:
            if isinstance(step, RetrievalStep) and step.passages:
                call = ToolCall(name="knowledge_search", arguments={"query": step.query}, id=step.id)
                messages.append(Message.assistant(tool_calls=(call,), ends_turn=False))
                messages.append(Message.tool(_listed(step.passages), name=call.name, tool_call_id=call.id))
            elif isinstance(step, ModelStep):
                messages += _with_results(step.message, by_call)
        return messages

    def messages(self) -> list[Message]:
        """The whole conversation so far."""
        return [*self.history, *self.said()]

    def open_calls(self) -> list[ToolStep]:
        """Calls of the last answer that have no result yet."""
        return [step for step in self.tool_steps if step.state != "done"]

    def answer(self, outputs: Mapping[str, Output | str] | None = None, decisions: Mapping[str, str] | None = None) -> None:
        """Give what a waiting turn waits for; then run it on. Raises TurnStateError for a call that does not wait for that."""
        for call_id, output in (outputs or {}).items():
            self._find_waiting(call_id, "client")
            self.outputs[call_id] = output if isinstance(output, Output) else Output(text=output)
        for call_id, decision in (decisions or {}).items():
            self._find_waiting(call_id, "approval")
            if decision not in DECISIONS:
                raise TurnStateError(f"the decision on {call_id!r} is {decision!r}", hint="decide once, always or deny")
            self.decisions[call_id] = cast("Decision", decision)

    def _find_waiting(self, call_id: str, state: str) -> ToolStep:
        waiting = {step.call_id: step for step in self.waiting if step.state == state}
        if self.status != "waiting" or call_id not in waiting:
            what = "an output" if state == "client" else "a decision"
            hint = did_you_mean(call_id, waiting, otherwise="calls that do: " + (", ".join(waiting) or "none"))
            raise TurnStateError(f"turn {self.id} does not wait for {what} of {call_id!r}", hint=hint)
        return waiting[call_id]

    def to_dict(self, *, steps: bool = True) -> dict[str, Any]:
        """Its stored form; `history`, `files` and `passages` belong to the session and are not in it."""
        names = ("id", "session_id", "status", "reason", "text", "num_events", "active_s", "started_at", "ended_at")
        data = {name: getattr(self, name) for name in names} | {
            "inputs": [message_to_dict(message) for message in self.inputs],
            "taint": asdict(self.taint),
            "citations": [citation.to_dict() for citation in self.citations],
            "false_citations": list(self.false_citations),
            "error": None if self.error is None else dict(self.error),
            "decisions": dict(self.decisions),
            "outputs": {key: asdict(output) for key, output in self.outputs.items()},
            "grants": sorted(self.grants),
        }
        return data | ({"steps": [step.to_dict() for step in self.steps]} if steps else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, steps: Iterable[Step] = (), history: Sequence[Message] = ()) -> Turn:
        """Read what `to_dict` wrote."""
        from herd.agents.steps import step_from_dict

        values = {key: value for key, value in data.items() if key != "steps"}
        values |= {
            "inputs": tuple(message_from_dict(message) for message in data["inputs"]),
            "taint": Taint(**data["taint"]),
            "citations": tuple(Citation(**citation) for citation in data["citations"]),
            "false_citations": tuple(data["false_citations"]),
            "outputs": {key: Output(**output) for key, output in data["outputs"].items()},
            "decisions": dict(data["decisions"]),
            "grants": set(data["grants"]),
            "steps": [*(step_from_dict(step) for step in data.get("steps", ())), *steps],
            "history": tuple(history),
        }
        return cls(**values)


def _with_results(message: Message, steps: Mapping[str, ToolStep]) -> list[Message]:
    """An answer and the results of its calls. Tools that Llama knows by name are called alone, so beside others each gets a message."""
    calls = message.tool_calls
    alone = len(calls) > 1 and any(call.name in BUILTIN_TOOLS for call in calls)
    messages: list[Message] = [] if alone else [message]
    for index, call in enumerate(calls):
        if alone:
            messages.append(Message.assistant(message.text if index == 0 else "", (call,), ends_turn=False))
        if (step := steps.get(call.id or "")) is not None:
            messages.append(step.message())
    return messages


def call_key(call: ToolCall) -> str:
    """The same for the same tool with the same arguments, however they are ordered."""
    return json.dumps([call.name, dict(call.arguments)], sort_keys=True, ensure_ascii=False, default=str)


def passages_of(data: Any) -> Iterator[Passage]:
    """Passages in the data of a tool's result, such as those of `knowledge_search`."""
    found = data.get("passages") if isinstance(data, Mapping) else None
    for index, item in enumerate(found if isinstance(found, list) else []):
        if isinstance(item, Mapping) and isinstance(item.get("text"), str) and isinstance(item.get("source"), str):
            yield Passage(
                number=int(item.get("number", index + 1)),
                text=item["text"],
                source=item["source"],
                score=float(item.get("score", 0.0)),
                title=str(item.get("title", "")),
                document_id=str(item.get("document_id", "")),
            )


def _listed(passages: Sequence[Passage]) -> str:
    return "\n\n".join(f"[{passage.number}] {passage.title or passage.source}\n{passage.text}" for passage in passages)
