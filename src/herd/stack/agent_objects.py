"""Agents, sessions, turns, steps and events in the shapes of Llama Stack 0.2, with herd's own fields beside them under `herd`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from herd.agents.config import AgentConfig, ClientTool, TurnLimits
from herd.agents.events import (
    AgentEvent,
    AnswerDelta,
    CallReady,
    CallTextDelta,
    ModelStepDone,
    ModelStepStarted,
    RetrievalDone,
    ShieldJudged,
    ToolDone,
    ToolStarted,
    TurnCancelled,
    TurnFinished,
    TurnPaused,
    TurnStarted,
)
from herd.agents.sessions import AgentRecord, Document, SessionRecord
from herd.agents.steps import ModelStep, RetrievalStep, ShieldStep, Step, ToolStep
from herd.agents.turn import Turn
from herd.inference.params import SamplingParams
from herd.safety.defaults import MAKERS
from herd.stack.agent_types import AgentConfigIn, Content, GroupWithArgs, Sampling, Strategy, ToolConfig
from herd.stack.errors import RequestError
from herd.text.messages import Message, ToolCall, ToolDefinition

_LEGACY_SHIELDS = {"llama_guard": "harm", "prompt_guard": "injection", "code_scanner": "code-shield"}
"""Providers' names of shields that applications of 0.2 write, and what stands here in their place."""


def text_of(content: Content) -> str:
    """A content as text."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def group_names(groups: Sequence[str | GroupWithArgs] | None) -> tuple[str, ...]:
    """Tool groups by name."""
    return tuple(group.name if isinstance(group, GroupWithArgs) else group for group in groups or ())


def config_of(body: AgentConfigIn, defaults: Sequence[str]) -> AgentConfig:
    """The agent of a body. Raises RequestError for a shield that there is not, FormatError for a tool of the wrong shape."""
    iterations = body.max_infer_iters
    asked = None if body.tool_config is None else body.tool_config.tool_choice
    schema = None if body.response_format is None else body.response_format.json_schema
    if body.response_format is not None and schema is None:
        raise RequestError("usage", "response_format has no schema", hint="put a JSON Schema at json_schema", param="response_format")
    config = AgentConfig(
        model=body.model,
        instructions=body.instructions,
        name=body.name or "",
        tools=group_names(body.toolgroups),
        client_tools=tuple(
            ClientTool(
                definition=ToolDefinition(name=tool.name, description=tool.description or "", parameters=_schema(tool.parameters or ()))
            )
            for tool in body.client_tools or ()
        ),
        shields=_shields(body, defaults),
        limits=TurnLimits() if iterations is None else TurnLimits(max_steps=iterations),
        sampling=_sampling(body.sampling_params or Sampling()),
        response_schema=schema,
    )
    return with_choice(config, asked or body.tool_choice)


def with_choice(config: AgentConfig, choice: str | ToolConfig | None) -> AgentConfig:
    """The agent with a choice of tools: a word, or a tool's name."""
    name = choice.tool_choice if isinstance(choice, ToolConfig) else choice
    if name is None:
        return config
    if name in ("auto", "none", "required"):
        return replace(config, tool_choice=name, tool_name=None)  # type: ignore[arg-type]
    return replace(config, tool_choice="required", tool_name=name)


def _schema(parameters: Sequence[Any]) -> dict[str, Any]:
    kinds = {"int": "integer", "float": "number", "str": "string", "bool": "boolean", "list": "array", "dict": "object"}
    known = {"string", "number", "integer", "boolean", "array", "object", "null"}
    fields: dict[str, Any] = {}
    for parameter in parameters:
        kind = kinds.get(parameter.parameter_type, parameter.parameter_type)
        fields[parameter.name] = {"description": parameter.description} | ({"type": kind} if kind in known else {})
    return {"type": "object", "properties": fields, "required": [parameter.name for parameter in parameters if parameter.required]}


def _shields(body: AgentConfigIn, defaults: Sequence[str]) -> tuple[str, ...]:
    names = [*defaults]
    for asked in (*(body.input_shields or ()), *(body.output_shields or ())):
        name = _LEGACY_SHIELDS.get(asked, asked)
        if name not in MAKERS:
            raise RequestError("usage", f"there is no shield {asked!r:.100}", hint="shields: " + ", ".join(MAKERS), param="input_shields")
        names.append(name)
    return tuple(dict.fromkeys(names))


