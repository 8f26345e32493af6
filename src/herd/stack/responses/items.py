"""Items as they are kept, made of items that came in, and the messages that a model reads of them.

Every kept item has an id. What a tool of the server's gave stands in the item itself (`results`, `outputs`, `output`), or, as the model saw
it, under `_result`; an item without either says nothing to the model. Thoughts of other models are kept and not shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from herd.base.errors import HerdError
from herd.stack.answers import new_id
from herd.stack.errors import RequestError
from herd.stack.responses.output import PREFIXES, ItemDict
from herd.text.messages import Message, ToolCall

FILE_SEARCH, WEB_SEARCH, CODE = "file_search", "web_search", "code_interpreter"
"""What the model calls the server's own tools by."""
_UNREADABLE = {"input_image": "a picture", "input_file": "a file", "input_audio": "a sound", "computer_screenshot": "a picture"}


def _refuse(kind: str, place: str) -> RequestError:
    hint = "Llama 3.1 reads text only" + ("; search files with file_search" if kind == "input_file" else "")
    return RequestError("unsupported", f"{place} is {_UNREADABLE[kind]} ({kind})", hint=hint, param=place)


def _content(role: str, content: Any, place: str) -> list[dict[str, Any]]:
    """Parts of a message. Raises RequestError for one that cannot be read."""
    kind = "output_text" if role == "assistant" else "input_text"
    given = [{"type": kind, "text": content}] if isinstance(content, str) else content
    parts: list[dict[str, Any]] = []
    for number, part in enumerate(given):
        if part["type"] in _UNREADABLE:
            raise _refuse(part["type"], f"{place}.content[{number}]")
        if part["type"] == "refusal":
            parts.append({"type": "refusal", "refusal": part["refusal"]})
        elif kind == "output_text":
            parts.append({"type": kind, "text": part["text"], "annotations": part.get("annotations") or [], "logprobs": []})
        else:
            parts.append({"type": kind, "text": part["text"]})
    return parts


def _output(output: Any, place: str) -> str | list[dict[str, Any]]:
    if isinstance(output, str):
        return output
    for number, part in enumerate(output):
        if part["type"] in _UNREADABLE:
            raise _refuse(part["type"], f"{place}.output[{number}]")
    return [{"type": "input_text", "text": part.get("text", part.get("refusal", ""))} for part in output]


