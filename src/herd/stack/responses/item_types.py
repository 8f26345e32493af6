"""Items that come in: messages, calls and what they gave, and what earlier responses told, given back as it was."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from herd.stack.types import Lenient, Text

Status = Literal["in_progress", "completed", "incomplete", "failed", "searching", "interpreting", "calling"]
_ID = Annotated[str, Field(min_length=1, max_length=256)]
_Objects = Annotated[list[dict[str, Any]], Field(max_length=4096)]


class PartText(Lenient):
    """Text of a message."""

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"] = Field(description="Whose text it is.")
    text: Text = Field(description="The text.")
    annotations: _Objects | None = Field(default=None, description="On output_text: sources.")
    logprobs: _Objects | None = Field(default=None, description="On output_text; not kept.")


class PartRefusal(Lenient):
    """A refusal of the assistant."""

    type: Literal["refusal"] = Field(description="Always refusal.")
    refusal: Text = Field(description="Its text.")


class PartOther(Lenient):
    """A picture, a file or a sound: none can be read, and each is refused by its place."""

    type: Literal["input_image", "input_file", "input_audio", "computer_screenshot"] = Field(description="What it is.")


def _part_kind(data: Any) -> str:
    kind = data.get("type") if isinstance(data, dict) else getattr(data, "type", None)
    if kind in ("input_image", "input_file", "input_audio", "computer_screenshot"):
        return "other"
    return "refusal" if kind == "refusal" else "text"


ContentPart = Annotated[
    Annotated[PartText, Tag("text")] | Annotated[PartRefusal, Tag("refusal")] | Annotated[PartOther, Tag("other")],
    Discriminator(_part_kind),
]
Content = Text | Annotated[list[ContentPart], Field(max_length=4096, fail_fast=True)]


class MessageItem(Lenient):
    """A message."""

    type: Literal["message"] = Field(default="message", description="May be left out.")
    role: Literal["user", "assistant", "system", "developer"] = Field(description="Who says it.")
    content: Content = Field(description="What is said.")
    id: _ID | None = Field(default=None, description="Where the server told one.")
    status: Status | None = Field(default=None, description="As it was told.")
    phase: Literal["commentary", "final_answer"] | None = Field(default=None, description="Taken, and changes nothing.")


class FunctionCallItem(Lenient):
    """A call that the assistant made."""

    type: Literal["function_call"] = Field(description="Always function_call.")
    call_id: _ID = Field(description="What its output names.")
    name: str = Field(min_length=1, max_length=128, description="The function's name.")
    arguments: Text = Field(description="The arguments as JSON text.")
    id: _ID | None = Field(default=None, description="Where the server told one.")
    status: Status | None = Field(default=None, description="As it was told.")


class FunctionOutputItem(Lenient):
    """What a call gave."""

    type: Literal["function_call_output"] = Field(description="Always function_call_output.")
    call_id: _ID = Field(description="The call.")
    output: Content = Field(description="What it gave; the model reads it.")
    id: _ID | None = Field(default=None, description="Where the server told one.")
    status: Status | None = Field(default=None, description="As it was told.")


class FileSearchItem(Lenient):
    """A search in vector stores that an earlier response made."""

    type: Literal["file_search_call"] = Field(description="Always file_search_call.")
    id: _ID = Field(description="As it was told.")
    queries: Annotated[list[Text], Field(max_length=64)] = Field(description="What was searched.")
    status: Status | None = Field(default=None, description="As it was told.")
    results: _Objects | None = Field(default=None, description="What was found, where it was told.")


class WebSearchItem(Lenient):
    """A search of the web that an earlier response made."""

    type: Literal["web_search_call"] = Field(description="Always web_search_call.")
    id: _ID = Field(description="As it was told.")
    action: dict[str, Any] | None = Field(default=None, description="What was searched.")
    status: Status | None = Field(default=None, description="As it was told.")


class CodeItem(Lenient):
    """Code that an earlier response ran."""

    type: Literal["code_interpreter_call"] = Field(description="Always code_interpreter_call.")
    id: _ID = Field(description="As it was told.")
    code: Text | None = Field(default=None, description="The code.")
    container_id: str | None = Field(default=None, max_length=256, description="Where it ran.")
    outputs: _Objects | None = Field(default=None, description="What it gave, where it was told.")
    status: Status | None = Field(default=None, description="As it was told.")


class McpListItem(Lenient):
    """Tools that an MCP server told of; it is not asked again."""

    type: Literal["mcp_list_tools"] = Field(description="Always mcp_list_tools.")
    id: _ID = Field(description="As it was told.")
    server_label: str = Field(max_length=128, description="The server.")
    tools: _Objects = Field(description="Its tools.")
    error: Text | None = Field(default=None, description="Why it told none.")


class McpCallItem(Lenient):
    """A call of an MCP server's tool that an earlier response made."""

    type: Literal["mcp_call"] = Field(description="Always mcp_call.")
    id: _ID = Field(description="As it was told.")
    server_label: str = Field(max_length=128, description="The server.")
    name: str = Field(max_length=256, description="The tool.")
    arguments: Text = Field(description="The arguments as JSON text.")
    output: Text | None = Field(default=None, description="What it gave.")
    error: Text | dict[str, Any] | None = Field(default=None, description="Why it failed.")
    approval_request_id: _ID | None = Field(default=None, description="Which request was answered with yes.")
    status: Status | None = Field(default=None, description="As it was told.")


