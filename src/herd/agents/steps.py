"""The steps of a turn, as they are kept: an answer of the model, a call of a tool, a verdict of the shields, a look into the documents.

A step is saved before it is acted on: a call that is `running` in the store may have run, whatever became of the process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from herd.base.errors import FormatError
from herd.inference.port import FinishReason, Usage
from herd.text.messages import Message, TextPart, ToolCall
from herd.tools.tool import Taint

CallState = Literal["planned", "approval", "client", "running", "done"]
"""Of a call: to be looked at, waiting for a person, waiting for the application, begun, and with a result."""
Side = Literal["server", "client"]
StepKind = Literal["inference", "tool_execution", "shield_call", "memory_retrieval"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A passage that was really retrieved in the turn, by the number that the answer cites it with."""

    number: int
    text: str
    source: str
    score: float
    title: str = ""
    document_id: str = ""


@dataclass(kw_only=True, slots=True)
class ModelStep:
    """An answer of the model. `final` is the limit because of which it had no tools; `stopped_by` the shield that ended it."""

    id: str
    number: int
    message: Message
    reason: FinishReason
    usage: Usage
    started_at: float
    ended_at: float
    final: str | None = None
    stopped_by: str | None = None
    formatted: bool = False
    """Whether this is the answer in the form of the schema that was asked for."""

    kind: StepKind = field(default="inference", init=False)

    def to_dict(self) -> dict[str, Any]:
        """Its stored form."""
        usage = {name: getattr(self.usage, name) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")}
        plain = {name: getattr(self, name) for name in ("id", "number", "kind", "reason", "started_at", "ended_at")}
        return plain | {
            "message": message_to_dict(self.message),
            "usage": usage,
            "final": self.final,
            "stopped_by": self.stopped_by,
            "formatted": self.formatted,
        }


@dataclass(kw_only=True, slots=True)
class ToolStep:
    """A call of a tool and what came of it.

    Attributes:
        call: what the model asked for; its id is unique within the session.
        side: who runs it.
        state: see `CallState`.
        why: what a person is asked for, while it waits: `policy`, `rule_of_two` or `interrupted` (it may have run before a crash).
        taint: the labels of the tool.
        approved: how a person decided, where one was asked.
        attempts: how often it was begun.
        text: what the model reads of it.
        ok: whether it gave what was asked for.
        error_code: why not: `denied`, `blocked`, `repeated`, `limit`, `not_found`, `unknown_outcome`, `cancelled`, or the tool's own.
        data: the same result for programs.
        attachments: ids of files that came back.
        verdicts: what the shields said of the call and of its result.
    """

    id: str
    number: int
    call: ToolCall
    side: Side = "server"
    state: CallState = "planned"
    why: str | None = None
    taint: Taint = field(default_factory=Taint)
    approved: str | None = None
    attempts: int = 0
    text: str = ""
    ok: bool = True
    error_code: str | None = None
    data: Any = None
    attachments: tuple[str, ...] = ()
    verdicts: tuple[Mapping[str, Any], ...] = ()
    started_at: float = 0.0
    ended_at: float = 0.0

    kind: StepKind = field(default="tool_execution", init=False)

    @property
    def call_id(self) -> str:
        """The call's name in events and messages."""
        assert self.call.id is not None
        return self.call.id

    @property
    def began(self) -> bool:
        """Whether the tool may have run."""
        return self.attempts > 0

    def message(self) -> Message:
        """What the model reads."""
        text = self.text if self.state == "done" else "[no result: the call was interrupted and may or may not have run]"
        return Message.tool(text, name=self.call.name, tool_call_id=self.call.id)

    def to_dict(self) -> dict[str, Any]:
        """Its stored form."""
        names = ("id", "number", "kind", "side", "state", "why", "approved", "attempts", "text", "ok", "error_code", "data")
        return {name: getattr(self, name) for name in names} | {
            "call": {"id": self.call.id, "name": self.call.name, "arguments": dict(self.call.arguments)},
            "taint": asdict(self.taint),
            "attachments": list(self.attachments),
            "verdicts": [dict(verdict) for verdict in self.verdicts],
            "started_at": self.started_at,
            "ended_at": self.ended_at,
        }


@dataclass(kw_only=True, slots=True)
class ShieldStep:
    """What the shields said at the beginning or the end of a turn. `report` is `safety.shields.Report.to_dict`, without the text."""

    id: str
    number: int
    point: str
    report: Mapping[str, Any]
    blocked: bool
    started_at: float = field(default_factory=time.time)
    ended_at: float = field(default_factory=time.time)

    kind: StepKind = field(default="shield_call", init=False)

    def to_dict(self) -> dict[str, Any]:
        """Its stored form."""
        names = ("id", "number", "kind", "point", "blocked", "started_at", "ended_at")
        return {name: getattr(self, name) for name in names} | {"report": dict(self.report)}


@dataclass(kw_only=True, slots=True)
class RetrievalStep:
    """Passages of the session's documents that were put before the model."""

    id: str
    number: int
    query: str
    passages: tuple[Passage, ...]
    started_at: float = field(default_factory=time.time)
    ended_at: float = field(default_factory=time.time)

    kind: StepKind = field(default="memory_retrieval", init=False)

    def to_dict(self) -> dict[str, Any]:
        """Its stored form."""
        names = ("id", "number", "kind", "query", "started_at", "ended_at")
        return {name: getattr(self, name) for name in names} | {"passages": [asdict(passage) for passage in self.passages]}


Step = ModelStep | ToolStep | ShieldStep | RetrievalStep


def message_to_dict(message: Message) -> dict[str, Any]:
    """A message as JSON, with what OpenAI's shape has no word for: whether it ended the turn."""
    return message.to_dict() | {"ends_turn": message.ends_turn}


def message_from_dict(data: Mapping[str, Any]) -> Message:
    """Read what `message_to_dict` wrote."""
    read = Message.from_dict({key: value for key, value in data.items() if key != "ends_turn"})
    parts = read.parts or (TextPart(text=""),)
    return Message(role=read.role, parts=parts, ends_turn=bool(data.get("ends_turn", True)), tool_call_id=read.tool_call_id, name=read.name)


def step_from_dict(data: Mapping[str, Any]) -> Step:
    """Read what a step's `to_dict` wrote. Raises FormatError for a kind that there is not."""
    values = {key: value for key, value in data.items() if key != "kind"}
    kind = data.get("kind")
    if kind == "inference":
        return ModelStep(**{**values, "message": message_from_dict(data["message"]), "usage": Usage(**data["usage"])})
    if kind == "tool_execution":
        call = ToolCall(**data["call"])
        taken = {
            "call": call,
            "taint": Taint(**data["taint"]),
            "attachments": tuple(data["attachments"]),
            "verdicts": tuple(data["verdicts"]),
        }
        return ToolStep(**{**values, **taken})
    if kind == "shield_call":
        return ShieldStep(**values)
    if kind == "memory_retrieval":
        return RetrievalStep(**{**values, "passages": tuple(Passage(**passage) for passage in data["passages"])})
    raise FormatError(f"there is no step of kind {kind!r}", hint="it was written by a newer herd")