def _kept(item: ItemDict, place: str) -> ItemDict:
    kind = item["type"]
    if kind == "message":
        item = {**item, "content": _content(item["role"], item["content"], place)}
        item.pop("phase", None)
    elif kind == "function_call_output":
        item = {**item, "output": _output(item["output"], place)}
    if kind not in ("mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "reasoning"):
        item = {**item, "status": item.get("status") or "completed"}
    return {**item, "id": item.get("id") or new_id(PREFIXES[kind])}


def kept_items(given: Any, find: Callable[[str], ItemDict | None], *, param: str = "input") -> list[ItemDict]:
    """Items of a body's `input`, a text or pydantic's items. `find` gives an item that is kept already. Raises RequestError by place."""
    if given is None:
        return []
    if isinstance(given, str):
        return [{"type": "message", "id": new_id("msg_"), "role": "user", "status": "completed", "content": _content("user", given, param)}]
    items: list[ItemDict] = []
    for number, model in enumerate(given):
        item = model.model_dump(mode="json", exclude_none=True)
        place = f"{param}[{number}]"
        if item["type"] != "item_reference":
            items.append(_kept(item, place))
            continue
        found = find(item["id"])
        if found is None:
            raise RequestError("not_found", f"{place}: there is no item {item['id']!r:.100}", hint="give the item itself", param=place)
        items.append(found)
    return items


def text_of(content: Any) -> str:
    """The text of parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", part.get("refusal", "")) for part in cast("list[dict[str, Any]]", content))


class _Messages:
    """Messages as they are made: calls that follow each other are of one message, and their outputs come after it."""

    def __init__(self) -> None:
        self.made: list[Message] = []
        self._text: str | None = None
        self._calls: list[ToolCall] = []
        self._outputs: list[Message] = []
        self._names: dict[str, str] = {}

    def message(self, message: Message) -> None:
        self.flush()
        if message.role == "assistant":
            self._text = message.text
        else:
            self.made.append(message)

    def call(self, call: ToolCall, output: str | None = None) -> None:
        if self._outputs and output is None:
            self.flush()
        self._calls.append(call)
        self._names[call.id or ""] = call.name
        if output is not None:
            self._outputs.append(Message.tool(output, name=call.name, tool_call_id=call.id))

    def output(self, call_id: str, text: str, place: str) -> None:
        if call_id not in self._names:
            message = f"{place}: there is no call {call_id!r:.100} before this output"
            raise RequestError("usage", message, hint="give the function_call before it, or previous_response_id", param=place)
        self._outputs.append(Message.tool(text, name=self._names[call_id], tool_call_id=call_id))

    def flush(self) -> None:
        if self._text is not None or self._calls:
            self.made.append(Message.assistant(self._text or "", self._calls, ends_turn=not self._calls))
        self.made += self._outputs
        self._text, self._calls, self._outputs = None, [], []


def arguments_of(text: str, place: str) -> dict[str, Any]:
    """Arguments from their JSON. Raises RequestError."""
    try:
        found: Any = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise RequestError(
            "format", f"{place}: the arguments are not JSON: {error}", hint="give a JSON object as text", param=place
        ) from error
    if not isinstance(found, dict):
        raise RequestError("format", f"{place}: the arguments are no JSON object", hint="give a JSON object as text", param=place)
    return cast("dict[str, Any]", found)


def _server_call(item: ItemDict) -> tuple[str, dict[str, Any], str | None]:
    """Name, arguments and result of a call that the server ran."""
    kind = item["type"]
    result: str | None = item.get("_result")
    if kind == "file_search_call":
        texts = [str(found.get("text") or "") for found in item.get("results") or ()]
        return FILE_SEARCH, {"query": " ".join(item["queries"])}, result if result is not None else "\n\n".join(texts) or None
    if kind == "web_search_call":
        return WEB_SEARCH, {"query": str((item.get("action") or {}).get("query") or "")}, result
    if kind == "code_interpreter_call":
        logs = [str(one.get("logs") or "") for one in item.get("outputs") or () if one.get("type") == "logs"]
        return CODE, {"code": item.get("code") or ""}, result if result is not None else "\n".join(logs) or None
    error = item.get("error")
    told: str | None = error if isinstance(error, str) or error is None else json.dumps(error, ensure_ascii=False)
    return item["name"], arguments_of(item["arguments"], "arguments"), result or item.get("output") or told


def messages_of_items(items: Sequence[ItemDict], instructions: Iterable[Message] = ()) -> list[Message]:
    """What the model reads. Raises RequestError that names the item by its place."""
    made = _Messages()
    made.made += instructions
    requests = {item["id"]: item for item in items if item["type"] == "mcp_approval_request"}
    for number, item in enumerate(items):
        place = f"input[{number}]"
        kind = item["type"]
        try:
            if kind == "message":
                text = text_of(item["content"])
                role = "system" if item["role"] == "developer" else item["role"]
                made.message(Message.assistant(text) if role == "assistant" else Message.from_dict({"role": role, "content": text}))
            elif kind == "function_call":
                made.call(ToolCall(name=item["name"], arguments=arguments_of(item["arguments"], place), id=item["call_id"]))
            elif kind == "function_call_output":
                made.output(item["call_id"], text_of(item["output"]), place)
            elif kind == "mcp_approval_response":
                _denied(made, item, requests, place)
            elif kind in ("file_search_call", "web_search_call", "code_interpreter_call", "mcp_call"):
                name, arguments, result = _server_call(item)
                if result is not None:
                    made.call(ToolCall(name=name, arguments=arguments, id=item["id"]), result)
        except RequestError:
            raise
        except HerdError as error:
            raise RequestError("format", f"{place}: {error.message}", hint=error.hint, param=place) from error
    made.flush()
    return made.made


def _denied(made: _Messages, item: ItemDict, requests: dict[str, ItemDict], place: str) -> None:
    """A no is told as what the call gave; a yes leads to an mcp_call, which tells of itself."""
    request = requests.get(item["approval_request_id"])
    if request is None:
        message = f"{place}: there is no approval request {item['approval_request_id']!r:.100} before it"
        raise RequestError("usage", message, hint="give the mcp_approval_request, or previous_response_id", param=place)
    if not item["approve"]:
        told = "The user did not allow this call." + (f" Reason: {item['reason']}" if item.get("reason") else "")
        call = ToolCall(name=request["name"], arguments=arguments_of(request["arguments"], place), id=request["id"])
        made.call(call, told)
