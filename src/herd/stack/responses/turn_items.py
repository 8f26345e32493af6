"""The events of the agents' loop, told as items of a response: what the model says, calls of both sides, requests for a yes, citations."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

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
from herd.agents.steps import ModelStep, ToolStep
from herd.agents.turn import Citation
from herd.stack.answers import new_id
from herd.stack.errors import RequestError
from herd.stack.responses.kit import Kind, Kit
from herd.stack.responses.output import ItemDict
from herd.stack.responses.work import Asking, Ending, Telling
from herd.text.messages import ToolCall
from herd.tools.tool import Attachment

MAX_IMAGE_BYTES = 2 * 1024 * 1024
"""Pictures up to here are told in the item itself; of larger ones, the name."""
_INCOMPLETE = frozenset({"tokens", "context", "seconds"})


class TurnTeller:
    """Events of the loop as those of the output."""

    def __init__(self, asking: Asking, telling: Telling, kit: Kit, *, container: str) -> None:
        self._asking, self._telling, self._output, self._kit = asking, telling, telling.output, kit
        self._container = container
        self._client = {tool.name for tool in asking.request.tools}
        self._items: dict[str, ItemDict] = {}
        self._approved = {request["id"]: request["id"] for request, _ in asking.approvals}
        self._whole = asking.schema is not None
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
