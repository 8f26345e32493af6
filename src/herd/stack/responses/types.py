"""What POST /v1/responses and the routes of conversations take, field by field. Items that come in are in `item_types`.

Fields that steer OpenAI's own service are taken and told again; their text says that they change nothing. Source: OpenAI's API reference.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from herd.stack.responses.item_types import Item, PartText
from herd.stack.types import MAX_TOKENS, Lenient, Metadata, Text, Wire

MAX_ITEMS = 10_000
Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
]
Id = Annotated[str, Field(min_length=1, max_length=128)]
Name = Annotated[str, Field(min_length=1, max_length=128)]


class FunctionToolIn(Lenient):
    """A function that the client runs."""

    type: Literal["function"] = Field(description="Always function.")
    name: Name = Field(description="Its name.")
    description: Text | None = Field(default=None, description="What it does; the model reads this.")
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema of its arguments. Calls always fit it.")
    strict: bool | None = Field(default=None, description="Calls fit the schema in any case.")


class RankingIn(Lenient):
    """How found passages are ranked."""

    ranker: str | None = Field(default=None, max_length=128, description="Taken, and changes nothing.")
    score_threshold: float | None = Field(default=None, ge=0, le=1, description="Passages below this score are left out.")


class FileSearchIn(Lenient):
    """Search in vector stores; the server runs it."""

    type: Literal["file_search"] = Field(description="Always file_search.")
    vector_store_ids: Annotated[list[Id], Field(max_length=64, fail_fast=True)] = Field(description="Where to search.")
    max_num_results: int | None = Field(default=None, ge=1, le=50, description="Passages at most.")
    filters: dict[str, Any] | None = Field(default=None, description="Which files by their attributes.")
    ranking_options: RankingIn | None = Field(default=None, description="How passages are ranked.")


class WebFiltersIn(Lenient):
    """Where to search."""

    allowed_domains: Annotated[list[Id], Field(max_length=100, fail_fast=True)] | None = Field(
        default=None, description="Only results of these domains and their subdomains."
    )


class WebSearchIn(Lenient):
    """Search the web, as far as the server has a search; the server runs it."""

    type: Literal["web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11"] = Field(
        description="web_search, or an older name of it."
    )
    search_context_size: Literal["low", "medium", "high"] | None = Field(default=None, description="Taken, and changes nothing.")
    filters: WebFiltersIn | None = Field(default=None, description="Where to search.")
    user_location: dict[str, Any] | None = Field(default=None, description="Taken, and changes nothing.")


class ContainerIn(Lenient):
    """A container for code."""

    type: Literal["auto"] = Field(description="Always auto: a session of the jail, kept while the response runs.")
    file_ids: Annotated[list[Id], Field(max_length=0)] | None = Field(
        default=None, description="Not supported: no files can be brought in."
    )
    memory_limit: str | None = Field(default=None, max_length=16, description="Taken, and changes nothing: the server's own limit holds.")


class CodeInterpreterIn(Lenient):
    """Python in a jail; the server runs it."""

    type: Literal["code_interpreter"] = Field(description="Always code_interpreter.")
    container: Id | ContainerIn | None = Field(default=None, description='Where it runs: `{"type": "auto"}`.')


class McpFilterIn(Lenient):
    """Tools of an MCP server by name."""

    tool_names: Annotated[list[Name], Field(max_length=1024, fail_fast=True)] | None = Field(default=None, description="These tools.")
    read_only: bool | None = Field(default=None, description="Tools that the server marks as reading only.")


class McpApprovalIn(Lenient):
    """Which calls need a yes."""

    always: McpFilterIn | None = Field(default=None, description="These need one.")
    never: McpFilterIn | None = Field(default=None, description="These need none.")


class McpIn(Lenient):
    """Tools of an MCP server; this server calls them."""

    type: Literal["mcp"] = Field(description="Always mcp.")
    server_label: Name = Field(description="What it is called in items.")
    server_url: str | None = Field(default=None, max_length=2048, description="Where it is, over streamable HTTP.")
    server_description: Text | None = Field(default=None, description="Taken, and changes nothing.")
    authorization: str | None = Field(default=None, max_length=8192, description="A token, sent as a bearer; never told again.")
    headers: Annotated[dict[str, Annotated[str, Field(max_length=8192)]], Field(max_length=64)] | None = Field(
        default=None, description="Sent with every request to it; never told again."
    )
    allowed_tools: Annotated[list[Name], Field(max_length=1024, fail_fast=True)] | McpFilterIn | None = Field(
        default=None, description="Only these tools are on offer."
    )
    require_approval: Literal["always", "never"] | McpApprovalIn | None = Field(
        default=None, description="Which calls wait for an mcp_approval_response. Default: always."
    )


def _tool_kind(data: Any) -> str:
    kind = data.get("type") if isinstance(data, dict) else getattr(data, "type", None)
    return "web_search" if isinstance(kind, str) and kind.startswith("web_search") else str(kind)


ToolIn = Annotated[
    Annotated[FunctionToolIn, Tag("function")]
    | Annotated[FileSearchIn, Tag("file_search")]
    | Annotated[WebSearchIn, Tag("web_search")]
    | Annotated[CodeInterpreterIn, Tag("code_interpreter")]
    | Annotated[McpIn, Tag("mcp")],
    Discriminator(_tool_kind),
]


class ChosenTool(Lenient):
    """One tool, by kind and name."""

    type: Literal[
        "function",
        "file_search",
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
        "code_interpreter",
        "mcp",
    ] = Field(description="The tool's kind.")
    name: Name | None = Field(default=None, description="Of a function, or of a tool of an MCP server.")
    server_label: Name | None = Field(default=None, description="Of an MCP server.")


class AllowedTools(Lenient):
    """Some of the tools."""

    type: Literal["allowed_tools"] = Field(description="Always allowed_tools.")
    mode: Literal["auto", "required"] = Field(description="Whether one of them has to be called.")
    tools: Annotated[list[ChosenTool], Field(max_length=1024, fail_fast=True)] = Field(description="Which.")


def _choice_kind(data: Any) -> str:
    if isinstance(data, str):
        return "word"
    kind = data.get("type") if isinstance(data, dict) else getattr(data, "type", None)
    return "allowed" if kind == "allowed_tools" else "tool"


ToolChoiceIn = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")]
    | Annotated[AllowedTools, Tag("allowed")]
    | Annotated[ChosenTool, Tag("tool")],
    Discriminator(_choice_kind),
]


class TextFormatIn(Lenient):
    """What the text has to look like."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="Free text, any JSON object, or JSON of a schema.")
    name: str | None = Field(default=None, max_length=256, description="With json_schema: a name for it.")
    description: Text | None = Field(default=None, description="What it is for; not shown to the model.")
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema", description="With json_schema: the schema.")
    strict: bool | None = Field(default=None, description="The schema is followed in any case.")


