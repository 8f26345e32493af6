"""The output of a response as it grows: items, and the events that tell of them in the order of OpenAI's API.

A message: output_item.added, content_part.added, output_text.delta ..., output_text.done, content_part.done, output_item.done. A call of
a function: output_item.added, function_call_arguments.delta ..., .done, output_item.done. What the server itself runs (searches, code,
tools of MCP servers) goes in_progress, at work, completed or failed. Keys of an item that begin with `_` are the server's own: they say
what the model saw of it, are kept, and never told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from herd.stack.answers import new_id
from herd.stack.responses.journal import Journal

ItemDict = dict[str, Any]

PREFIXES = {
    "message": "msg_", "function_call": "fc_", "function_call_output": "fco_", "file_search_call": "fs_", "web_search_call": "ws_",
    "code_interpreter_call": "ci_", "mcp_call": "mcp_", "mcp_list_tools": "mcpl_", "mcp_approval_request": "mcpr_",
    "mcp_approval_response": "mcpa_", "reasoning": "rs_",
}  # fmt: skip
AT_WORK = {"file_search_call": "searching", "web_search_call": "searching", "code_interpreter_call": "interpreting"}
"""What an item of the server's own tools is called while the tool runs; an mcp_call stays in_progress."""
_HIDDEN = {
    "file_search_call": ("results", "file_search_call.results"),
    "code_interpreter_call": ("outputs", "code_interpreter_call.outputs"),
}


def shown(item: ItemDict, include: Iterable[str]) -> ItemDict:
    """An item as it is told: without the server's own keys, and with results only where they were asked for."""
    told = {key: value for key, value in item.items() if not key.startswith("_")}
    included = frozenset(include)
    field, name = _HIDDEN.get(item["type"], ("", ""))
    if field in told and name not in included:
        told[field] = None
    if item["type"] == "web_search_call" and "web_search_call.action.sources" not in included:
        told["action"] = {key: value for key, value in (told.get("action") or {}).items() if key != "sources"}
    if item["type"] == "message" and "message.output_text.logprobs" not in included:
        told["content"] = [{**part, "logprobs": []} if part["type"] == "output_text" else part for part in told["content"]]
    return told


