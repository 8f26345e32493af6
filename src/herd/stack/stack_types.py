"""What the Llama Stack's routes take, field by field, in the words of all its generations. Fields of other generations are let pass.

Sources: llama-stack-client 0.2.12, 0.3.5 and 0.7.5, ogx-client 1.5.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from herd.stack.types import MAX_INT, ChatMessage, JsonSchema, Lenient, Text, _few  # pyright: ignore[reportPrivateUsage]

Name = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""A name of something: no control characters."""
GroupId = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[A-Za-z_][A-Za-z0-9_.:-]*$")]
Params = dict[str, Any]


class TextItem(Lenient):
    """A part of what is moderated."""

    type: Literal["text"] = Field(description="Only text can be judged.")
    text: Text = Field(description="The text.")


class ModerationBody(Lenient):
    """POST /v1/moderations."""

    input: Text | Annotated[list[Text | TextItem], Field(min_length=1, max_length=256, fail_fast=True)] = Field(
        description="A text, or several, each judged alone."
    )
    model: str | None = Field(
        default=None,
        max_length=512,
        description="A shield, or a guard model that is served; left out or one of OpenAI's names, the shield `harm`.",
    )


class ShieldBody(Lenient):
    """POST /v1/shields."""

    shield_id: Name = Field(description="The name that it gets.")
    provider_shield_id: Name | None = Field(default=None, description="What it is: a shield that ships, or a guard model that is served.")
    provider_id: str | None = Field(default=None, max_length=256, description="Taken, and changes nothing.")
    params: Params | None = Field(default=None, description="`threshold` from 0 to 1; for guard models `excluded_categories` too.")


class RunShieldBody(Lenient):
    """POST /v1/safety/run-shield."""

    shield_id: Name = Field(description="A shield, or a guard model that is served.")
    messages: list[ChatMessage] = Field(
        min_length=1, max_length=10_000, fail_fast=True, description="A conversation; its last message is judged."
    )
    params: Params | None = Field(default=None, description="Taken, and changes nothing.")


class McpEndpoint(Lenient):
    """Where an MCP server is."""

    uri: Annotated[str, StringConstraints(min_length=1, max_length=4096)] = Field(description="Its URL, of http or https.")


class ToolGroupBody(Lenient):
    """POST /v1/toolgroups."""

    toolgroup_id: GroupId = Field(description="The name that the group gets, such as mcp::search.")
    provider_id: str = Field(max_length=256, description="`model-context-protocol`: only MCP servers can be registered.")
    mcp_endpoint: McpEndpoint | None = Field(default=None, description="The MCP server.")
    args: Params | None = Field(default=None, description="`headers`: sent to the server with every request, and never told again.")


class InvokeBody(Lenient):
    """POST /v1/tool-runtime/invoke."""

    tool_name: Name = Field(description="The tool, as /v1/tools names it.")
    kwargs: Params = Field(description="Its arguments, which have to fit its parameters.")
    authorization: str | None = Field(default=None, max_length=4096, description="Taken, and changes nothing: register headers instead.")


class PromptBody(Lenient):
    """POST /v1/prompts."""

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=65_536)] = Field(description="The text, with {{ variables }}.")
    variables: Annotated[list[Name], Field(max_length=128, fail_fast=True)] | None = Field(
        default=None, description="Names of its variables; each has to stand in the text as {{ name }}."
    )


class PromptUpdateBody(PromptBody):
    """PUT and POST /v1/prompts/{prompt_id}."""

    version: int = Field(ge=1, le=MAX_INT, description="The version that is changed: the newest, else nothing is written.")
    set_as_default: bool = Field(default=True, description="Make the new version the one that is given without a number.")


class DefaultVersionBody(Lenient):
    """PUT and POST /v1/prompts/{prompt_id}/set-default-version."""

    version: int = Field(ge=1, le=MAX_INT, description="The version that is given without a number.")


class TextContentItem(Lenient):
    """Text in a message of the 0.2 inference routes."""

    type: Literal["text"] = Field(description="Only text can be read.")
    text: Text = Field(description="The text.")


Content = Text | TextContentItem | Annotated[list[TextContentItem], Field(max_length=4096, fail_fast=True)]


class StackToolCall(Lenient):
    """A call that the assistant made, in 0.2's words."""

    call_id: str = Field(default="", max_length=256, description="Its id.")
    tool_name: str = Field(min_length=1, max_length=256, description="The tool.")
    arguments: Params | Text = Field(description="The arguments, as an object or as JSON text.")


class StackMessage(Lenient):
    """A message in 0.2's words."""

    role: Literal["system", "user", "assistant", "tool"] = Field(description="Who says it.")
    content: Content | None = Field(default=None, description="What is said.")
    tool_calls: list[StackToolCall] | None = Field(default=None, max_length=128, fail_fast=True, description="Calls of the assistant.")
    call_id: str | None = Field(default=None, max_length=256, description="On a tool's message, the call that it answers.")