class McpRequestItem(Lenient):
    """A question whether a call may be made."""

    type: Literal["mcp_approval_request"] = Field(description="Always mcp_approval_request.")
    id: _ID = Field(description="What the answer names.")
    server_label: str = Field(max_length=128, description="The server.")
    name: str = Field(max_length=256, description="The tool.")
    arguments: Text = Field(description="The arguments as JSON text.")


class McpResponseItem(Lenient):
    """The answer to it."""

    type: Literal["mcp_approval_response"] = Field(description="Always mcp_approval_response.")
    approval_request_id: _ID = Field(description="The request.")
    approve: bool = Field(description="Yes or no.")
    reason: Text | None = Field(default=None, description="Why; the model reads it where the answer is no.")
    id: _ID | None = Field(default=None, description="Where the server told one.")


class ReasoningItem(Lenient):
    """Thoughts of another model: taken, and not shown to this one."""

    type: Literal["reasoning"] = Field(description="Always reasoning.")
    id: _ID | None = Field(default=None, description="As it was told.")
    summary: _Objects | None = Field(default=None, description="Not looked at.")
    content: _Objects | None = Field(default=None, description="Not looked at.")
    encrypted_content: Text | None = Field(default=None, description="Not looked at.")
    status: Status | None = Field(default=None, description="As it was told.")


class ReferenceItem(Lenient):
    """An item that the server keeps, by its id."""

    type: Literal["item_reference"] = Field(default="item_reference", description="Always item_reference.")
    id: _ID = Field(description="The item's id.")


def _item_kind(data: Any) -> str:
    kind = data.get("type") if isinstance(data, dict) else getattr(data, "type", None)
    if kind is None and isinstance(data, dict):
        return "message" if "role" in data or "id" not in data else "item_reference"
    return str(kind)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[FileSearchItem, Tag("file_search_call")]
    | Annotated[WebSearchItem, Tag("web_search_call")]
    | Annotated[CodeItem, Tag("code_interpreter_call")]
    | Annotated[McpListItem, Tag("mcp_list_tools")]
    | Annotated[McpCallItem, Tag("mcp_call")]
    | Annotated[McpRequestItem, Tag("mcp_approval_request")]
    | Annotated[McpResponseItem, Tag("mcp_approval_response")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ReferenceItem, Tag("item_reference")],
    Discriminator(_item_kind),
]