class Output:
    """What a response has said and done. One item is open at a time, but for calls of the server's tools, which may run side by side."""

    def __init__(self, journal: Journal, include: Iterable[str] = ()) -> None:
        self._journal, self._include = journal, frozenset(include)
        self.items: list[ItemDict] = []
        self._open: ItemDict | None = None
        self._part: dict[str, Any] | None = None
        self._texts: list[str] = []

    def told(self) -> list[ItemDict]:
        """The items as they are told."""
        return [shown(item, self._include) for item in self.items]

    def _place(self, item: ItemDict) -> int:
        return next(place for place, other in enumerate(self.items) if other is item)

    def _tell(self, kind: str, item: ItemDict, **fields: Any) -> None:
        self._journal.add(f"response.{kind}", output_index=self._place(item), item_id=item["id"], **fields)

    def add(self, item: ItemDict) -> ItemDict:
        """Begin an item."""
        self.items.append(item)
        self._journal.add("response.output_item.added", output_index=len(self.items) - 1, item=shown(item, self._include))
        return item

    def done(self, item: ItemDict) -> None:
        """An item is whole."""
        self._journal.add("response.output_item.done", output_index=self._place(item), item=shown(item, self._include))

    # -- messages

    def _begin_part(self, part: dict[str, Any]) -> None:
        if self._open is None or self._open["type"] != "message":
            self.end()
            message = {"type": "message", "id": new_id("msg_"), "status": "in_progress", "role": "assistant", "content": []}
            self._open = self.add(message)
        elif self._part is not None:
            self._end_part()
        self._part, self._texts = part, []
        self._tell("content_part.added", self._open, content_index=len(self._open["content"]), part=dict(part))

    def text(self, text: str, logprobs: list[dict[str, Any]] | None = None) -> None:
        """More text of the assistant's message."""
        if self._part is None or self._part["type"] != "output_text":
            self._begin_part({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
        assert self._part is not None and self._open is not None
        self._texts.append(text)
        self._part["logprobs"] += logprobs or []
        told = [{"token": one["token"], "logprob": one["logprob"], "top_logprobs": one["top_logprobs"]} for one in logprobs or ()]
        self._tell("output_text.delta", self._open, content_index=len(self._open["content"]), delta=text, logprobs=told)

    def logprobs(self, logprobs: list[dict[str, Any]]) -> None:
        """Of tokens that added no text of their own."""
        if self._part is not None and self._part["type"] == "output_text":
            self._part["logprobs"] += logprobs

    def said_nothing(self) -> None:
        """The answer has no text and no call: an empty message says so."""
        if not self.items:
            self._begin_part({"type": "output_text", "text": "", "annotations": [], "logprobs": []})

    def annotate(self, annotation: dict[str, Any]) -> None:
        """Tell where the text that was written last comes from."""
        if self._part is None or self._open is None or self._part["type"] != "output_text":
            return
        number = len(self._part["annotations"])
        self._part["annotations"].append(annotation)
        place = len(self._open["content"])
        self._tell("output_text.annotation.added", self._open, content_index=place, annotation_index=number, annotation=annotation)

    def refusal(self, text: str) -> None:
        """The assistant's message ends in a refusal."""
        self._begin_part({"type": "refusal", "refusal": ""})
        assert self._open is not None
        self._texts = [text]
        self._tell("refusal.delta", self._open, content_index=len(self._open["content"]), delta=text)

    @property
    def written(self) -> str:
        """The text of the part that is open."""
        return "".join(self._texts) if self._part is not None and self._part["type"] == "output_text" else ""

    def _end_part(self) -> None:
        assert self._part is not None and self._open is not None
        place, text = len(self._open["content"]), "".join(self._texts)
        if self._part["type"] == "refusal":
            self._part["refusal"] = text
            self._tell("refusal.done", self._open, content_index=place, refusal=text)
        else:
            self._part["text"] = text
            told = [{key: one[key] for key in ("token", "logprob", "top_logprobs")} for one in self._part["logprobs"]]
            self._tell("output_text.done", self._open, content_index=place, text=text, logprobs=told)
        self._open["content"].append(self._part)
        part = shown({"type": "message", "content": [self._part]}, self._include)["content"][0]
        self._tell("content_part.done", self._open, content_index=place, part=part)
        self._part, self._texts = None, []

    # -- calls of the client's functions

    def call(self, name: str, call_id: str) -> None:
        """Begin a call of a function that the client runs."""
        self.end()
        item = {"type": "function_call", "id": new_id("fc_"), "call_id": call_id, "name": name, "arguments": "", "status": "in_progress"}
        self._open = self.add(item)

    def arguments(self, text: str) -> None:
        """More of its arguments."""
        assert self._open is not None and self._open["type"] == "function_call"
        self._texts.append(text)
        self._tell("function_call_arguments.delta", self._open, delta=text)

    def end(self, status: str = "completed") -> None:
        """End what is open."""
        item = self._open
        if item is None:
            return
        if self._part is not None:
            self._end_part()
        elif item["type"] == "function_call":
            item["arguments"] = "".join(self._texts)
            if status == "completed":
                self._tell("function_call_arguments.done", item, name=item["name"], arguments=item["arguments"])
        item["status"] = status
        self.done(item)
        self._open, self._texts = None, []

    # -- what the server runs

    def begin(self, item: ItemDict) -> ItemDict:
        """Begin an item of a tool that the server runs: it is in progress."""
        self.end()
        self.add(item)
        self._tell(f"{item['type']}.in_progress", item)
        return item

    def code(self, item: ItemDict, code: str) -> None:
        """The code that will run."""
        item["code"] = code
        self._tell("code_interpreter_call_code.delta", item, delta=code)
        self._tell("code_interpreter_call_code.done", item, code=code)

    def mcp_arguments(self, item: ItemDict, arguments: str) -> None:
        """The arguments of a call of an MCP server's tool."""
        item["arguments"] = arguments
        self._tell("mcp_call_arguments.delta", item, delta=arguments)
        self._tell("mcp_call_arguments.done", item, arguments=arguments)

    def at_work(self, item: ItemDict) -> None:
        """The tool runs."""
        if item["type"] in AT_WORK:
            item["status"] = AT_WORK[item["type"]]
            self._tell(f"{item['type']}.{item['status']}", item)

    def finish(self, item: ItemDict, *, failed: bool = False) -> None:
        """The tool is done. Searches and code have no event for a failure: their item's status tells of it."""
        if "status" in item:
            item["status"] = "failed" if failed else "completed"
        if not failed or item["type"].startswith("mcp_"):
            self._tell(f"{item['type']}.{'failed' if failed else 'completed'}", item)
        self.done(item)

    def cut(self) -> None:
        """The response ends here, whatever is open: nothing of it is told as whole."""
        self.end("incomplete")
        for item in self.items:
            if item.get("status") in ("in_progress", "searching", "interpreting"):
                item["status"] = "incomplete"
                self.done(item)