def _sampling(given: Sampling) -> SamplingParams:
    strategy = given.strategy or Strategy()
    greedy = strategy.type == "greedy"
    values: dict[str, Any] = {
        "temperature": 0.0 if greedy else strategy.temperature,
        "top_p": None if greedy else strategy.top_p,
        "top_k": strategy.top_k if strategy.type == "top_k" else None,
        "max_tokens": given.max_tokens or None,
        "repetition_penalty": given.repetition_penalty,
        "stop": tuple(given.stop) if given.stop else None,
    }
    return SamplingParams(**{name: value for name, value in values.items() if value is not None})


def config_object(config: AgentConfig) -> dict[str, Any]:
    """An agent's config, as it is told."""
    sampling = config.sampling
    strategy: dict[str, Any] = {"type": "greedy"}
    if sampling.temperature > 0:
        strategy = {"type": "top_p", "temperature": sampling.temperature, "top_p": sampling.top_p}
    return {
        "model": config.model,
        "instructions": config.instructions,
        "name": config.name or None,
        "sampling_params": {
            "strategy": strategy,
            "max_tokens": sampling.max_tokens or 0,
            "repetition_penalty": sampling.repetition_penalty,
            "stop": list(sampling.stop),
        },
        "input_shields": list(config.shields),
        "output_shields": list(config.shields),
        "toolgroups": list(config.tools),
        "client_tools": [_tool_object(tool.definition) for tool in config.client_tools],
        "tool_choice": config.tool_choice if config.tool_name is None else config.tool_name,
        "tool_config": {"tool_choice": config.tool_choice if config.tool_name is None else config.tool_name},
        "max_infer_iters": config.limits.max_steps,
        "enable_session_persistence": True,
        "response_format": None if config.response_schema is None else {"type": "json_schema", "json_schema": dict(config.response_schema)},
    }


def _tool_object(tool: ToolDefinition) -> dict[str, Any]:
    fields = [
        {
            "name": name,
            "parameter_type": str(schema.get("type", "string")),
            "description": str(schema.get("description", "")),
            "required": name in tool.required,
        }
        for name, schema in tool.properties.items()
    ]
    return {"name": tool.name, "description": tool.description, "parameters": fields, "metadata": None}


def agent_object(record: AgentRecord) -> dict[str, Any]:
    """An agent."""
    return {"agent_id": record.id, "agent_config": config_object(record.config), "created_at": when(record.created_at)}


def session_object(record: SessionRecord, turns: Sequence[Turn], documents: Sequence[Document] = ()) -> dict[str, Any]:
    """A session with its turns."""
    labels = [name for name in ("reads_untrusted", "reads_private", "acts_outside") if getattr(record.taint, name)]
    return {
        "session_id": record.id,
        "session_name": record.name,
        "started_at": when(record.created_at),
        "turns": [turn_object(turn) for turn in turns],
        "herd": {
            "labels": labels,
            "runs_without_asking": sorted(record.grants),
            "open_turn": record.open_turn,
            "documents": [document.id for document in documents],
        },
    }


def turn_object(turn: Turn) -> dict[str, Any]:
    """A turn. `output_message` is the answer, or the calls that wait."""
    waiting = [step.call for step in turn.waiting] if turn.status == "waiting" else []
    return {
        "turn_id": turn.id,
        "session_id": turn.session_id,
        "input_messages": [{"role": message.role, "content": message.text} for message in turn.inputs],
        "output_message": _answer(turn.text, waiting, cut=turn.status == "incomplete"),
        "output_attachments": [],
        "steps": [found for step in turn.steps for found in [step_object(turn.id, step)]],
        "started_at": when(turn.started_at),
        "completed_at": None if turn.ended_at is None else when(turn.ended_at),
        "herd": {
            "status": turn.status,
            "reason": turn.reason,
            "citations": [citation.to_dict() for citation in turn.citations],
            "false_citations": list(turn.false_citations),
            "waiting": [{"call_id": step.call_id, "for": step.state, "why": step.why} for step in turn.waiting],
            "error": None if turn.error is None else dict(turn.error),
        },
    }


def _answer(text: str, calls: Sequence[ToolCall], *, cut: bool = False) -> dict[str, Any]:
    stop = "out_of_tokens" if cut else "end_of_message" if calls else "end_of_turn"
    return {"role": "assistant", "content": text, "stop_reason": stop, "tool_calls": [call_object(call) for call in calls]}


def call_object(call: ToolCall) -> dict[str, Any]:
    """A call."""
    arguments = dict(call.arguments)
    return {
        "call_id": call.id,
        "tool_name": call.name,
        "arguments": arguments,
        "arguments_json": json.dumps(arguments, ensure_ascii=False),
    }


