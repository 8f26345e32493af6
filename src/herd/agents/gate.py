"""Whether a call may run, before anybody is asked: limits, repetition, the approval policy and the Rule of Two. Pure functions on a turn.

The Rule of Two (Meta, "Agents Rule of Two"): of untrusted input, private data and outside effect a session may have two without a
person's yes. Labels count from what was begun, in order, over all turns of the session; a yes holds for one call.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from herd.agents.config import AgentConfig
from herd.agents.steps import ToolStep
from herd.agents.turn import Turn, call_key
from herd.tools.tool import Taint

Why = Literal["policy", "rule_of_two", "interrupted"]
_COVERS: dict[str, tuple[str, ...]] = {
    "policy": ("policy", "rule_of_two", "interrupted"),
    "rule_of_two": ("rule_of_two", "interrupted"),
    "interrupted": ("interrupted",),
}
"""For each reason to ask, the reasons of a yes that hold for it too."""


def completes_three(labels: Taint, tool: Taint) -> bool:
    """Whether a tool with these labels would be, or be another of, the third of the three."""
    return tool.count > 0 and (labels | tool).count == 3


def why_to_ask(config: AgentConfig, turn: Turn, step: ToolStep, labels: Taint) -> Why | None:
    """What a person has to be asked for, if anything. `labels` are those of all that goes before the call."""
    if step.state == "running" or step.why == "interrupted":
        return "interrupted" if step.taint.acts_outside and not _approved(step, "interrupted") else None
    if config.rule_of_two and completes_three(labels, step.taint):
        return None if _approved(step, "rule_of_two") else "rule_of_two"
    # Who runs a tool is asked by running it: a client's own tool waits only where the agent names it.
    asks = step.side == "server" or step.call.name in config.approval.by_tool
    if asks and config.approval.mode(step.call.name, step.taint) == "ask" and step.call.name not in turn.grants:
        return None if _approved(step, "policy") else "policy"
    return None


def _approved(step: ToolStep, why: Why) -> bool:
    return step.approved in ("once", "always") and step.why in _COVERS[why]


def num_repeats(turn: Turn, step: ToolStep, admitted: Collection[str]) -> int:
    """How often the same call was begun in the turn, or is `admitted` (steps by id) to be."""
    key = call_key(step.call)
    return sum(1 for other in turn.tool_steps if other is not step and _begins(other, admitted) and call_key(other.call) == key)


def num_begun(turn: Turn, admitted: Collection[str]) -> int:
    """Calls of the turn that were begun, or are `admitted` to be."""
    return sum(1 for step in turn.tool_steps if _begins(step, admitted))


def _begins(step: ToolStep, admitted: Collection[str]) -> bool:
    return step.began or step.id in admitted


def limit_reached(config: AgentConfig, turn: Turn, elapsed_s: float) -> str | None:
    """The limit that the turn has reached, by name."""
    limits = config.limits
    if any(step.error_code == "repeated" for step in turn.tool_steps):
        return "repeats"
    if any(step.error_code == "limit" for step in turn.tool_steps):
        return "tool_calls" if elapsed_s < limits.max_seconds else "seconds"
    if len(turn.model_steps) >= limits.max_steps:
        return "steps"
    if limits.max_tokens is not None and turn.usage.completion_tokens >= limits.max_tokens:
        return "tokens"
    return "seconds" if elapsed_s >= limits.max_seconds else None


def told(config: AgentConfig, limit: str) -> str:
    """A limit in words that a model and a person understand."""
    limits = config.limits
    return {
        "steps": f"the limit of {limits.max_steps} steps is reached",
        "tokens": f"the limit of {limits.max_tokens} tokens is reached",
        "seconds": f"the limit of {limits.max_seconds:g} seconds is reached",
        "tool_calls": f"the limit of {limits.max_tool_calls} tool calls is reached",
        "repeats": f"the same tool was called more than {limits.max_repeats} times with the same arguments",
        "silent": "nothing was said",
        "context": "the conversation no longer fits into the model's context",
    }.get(limit, limit)