class TextConfigIn(Lenient):
    """How text is written."""

    format: TextFormatIn | None = Field(default=None, description="What it has to look like.")
    verbosity: Literal["low", "medium", "high"] | None = Field(default=None, description="Taken, and changes nothing.")


class ConversationRef(Lenient):
    """A conversation by its id."""

    id: Id = Field(description="As POST /v1/conversations gave it.")


class ReasoningIn(Lenient):
    """For models that reason; this family does not."""

    effort: str | None = Field(default=None, max_length=64, description="Taken, and changes nothing.")
    summary: str | None = Field(default=None, max_length=64, description="Taken, and changes nothing.")
    generate_summary: str | None = Field(default=None, max_length=64, description="Taken, and changes nothing.")


class StreamOptionsIn(Lenient):
    """What a stream tells."""

    include_obfuscation: bool | None = Field(default=None, description="Taken, and changes nothing: nothing is padded.")


Input = Text | Annotated[list[Item], Field(max_length=MAX_ITEMS, fail_fast=True)]


class Asked(Wire):
    """What the model is asked: shared with POST /v1/responses/input_tokens."""

    model: str = Field(default="", max_length=512, description="The model's name, as /v1/models lists it; empty is the one that is served.")
    input: Input | None = Field(default=None, description="A text, or items: messages, calls of functions and what they gave.")
    instructions: Text | Annotated[list[Item], Field(max_length=64, fail_fast=True)] | None = Field(
        default=None, description="Comes first, as the system's message; of this response only."
    )
    previous_response_id: Id | None = Field(default=None, description="Go on from this response, with its whole conversation.")
    conversation: Id | ConversationRef | None = Field(
        default=None, description="Go on from this conversation; input and output are added to it at the end."
    )
    tools: Annotated[list[ToolIn], Field(max_length=1024, fail_fast=True)] | None = Field(
        default=None, description="What the model may call."
    )
    tool_choice: ToolChoiceIn | None = Field(default=None, description="Whether a tool has to be called, and which.")
    parallel_tool_calls: bool | None = Field(default=None, description="Whether one answer may hold several calls. Default true.")
    text: TextConfigIn | None = Field(default=None, description="How text is written.")
    reasoning: ReasoningIn | None = Field(default=None, description="Taken, and changes nothing.")
    truncation: Literal["auto", "disabled"] | None = Field(
        default=None, description="auto: where all does not fit, the oldest turns are left out. Default disabled: it is refused."
    )