class Strategy(Lenient):
    """How tokens are chosen."""

    type: Literal["greedy", "top_p", "top_k"] = Field(description="The likeliest, by mass, or among the k likeliest.")
    temperature: float | None = Field(default=None, ge=0, le=100, description="With top_p; default 0.6.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="With top_p; default 0.9.")
    top_k: int | None = Field(default=None, ge=1, le=MAX_INT, description="With top_k.")


class StackSampling(Lenient):
    """Sampling in 0.2's words."""

    strategy: Strategy | None = Field(default=None, description="How tokens are chosen; left out, herd's defaults.")
    max_tokens: int | None = Field(default=None, ge=0, le=2**31, description="New tokens at most; 0 is up to the context.")
    repetition_penalty: float | None = Field(default=None, gt=0, le=100, description="1 is off.")
    stop: Annotated[list[Text], Field(max_length=1024, fail_fast=True)] | None = Field(
        default=None, description="Texts that end the answer."
    )


class StackResponseFormat(Lenient):
    """What the answer has to look like, in 0.2's words."""

    type: Literal["json_schema", "grammar"] = Field(description="A JSON schema, or a grammar.")
    json_schema: Params | JsonSchema | None = Field(default=None, description="With json_schema.")
    bnf: Params | None = Field(default=None, description="With grammar: {\"grammar\": TEXT} in Lark's or llama.cpp's syntax.")


class StackLogprobs(Lenient):
    """Log-probabilities."""

    top_k: int | None = Field(default=None, ge=0, le=128, description="The likeliest at each place.")


class StackToolParameter(Lenient):
    """A parameter of a tool, in 0.2's words."""

    param_type: str = Field(default="string", max_length=64, description="JSON's type, or Python's name of it.")
    description: Text | None = Field(default=None, description="What it is.")
    required: bool | None = Field(default=True, description="Whether it has to be given.")
    default: Any = Field(default=None, description="What it is where it is left out.")


class StackTool(Lenient):
    """A tool on offer, in 0.2's words."""

    tool_name: str = Field(min_length=1, max_length=128, description="Its name; Llama's own tools need no more.")
    description: Text | None = Field(default=None, description="What it does.")
    parameters: dict[str, StackToolParameter] | None = Field(default=None, max_length=256, description="Its parameters by name.")


class ToolConfig(Lenient):
    """How tools are used, in 0.2's words."""

    tool_choice: str | None = Field(default=None, max_length=128, description="auto, required, none or a tool's name.")


class InferenceBody(Lenient):
    """What the 0.2 inference routes share."""

    model_id: str = Field(max_length=512, description="The model's name.")
    sampling_params: StackSampling | None = Field(default=None, description="How tokens are chosen.")
    response_format: StackResponseFormat | None = Field(default=None, description="What the answer has to look like.")
    logprobs: StackLogprobs | None = Field(default=None, description="Tell log-probabilities.")


class ModelBody(Lenient):
    """POST /v1/models: another name for a model."""

    model_id: str = Field(
        min_length=1, max_length=256, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/@ -]*$", description="The name, which is yours alone."
    )
    provider_model_id: str | None = Field(default=None, max_length=512, description="The model, by any name of GET /v1/models.")
    provider_id: str | None = Field(default=None, max_length=256, description="Whose it is, where that is to be sure of.")
    model_type: Literal["llm", "embedding"] | None = Field(default=None, description="Has to be the model's.")
    metadata: Annotated[dict[str, Any], BeforeValidator(_few)] | None = Field(default=None, description="Kept, and told with it.")


class ChatCompletionBody(InferenceBody):
    """POST /v1/inference/chat-completion."""

    messages: list[StackMessage] = Field(min_length=1, max_length=10_000, fail_fast=True, description="The conversation.")
    tools: list[StackTool] | None = Field(default=None, max_length=1024, fail_fast=True, description="What the model may call.")
    tool_choice: Literal["auto", "required", "none"] | None = Field(default=None, description="Whether a tool has to be called.")
    tool_config: ToolConfig | None = Field(default=None, description="The newer place of tool_choice.")
    stream: bool | None = Field(default=None, description="Send events as it is written.")


class BatchChatCompletionBody(InferenceBody):
    """POST /v1/inference/batch-chat-completion."""

    messages_batch: list[Annotated[list[StackMessage], Field(min_length=1, max_length=10_000, fail_fast=True)]] = Field(
        min_length=1, max_length=256, fail_fast=True, description="Conversations, each answered alone."
    )
    tools: list[StackTool] | None = Field(default=None, max_length=1024, fail_fast=True, description="What the model may call.")
    tool_config: ToolConfig | None = Field(default=None, description="How tools are used.")


class StackCompletionBody(InferenceBody):
    """POST /v1/inference/completion."""

    content: Content = Field(description="The text to go on with.")
    stream: bool | None = Field(default=None, description="Send events as it is written.")


class BatchCompletionBody(InferenceBody):
    """POST /v1/inference/batch-completion."""

    content_batch: list[Content] = Field(min_length=1, max_length=256, fail_fast=True, description="Texts, each gone on with alone.")


class StackEmbeddingsBody(Lenient):
    """POST /v1/inference/embeddings."""

    model_id: str = Field(max_length=512, description="The model's name.")
    contents: list[Content] = Field(min_length=1, max_length=2048, fail_fast=True, description="Texts.")
    output_dimension: int | None = Field(default=None, ge=1, le=MAX_INT, description="Keep the first so many.")
    task_type: str | None = Field(default=None, max_length=64, description="Taken, and changes nothing.")
    text_truncation: Literal["none", "start", "end"] | None = Field(default=None, description="Only none: nothing is ever cut.")
