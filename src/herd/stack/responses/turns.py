"""A response with tools of the server's: one turn of the agents' loop, told as items.

The turn ends where the client has to do something: run a function, or say yes or no to a call. The next response goes on from what was
said; a yes runs the call first. Limits of the loop end in an answer of the model, which is a completed response; the limit of tokens is
the client's own, and an incomplete one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from herd.agents.config import AgentConfig, ApprovalMode, ApprovalPolicy, ClientTool, TurnLimits
from herd.agents.events import (
    AgentEvent,
    AnswerDelta,
    ApprovalNeeded,
    CallReady,
    ModelStepDone,
    ToolDone,
    ToolStarted,
    TurnCancelled,
    TurnFailed,
    TurnFinished,
    TurnPaused,
)
from herd.agents.loop import run_turn
from herd.agents.runtime import Runtime
from herd.agents.steps import ModelStep, ToolStep
from herd.agents.toolset import Toolset
from herd.agents.turn import Citation, Turn
from herd.inference.port import AsyncAnswer, ChatRequest, CompletionRequest, Part, Usage
from herd.safety.shields import Shields
from herd.stack.answers import new_id
from herd.stack.errors import RequestError
from herd.stack.guard import Context
from herd.stack.responses.asking import choice_of
from herd.stack.responses.items import CODE, FILE_SEARCH, WEB_SEARCH, arguments_of
from herd.stack.responses.kit import Kind, Kit, Outfitter, is_server_tool
from herd.stack.responses.output import ItemDict, Output
from herd.stack.responses.types import ChosenTool
from herd.stack.responses.work import Asking, Ending, Telling
from herd.stack.service import Job, Service
from herd.text.messages import Message, ToolCall
from herd.tools.tool import Attachment, Taint

MAX_IMAGE_BYTES = 2 * 1024 * 1024
"""Pictures up to here are told in the item itself; of larger ones, the name."""
_INCOMPLETE = frozenset({"tokens", "context", "seconds"})
_SEEN = {
    "file_search_call": Taint(reads_untrusted=True, reads_private=True),
    "web_search_call": Taint(reads_untrusted=True),
    "mcp_call": Taint(reads_untrusted=True, acts_outside=True),
}
"""What an item of an earlier response brought into the conversation."""


class _Answer:
    """A job of the server's as the port's answer."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __aiter__(self) -> AsyncIterator[list[Part]]:
        return self._parts()

    async def _parts(self) -> AsyncGenerator[list[Part], None]:
        async with aclosing(self._job.parts()) as ticks:
            async for parts in ticks:
                yield parts

    def close(self) -> None:
        self._job.close()


class ServedInference:
    """The server's model for one request: admitted, counted and limited as if a client asked each time."""

    def __init__(self, service: Service, context: Context, model: str) -> None:
        self._service, self._context, self._model = service, context, model

    async def chat(self, request: ChatRequest) -> AsyncAnswer:
        """Answer a conversation."""
        return _Answer(await self._service.answer(request, self._context, self._model))

    async def complete(self, request: CompletionRequest) -> AsyncAnswer:
        """Go on with a text."""
        return _Answer(await self._service.answer(request, self._context, self._model))


def approvals_of(asking: Asking) -> list[tuple[ItemDict, ItemDict]]:
    """Requests that these items say yes to, each with the item that says so."""
    before = [*asking.history, *asking.items]
    requests = {item["id"]: item for item in before if item["type"] == "mcp_approval_request"}
    done = {item.get("approval_request_id") for item in before if item["type"] == "mcp_call"}
    given = [item for item in asking.items if item["type"] == "mcp_approval_response" and item["approve"]]
    return [(requests[item["approval_request_id"]], item) for item in given if item["approval_request_id"] not in done]


def needs_turn(asking: Asking, tools: Sequence[Any]) -> bool:
    """Whether the loop has to run: a tool of the server's is on offer, or a call waits that was said yes to."""
    return any(is_server_tool(tool) for tool in tools) or bool(approvals_of(asking))


