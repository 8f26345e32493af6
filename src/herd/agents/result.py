"""What a turn gave, for whoever asked: the answer, its citations and files, and what it waits for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from herd.agents.errors import AgentError
from herd.agents.steps import Step, ToolStep
from herd.agents.turn import Citation, Turn
from herd.inference.port import Usage
from herd.text.messages import ToolCall
from herd.tools.tool import Attachment


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentResult:
    """A turn, run as far as it went.

    Attributes:
        text: the answer.
        status: `completed`, `incomplete` (at a limit), `waiting`, `cancelled` or `failed`.
        reason: why, where that is not "the model was done".
        parsed: the answer as the type that was asked for.
        citations: passages that it cites.
        attachments: files that tools gave back.
        waiting: calls that wait, for outputs of the application or for a yes.
    """

    session_id: str
    turn_id: str
    text: str
    status: str
    reason: str | None = None
    parsed: Any = None
    citations: tuple[Citation, ...] = ()
    false_citations: tuple[int, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    waiting: tuple[ToolStep, ...] = ()
    steps: tuple[Step, ...] = ()
    usage: Usage = field(default_factory=lambda: Usage(prompt_tokens=0, completion_tokens=0))
    error: Mapping[str, Any] | None = None

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls of the turn, in order."""
        return tuple(step.call for step in self.steps if isinstance(step, ToolStep))

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the contract of `herd agent --json`."""
        usage = {name: getattr(self.usage, name) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")}
        return {
            "session_id": self.session_id,
            "turn_id": self.turn_id,
            "status": self.status,
            "reason": self.reason,
            "text": self.text,
            "citations": [citation.to_dict() for citation in self.citations],
            "false_citations": list(self.false_citations),
            "attachments": [{"name": file.name, "mime_type": file.mime_type, "size_bytes": len(file.data)} for file in self.attachments],
            "waiting": [step.to_dict() for step in self.waiting],
            "steps": [step.to_dict() for step in self.steps],
            "usage": usage,
            "error": None if self.error is None else dict(self.error),
        }


def result_of(turn: Turn, attachments: tuple[Attachment, ...] = (), response: Any = None) -> AgentResult:
    """The result of a turn. `response` is the type, or the schema, that the answer was asked in."""
    return AgentResult(
        session_id=turn.session_id,
        turn_id=turn.id,
        text=turn.text,
        status=turn.status,
        reason=turn.reason,
        parsed=_parsed(turn, response),
        citations=turn.citations,
        false_citations=turn.false_citations,
        attachments=attachments,
        waiting=tuple(turn.waiting) if turn.status == "waiting" else (),
        steps=tuple(turn.steps),
        usage=turn.usage,
        error=turn.error,
    )


def _parsed(turn: Turn, response: Any) -> Any:
    """The answer as what was asked for; nothing of a turn that did not come to it. Raises AgentError for one that does not fit."""
    formatted = any(step.formatted for step in turn.model_steps[-1:])
    if response is None or turn.status != "completed" or turn.reason is not None or not formatted:
        return None
    try:
        value = json.loads(turn.text)
        return value if isinstance(response, Mapping) else response.model_validate(value)
    except ValueError as error:
        raise AgentError(
            f"the answer is not in the form that was asked for: {str(error)[:200]}", hint="raise max_tokens, or make the form simpler"
        ) from error


def schema_of(response: Any) -> dict[str, Any] | None:
    """The JSON Schema of a response type: a schema as it is, or that of a pydantic model. Raises AgentError for anything else."""
    if response is None:
        return None
    if isinstance(response, Mapping):
        return dict(response)
    if hasattr(response, "model_json_schema") and hasattr(response, "model_validate"):
        return dict(response.model_json_schema())
    raise AgentError(f"{response!r:.80} is no response type", hint="give a JSON Schema or a pydantic model")