def step_object(turn_id: str, step: Step) -> dict[str, Any]:
    """A step, of one of the four kinds."""
    plain: dict[str, Any] = {
        "step_id": step.id,
        "turn_id": turn_id,
        "step_type": step.kind,
        "started_at": when(step.started_at) if step.started_at else None,
        "completed_at": when(step.ended_at) if step.ended_at else None,
    }
    if isinstance(step, ModelStep):
        return plain | {"model_response": _answer(step.message.text, step.message.tool_calls, cut=step.reason == "length")}
    if isinstance(step, ToolStep):
        return plain | {"tool_calls": [call_object(step.call)], "tool_responses": [_tool_response(step)] if step.state == "done" else []}
    if isinstance(step, ShieldStep):
        return plain | {"violation": _violation(step.report) if step.blocked else None}
    return plain | {"inserted_context": "\n\n".join(passage.text for passage in step.passages), "vector_db_ids": "session"}


def _tool_response(step: ToolStep) -> dict[str, Any]:
    told = {"ok": step.ok, "error_code": step.error_code, "attachments": list(step.attachments)}
    return {"call_id": step.call_id, "tool_name": step.call.name, "content": step.text, "metadata": told}


def _violation(report: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "violation_level": "error",
        "user_message": report.get("user_message") or None,
        "metadata": {"categories": report.get("categories", []), "point": report.get("point")},
    }


def when(seconds: float) -> str:
    """A time as 0.2 tells it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def payloads(event: AgentEvent, turn: Turn) -> list[dict[str, Any]]:
    """An event of the loop as events of 0.2's stream: none, one, or a step's beginning and its end."""
    if isinstance(event, TurnStarted):
        return [] if event.resumed else [{"event_type": "turn_start", "turn_id": turn.id}]
    if isinstance(event, TurnPaused):
        return [{"event_type": "turn_awaiting_input", "turn": turn_object(turn)}]
    if isinstance(event, TurnFinished | TurnCancelled):
        return [{"event_type": "turn_complete", "turn": turn_object(turn)}]
    return _of_model(event) or _of_step(event, turn)


def _of_model(event: AgentEvent) -> list[dict[str, Any]]:
    """What is told while the model writes, and that a step begins."""
    if isinstance(event, ModelStepStarted):
        return [_begun(event.step_id, "inference")]
    if isinstance(event, ToolStarted):
        return [_begun(event.step_id, "tool_execution")]
    if isinstance(event, AnswerDelta):
        return [_progress(event.step_id, {"type": "text", "text": event.text})]
    if isinstance(event, CallTextDelta):
        return [_progress(event.step_id, {"type": "tool_call", "tool_call": event.text, "parse_status": "in_progress"})]
    if isinstance(event, CallReady):
        return [_progress(event.step_id, {"type": "tool_call", "tool_call": call_object(event.call), "parse_status": "succeeded"})]
    return []


def _of_step(event: AgentEvent, turn: Turn) -> list[dict[str, Any]]:
    """A step that is done, with its beginning where that was not told."""
    if isinstance(event, ModelStepDone):
        return [_done(turn.id, event.step)]
    if isinstance(event, ToolDone):
        told = event.step.began and event.step.side == "server"
        return [*([] if told else [_begun(event.step.id, "tool_execution")]), _done(turn.id, event.step)]
    if isinstance(event, RetrievalDone):
        return [_begun(event.step.id, "memory_retrieval"), _done(turn.id, event.step)]
    if isinstance(event, ShieldJudged):
        found = [step for step in turn.steps if step.id == event.step_id and isinstance(step, ShieldStep)]
        return [part for step in found for part in (_begun(step.id, "shield_call"), _done(turn.id, step))]
    return []


def _begun(step_id: str, kind: str) -> dict[str, Any]:
    return {"event_type": "step_start", "step_id": step_id, "step_type": kind, "metadata": {}}


def _progress(step_id: str, delta: dict[str, Any]) -> dict[str, Any]:
    return {"event_type": "step_progress", "step_id": step_id, "step_type": "inference", "delta": delta}


def _done(turn_id: str, step: ModelStep | ToolStep | ShieldStep | RetrievalStep) -> dict[str, Any]:
    return {"event_type": "step_complete", "step_id": step.id, "step_type": step.kind, "step_details": step_object(turn_id, step)}


def inputs_of(messages: Sequence[Any]) -> list[Message]:
    """The user's messages of a turn's body. Raises RequestError where there is none."""
    said = [message for message in messages if message.role == "user"]
    if not said:
        raise RequestError(
            "usage", "a turn has no message of the user", hint="results of tools go to .../turn/{turn_id}/resume", param="messages"
        )
    return [Message.user("\n\n".join(text for text in (text_of(message.content), message.context or "") if text)) for message in said]