class Turns:
    """Answers by the loop."""

    def __init__(self, service: Service, outfitter: Outfitter, tools: Sequence[Any], *, shields: Shields | None = None) -> None:
        self._service, self._outfitter, self._tools, self._shields = service, outfitter, tools, shields

    async def __call__(self, asking: Asking, telling: Telling) -> Ending:
        """Answer."""
        taken = [tool.name for tool in asking.request.tools]
        kit = await self._outfitter.kit(asking.owner, self._tools, taken, [*asking.history, *asking.items])
        try:
            for item in kit.listed:
                _tell_listing(telling.output, item)
            container = _container(asking)
            turn = self._turn(asking, kit, container)
            runtime = Runtime(
                inference=ServedInference(self._service, asking.context, asking.body.model),
                tools=Toolset(kit.tools, _client_tools(asking)),
                shields=self._shields,
                caller=asking.request.caller,
            )
            config = _config(asking, kit)
            teller = _Teller(asking, telling, kit, container=container)
            async with aclosing(run_turn(runtime, config, turn)) as events:
                async for event in events:
                    ending = teller.take(event)
                    if ending is not None:
                        return ending
            return Ending(state="cancelled")
        finally:
            await kit.close()

    def _turn(self, asking: Asking, kit: Kit, container: str) -> Turn:
        """The turn as it stands: what was said, and calls that were said yes to."""
        messages = list(asking.request.messages)
        last = max((place + 1 for place, message in enumerate(messages) if message.role == "assistant"), default=0)
        head = last or sum(1 for message in messages if message.role == "system")
        turn = Turn(session_id=session_of(asking.owner, container), history=tuple(messages[:head]), inputs=tuple(messages[head:]))
        for item in [*asking.history, *asking.items]:
            turn.taint = turn.taint | _SEEN.get(item["type"], Taint())
        approved = approvals_of(asking)
        if approved:
            calls = [_approved_call(request, kit) for request, _ in approved]
            now = time.time()
            turn.steps.append(
                ModelStep(
                    id=new_id("step_"),
                    number=0,
                    message=Message.assistant("", calls, ends_turn=False),
                    reason="tool_calls",
                    usage=Usage(prompt_tokens=0, completion_tokens=0),
                    started_at=now,
                    ended_at=now,
                )
            )
            for number, call in enumerate(calls, start=1):
                # The person saw the very call, and that is the gravest thing that is asked.
                step = ToolStep(id=new_id("step_"), number=number, call=call, approved="once", why="rule_of_two")
                step.taint = next((tool.taint for tool in kit.tools if tool.name == call.name), Taint())
                turn.steps.append(step)
        return turn


def _approved_call(request: ItemDict, kit: Kit) -> ToolCall:
    name = next(
        (name for name, kind in kit.kinds.items() if kind.label == request["server_label"] and request["name"] in (kind.name, name)),
        None,
    )
    if name is None:
        message = f"the tool {request['name']!r:.100} of {request['server_label']!r:.100} is not among the tools now"
        raise RequestError("usage", message, hint="give the tools that the request was made with", param="tools")
    return ToolCall(name=name, arguments=arguments_of(request["arguments"], "arguments"), id=request["id"])


def _container(asking: Asking) -> str:
    """Where code of this conversation runs: where it ran before, as far as that was of the same owner."""
    for item in reversed([*asking.history, *asking.items]):
        if item["type"] == "code_interpreter_call" and item.get("container_id"):
            return str(item["container_id"])
    return new_id("cntr_")


def session_of(owner: str, container: str) -> str:
    """The session of a container: no one gets into another's by its name."""
    return hashlib.sha256(f"{owner}\0{container}".encode("utf-8", "replace")).hexdigest()[:32]


def _client_tools(asking: Asking) -> list[ClientTool]:
    return [ClientTool(definition=tool, taint=Taint()) for tool in asking.request.tools]


