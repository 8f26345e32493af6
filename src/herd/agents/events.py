"""What a turn tells as it runs. Every event names its turn and has a sequence that grows by one; a turn that goes on goes on counting.

The order: TurnStarted (again after a pause, then `resumed`); any number of steps; at the end one of TurnPaused, TurnFinished, TurnFailed,
TurnCancelled. A model step is ModelStepStarted, deltas and calls, ModelStepDone; calls stand after it, each ToolStarted and ToolDone,
those that run at once mixed. Text goes out only once the shields let it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from herd.agents.steps import ModelStep, RetrievalStep, ToolStep
from herd.agents.turn import Citation
from herd.inference.port import Usage
from herd.safety.shields import Report
from herd.text.messages import ToolCall
from herd.tools.tool import Attachment, Taint


@dataclass(frozen=True, kw_only=True, slots=True)
class _Told:
    """What every event has."""

    type: ClassVar[str] = ""
    turn_id: str
    sequence: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON: `type`, and the fields."""
        data: dict[str, Any] = {"type": self.type}
        for item in fields(self):
            data[item.name] = _plain(getattr(self, item.name))
        return data


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnStarted(_Told):
    """The turn runs, for the first time or again."""

    type: ClassVar[str] = "turn_started"
    session_id: str
    resumed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ShieldJudged(_Told):
    """The shields of a touch point said something. `call_id` at the touch points of tools."""

    type: ClassVar[str] = "shield_judged"
    step_id: str
    report: Report
    call_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalDone(_Told):
    """Passages were put before the model."""

    type: ClassVar[str] = "retrieval_done"
    step: RetrievalStep


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStepStarted(_Told):
    """The model is asked. `final`: the limit because of which it has no tools any more."""

    type: ClassVar[str] = "model_step_started"
    step_id: str
    number: int
    final: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerDelta(_Told):
    """Text of the answer to show now."""

    type: ClassVar[str] = "answer_delta"
    step_id: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CallTextDelta(_Told):
    """Raw text of a call, let go once the whole call was judged."""

    type: ClassVar[str] = "call_text_delta"
    step_id: str
    call_id: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CallReady(_Told):
    """A whole call, as the model wrote it. It has not run."""

    type: ClassVar[str] = "call_ready"
    step_id: str
    call: ToolCall


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStepDone(_Told):
    """The model has answered; the step is saved. `step.usage` has its tokens."""

    type: ClassVar[str] = "model_step_done"
    step: ModelStep


@dataclass(frozen=True, kw_only=True, slots=True)
class ApprovalNeeded(_Told):
    """A person is asked before a call runs. `why`: `policy`, `rule_of_two`, or `interrupted`: it may have run before a crash."""

    type: ClassVar[str] = "approval_needed"
    step_id: str
    call: ToolCall
    why: str
    taint: Taint
    session_taint: Taint


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolStarted(_Told):
    """A call runs here; it is saved as begun."""

    type: ClassVar[str] = "tool_started"
    step_id: str
    call: ToolCall


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolDone(_Told):
    """A call has its result, also one that did not run: denied, blocked, repeated, over a limit. `step` is saved."""

    type: ClassVar[str] = "tool_done"
    step: ToolStep
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnPaused(_Told):
    """The turn waits: `client_calls` for outputs, `approvals` for decisions, by `Turn.answer`."""

    type: ClassVar[str] = "turn_paused"
    client_calls: tuple[ToolCall, ...] = ()
    approvals: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnFinished(_Told):
    """There is an answer. `status` is `completed`, or `incomplete` at a limit, which `reason` names; `blocked`: shields stopped it."""

    type: ClassVar[str] = "turn_finished"
    text: str
    status: str
    usage: Usage
    reason: str | None = None
    citations: tuple[Citation, ...] = ()
    false_citations: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnFailed(_Told):
    """The turn cannot go on: the model could not be asked, or a store not written."""

    type: ClassVar[str] = "turn_failed"
    code: str
    message: str
    hint: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnCancelled(_Told):
    """Somebody ended the turn; what ran was stopped."""

    type: ClassVar[str] = "turn_cancelled"


AgentEvent = (
    TurnStarted
    | ShieldJudged
    | RetrievalDone
    | ModelStepStarted
    | AnswerDelta
    | CallTextDelta
    | CallReady
    | ModelStepDone
    | ApprovalNeeded
    | ToolStarted
    | ToolDone
    | TurnPaused
    | TurnFinished
    | TurnFailed
    | TurnCancelled
)
LAST = (TurnPaused, TurnFinished, TurnFailed, TurnCancelled)
"""Kinds of the last event of a run."""


def _plain(value: Any) -> Any:
    if isinstance(value, ToolCall):
        return {"id": value.id, "name": value.name, "arguments": dict(value.arguments)}
    if isinstance(value, Usage):
        return {name: getattr(value, name) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")}
    if isinstance(value, Taint):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Attachment):
        return {"name": value.name, "mime_type": value.mime_type, "size_bytes": len(value.data)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    return value.to_dict() if hasattr(value, "to_dict") else value
