"""What the agents API of Llama Stack 0.2 takes, field by field. Fields that this server has no use for are let pass.

Source: llama-stack-client 0.2.12.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from herd.stack.types import Lenient, Text, TextContent

Word = Annotated[str, StringConstraints(min_length=1, max_length=256)]
"""A name of something."""
Content = Text | Annotated[list[TextContent], Field(max_length=4096, fail_fast=True)]


class Strategy(Lenient):
    """How a token is chosen."""

    type: Literal["greedy", "top_p", "top_k"] = Field(default="greedy", description="greedy takes the likeliest.")
    temperature: float | None = Field(default=None, ge=0, le=10, description="Of top_p and top_k.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="The mass that is kept.")
    top_k: int | None = Field(default=None, ge=1, le=1_000_000, description="How many are kept.")


class Sampling(Lenient):
    """How tokens are drawn."""

    strategy: Strategy | None = Field(default=None, description="How a token is chosen; greedy if left out.")
    max_tokens: int | None = Field(
        default=None, ge=0, le=1_000_000, description="Tokens of an answer at most; 0 or none: no limit of its own."
    )
    repetition_penalty: float | None = Field(default=None, gt=0, le=10, description="1 is off.")
    stop: list[Text] | None = Field(default=None, max_length=16, description="Texts that end an answer.")


class ToolParameter(Lenient):
    """A parameter of a client's tool."""

    name: str = Field(min_length=1, max_length=128, description="Its name.")
    parameter_type: str = Field(default="string", max_length=64, description="A JSON type.")
    description: Text = Field(default="", description="What it means.")
    required: bool = Field(default=True, description="Whether it has to be there.")
    default: Any = Field(default=None, description="Its value where it is left out.")


class ClientToolDef(Lenient):
    """A tool that the client runs."""

    name: str = Field(min_length=1, max_length=128, description="Its name.")
    description: Text | None = Field(default=None, description="What it does.")
    parameters: list[ToolParameter] | None = Field(default=None, max_length=128, description="Its parameters.")


class GroupWithArgs(Lenient):
    """A tool group with arguments, which are not used."""

    name: str = Field(min_length=1, max_length=256, description="The group, as in /v1/toolgroups.")
    args: dict[str, Any] | None = Field(default=None, description="Taken, and changes nothing.")


Groups = Annotated[list[Word | GroupWithArgs], Field(max_length=64)]


class ToolConfig(Lenient):
    """How tools are used."""

    tool_choice: str | None = Field(default=None, max_length=128, description="auto, none, required, or a tool's name.")


class ResponseFormat(Lenient):
    """The form of the last answer."""

    type: Literal["json_schema", "grammar"] = Field(description="json_schema.")
    json_schema: dict[str, Any] | None = Field(default=None, description="The schema itself.")


class AgentConfigIn(Lenient):
    """An agent."""

    model: str = Field(min_length=1, max_length=512, description="A model of /v1/models.")
    instructions: Text = Field(default="", description="The system message.")
    name: str | None = Field(default=None, max_length=256, description="For people.")
    sampling_params: Sampling | None = Field(default=None, description="How tokens are drawn.")
    toolgroups: Groups | None = Field(default=None, description="Groups of /v1/toolgroups, or tools by name.")
    client_tools: list[ClientToolDef] | None = Field(default=None, max_length=128, description="Tools that the client runs.")
    input_shields: list[Word] | None = Field(default=None, max_length=16, description="Shields by name, beside the server's own.")
    output_shields: list[Word] | None = Field(default=None, max_length=16, description="Shields by name, beside the server's own.")
    tool_choice: str | None = Field(default=None, max_length=128, description="auto, none, required, or a tool's name.")
    tool_config: ToolConfig | None = Field(default=None, description="How tools are used.")
    max_infer_iters: int | None = Field(default=None, ge=1, le=100, description="Answers of the model in a turn at most.")
    response_format: ResponseFormat | None = Field(default=None, description="The form of the last answer.")


class AgentBody(Lenient):
    """POST /v1/agents."""

    agent_config: AgentConfigIn = Field(description="The agent.")


class SessionBody(Lenient):
    """POST /v1/agents/{agent_id}/session."""

    session_name: str = Field(max_length=256, description="For people.")


class TurnMessage(Lenient):
    """A message of a turn: the user's, or a tool's result."""

    role: Literal["user", "tool"] = Field(description="Who says it.")
    content: Content = Field(description="What is said.")
    context: Text | None = Field(default=None, description="More of it.")
    call_id: str | None = Field(default=None, max_length=256, description="Of a tool's result: the call.")


class TurnDocument(Lenient):
    """A document that comes with a turn: kept in the session, searched, cited."""

    content: Text = Field(description="Its text.")
    mime_type: str | None = Field(default=None, max_length=256, description="Of text.")


class TurnBody(Lenient):
    """POST /v1/agents/{agent_id}/session/{session_id}/turn."""

    messages: list[TurnMessage] = Field(min_length=1, max_length=1000, fail_fast=True, description="What comes in.")
    stream: bool | None = Field(default=False, description="Tell events as they come.")
    documents: list[TurnDocument] | None = Field(default=None, max_length=64, description="Documents to remember.")
    toolgroups: Groups | None = Field(default=None, description="More tool groups, for this turn.")
    tool_config: ToolConfig | None = Field(default=None, description="How tools are used in this turn.")


class ToolResponse(Lenient):
    """What the client gives for a call."""

    call_id: str = Field(min_length=1, max_length=256, description="The call.")
    tool_name: str | None = Field(default=None, max_length=128, description="Taken, and changes nothing.")
    content: Content = Field(description="The output.")
    metadata: dict[str, Any] | None = Field(
        default=None, description="`approval`: once, always or deny, for a call of a server's tool that waits for a person."
    )


class ResumeBody(Lenient):
    """POST /v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}/resume."""

    tool_responses: list[ToolResponse] = Field(
        max_length=128, description="For calls that wait; none to run on a turn that a crash of the server cut off."
    )
    stream: bool | None = Field(default=False, description="Tell events as they come.")