def _config(asking: Asking, kit: Kit) -> AgentConfig:
    body, request = asking.body, asking.request
    modes: dict[str, ApprovalMode] = dict.fromkeys(kit.ask, "ask")
    limits = TurnLimits()
    limits = replace(
        limits,
        max_steps=max(limits.max_steps, (body.max_tool_calls or 0) + 1),
        max_tool_calls=body.max_tool_calls or limits.max_tool_calls,
        max_tokens=body.max_output_tokens,
        final_tokens=min(limits.final_tokens, body.max_output_tokens or limits.final_tokens),
    )
    choice, named, _ = choice_of(body)
    name = None if named is None else _name_of(named, kit)
    if approvals_of(asking):
        choice, name = "auto", None  # what had to be called was, and waits
    return AgentConfig(
        model=asking.response["model"],
        client_tools=tuple(_client_tools(asking)),
        shields=(),
        limits=limits,
        approval=ApprovalPolicy(outside="auto", other="auto", by_tool=modes),
        sampling=replace(request.params, max_tokens=None, logprobs=None),
        tool_choice=choice,
        tool_name=name,
        parallel_tool_calls=request.parallel_tool_calls,
        response_schema=_schema(asking),
    )


def _name_of(chosen: ChosenTool, kit: Kit) -> str | None:
    """What the model calls a tool by; of an MCP server, where it has one alone or one is named."""
    if chosen.type == "function":
        return chosen.name
    if chosen.type != "mcp":
        kinds = {WEB_SEARCH: "web_search_call", FILE_SEARCH: "file_search_call", CODE: "code_interpreter_call"}
        wanted = kinds["web_search" if chosen.type.startswith("web_search") else chosen.type]
        return next((name for name, kind in kit.kinds.items() if kind.item == wanted), None)
    of_server = [name for name, kind in kit.kinds.items() if kind.item == "mcp_call" and kind.label == chosen.server_label]
    found = [name for name in of_server if chosen.name in (None, kit.kinds[name].name)]
    return found[0] if len(found) == 1 else None


def _schema(asking: Asking) -> Mapping[str, Any] | None:
    given = None if asking.body.text is None else asking.body.text.format
    if given is None or given.type == "text":
        return None
    return given.schema_ if isinstance(given.schema_, dict) else {"type": "object"}


def _tell_listing(output: Output, listing: ItemDict) -> None:
    tools, error = listing["tools"], listing["error"]
    item = output.begin({**listing, "tools": []})
    item["tools"] = tools
    output.finish(item, failed=error is not None)