class ResponseBody(Asked):
    """POST /v1/responses."""

    stream: bool | None = Field(default=None, description="Tell the response as it is made, as server-sent events.")
    stream_options: StreamOptionsIn | None = Field(default=None, description="What a stream tells.")
    background: bool | None = Field(default=None, description="Answer at once and go on without the client.")
    store: bool | None = Field(default=None, description="Keep the response, for 30 days. Default true.")
    include: Annotated[list[Includable], Field(max_length=16)] | None = Field(default=None, description="What else to tell.")
    max_output_tokens: int | None = Field(
        default=None, ge=1, le=MAX_TOKENS, description="New tokens at most, of all steps together; default: up to the context."
    )
    max_tool_calls: int | None = Field(default=None, ge=1, le=1024, description="Calls of the server's tools at most.")
    temperature: float | None = Field(default=None, ge=0, le=100, description="0 takes the likeliest token every time. Default 0.6.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Tokens are kept up to this mass, likeliest first. Default 0.9.")
    top_logprobs: int | None = Field(default=None, ge=0, le=20, description="Tell so many likeliest tokens at each place.")
    presence_penalty: float | None = Field(default=None, ge=-100, le=100, description="Taken once from tokens of the answer.")
    frequency_penalty: float | None = Field(default=None, ge=-100, le=100, description="Taken from tokens for each time that they came.")
    seed: int | None = Field(
        default=None, ge=-(2**63), lt=2**63, description="The same seed, prompt and parameters give the same answer; not OpenAI's."
    )
    metadata: Metadata | None = Field(default=None, max_length=16, description="Kept and told.")
    user: str | None = Field(default=None, max_length=512, description="Told again, and changes nothing.")
    safety_identifier: str | None = Field(default=None, max_length=512, description="Told again, and changes nothing.")
    prompt_cache_key: str | None = Field(
        default=None, max_length=512, description="Told again, and changes nothing: prefixes are found anyway."
    )
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = Field(
        default=None, description="Told again, and changes nothing."
    )
    service_tier: str | None = Field(default=None, max_length=64, description="Told again as `default`, and changes nothing.")


class InputTokensBody(Asked):
    """POST /v1/responses/input_tokens."""


class ConversationBody(Wire):
    """POST /v1/conversations."""

    items: Annotated[list[Item], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = Field(
        default=None, description="What it begins with."
    )
    metadata: Metadata | None = Field(default=None, max_length=16, description="Kept and told.")


class ConversationUpdate(Wire):
    """POST /v1/conversations/{conversation_id}."""

    metadata: Metadata | None = Field(max_length=16, description="In place of what it had.")


class ItemsBody(Wire):
    """POST /v1/conversations/{conversation_id}/items."""

    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)] = Field(
        description="Added at the end, in order."
    )


BODIES: dict[str, type[BaseModel]] = {
    "/v1/responses": ResponseBody,
    "/v1/responses/input_tokens": InputTokensBody,
    "/v1/conversations": ConversationBody,
}
"""Of fixed paths, for hints about misspelt fields."""

__all__ = ["BODIES", "ConversationBody", "ConversationUpdate", "InputTokensBody", "ItemsBody", "PartText", "ResponseBody"]