class _Teller:
    """Events of the loop as those of the output."""

    def __init__(self, asking: Asking, telling: Telling, kit: Kit, *, container: str) -> None:
        self._asking, self._telling, self._output, self._kit = asking, telling, telling.output, kit
        self._container = container
        self._client = {tool.name for tool in asking.request.tools}
        self._items: dict[str, ItemDict] = {}
        self._approved = {request["id"]: request["id"] for request, _ in approvals_of(asking)}
        self._whole = _schema(asking) is not None
        self._held: list[str] = []

    def take(self, event: AgentEvent) -> Ending | None:
        """Tell an event; how the response ends, if it does."""
        if isinstance(event, AnswerDelta):
            if self._whole:
                self._held.append(event.text)
            else:
                self._output.text(event.text)
        elif isinstance(event, CallReady):
            self._called(event.call)
        elif isinstance(event, ModelStepDone):
            return self._step(event.step)
        elif isinstance(event, ApprovalNeeded):
            self._request(event.call)
        elif isinstance(event, ToolStarted):
            self._begin(event.call)
        elif isinstance(event, ToolDone):
            self._done(event.step, event.attachments)
        elif isinstance(event, TurnPaused):
            return Ending(state="completed")
        elif isinstance(event, TurnFinished):
            return self._finished(event)
        elif isinstance(event, TurnFailed):
            raise RequestError(event.code, event.message, hint=event.hint)
        elif isinstance(event, TurnCancelled):
            return Ending(state="cancelled")
        return None

    def _called(self, call: ToolCall) -> None:
        if call.name in self._client:
            self._output.call(call.name, call.id or new_id("call_"))
            self._output.arguments(json.dumps(dict(call.arguments), ensure_ascii=False))
            self._output.end()

    def _step(self, step: ModelStep) -> Ending | None:
        if step.usage.prompt_tokens or step.usage.completion_tokens:
            self._telling.usages.append(step.usage)
        held, self._held = "".join(self._held), []
        if held and (step.formatted or step.stopped_by is not None):
            self._output.text(held)
        if step.reason == "content_filter":
            return Ending(state="incomplete", reason="content_filter")
        most = self._asking.body.max_output_tokens
        if most is not None and sum(usage.completion_tokens for usage in self._telling.usages) >= most and step.reason == "length":
            return Ending(state="incomplete", reason="max_output_tokens")
        return None

    def _request(self, call: ToolCall) -> None:
        self._output.end()
        kind = self._kit.kinds[call.name]
        arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
        item = {"type": "mcp_approval_request", "id": new_id("mcpr_"), "server_label": kind.label, "name": kind.name}
        self._output.done(self._output.add({**item, "arguments": arguments}))

    def _begin(self, call: ToolCall) -> ItemDict:
        kind = self._kit.kinds.get(call.name, Kind(item="mcp_call", name=call.name))
        item = self._output.begin(self._item(kind, call))
        self._items[call.id or ""] = item
        if kind.item == "code_interpreter_call":
            self._output.code(item, str(call.arguments.get("code", "")))
        elif kind.item == "mcp_call":
            self._output.mcp_arguments(item, json.dumps(dict(call.arguments), ensure_ascii=False))
        self._output.at_work(item)
        return item

    def _item(self, kind: Kind, call: ToolCall) -> ItemDict:
        item: ItemDict = {"type": kind.item, "id": "", "status": "in_progress"}
        query = str(call.arguments.get("query", ""))
        if kind.item == "file_search_call":
            return item | {"id": new_id("fs_"), "queries": [query], "results": None}
        if kind.item == "web_search_call":
            return item | {"id": new_id("ws_"), "action": {"type": "search", "query": query, "queries": [query], "sources": []}}
        if kind.item == "code_interpreter_call":
            return item | {"id": new_id("ci_"), "code": "", "container_id": self._container, "outputs": None}
        approved = self._approved.get(call.id or "")
        told = {"id": new_id("mcp_"), "server_label": kind.label, "name": kind.name, "arguments": "", "output": None, "error": None}
        return item | told | {"approval_request_id": approved}

    def _done(self, step: ToolStep, attachments: Sequence[Attachment]) -> None:
        if step.side == "client" or step.call.name in self._client:
            return
        item = self._items.pop(step.call_id, None) or self._begin(step.call)
        item["_result"] = step.text
        data: Mapping[str, Any] = step.data if isinstance(step.data, dict) else {}
        if item["type"] == "file_search_call":
            item["results"] = list(data.get("results", ()))
        elif item["type"] == "web_search_call":
            item["action"]["sources"] = [{"type": "url", "url": str(one.get("url", ""))} for one in data.get("top_k", ())]
        elif item["type"] == "code_interpreter_call":
            item["outputs"] = [{"type": "logs", "logs": step.text}, *_pictures(attachments)]
        elif step.ok:
            item["output"] = step.text
        else:
            item["error"] = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": step.text}]}
        # Code that failed has run to its end, and its error is what it gave.
        self._output.finish(item, failed=not step.ok and not str(step.error_code or "").startswith("code_"))

    def _finished(self, event: TurnFinished) -> Ending:
        if event.reason == "blocked":
            if self._output.written != event.text:
                self._output.refusal(event.text)
            return Ending(state="incomplete", reason="content_filter")
        if not self._output.written and event.text:
            self._output.text(event.text)
        for citation in event.citations:
            self._output.annotate(_annotation(citation))
        if event.status == "incomplete" and event.reason in _INCOMPLETE:
            return Ending(state="incomplete", reason="max_output_tokens")
        return Ending(state="completed")


def _annotation(citation: Citation) -> dict[str, Any]:
    if citation.document_id:
        return {
            "type": "file_citation",
            "file_id": citation.document_id,
            "filename": citation.title or citation.source,
            "index": citation.start,
        }
    return {
        "type": "url_citation",
        "url": citation.source,
        "title": citation.title or citation.source,
        "start_index": citation.start,
        "end_index": citation.end,
    }


def _pictures(attachments: Sequence[Attachment]) -> list[dict[str, Any]]:
    found = [one for one in attachments if one.mime_type.startswith("image/") and len(one.data) <= MAX_IMAGE_BYTES]
    return [{"type": "image", "url": f"data:{one.mime_type};base64,{base64.b64encode(one.data).decode('ascii')}"} for one in found]
