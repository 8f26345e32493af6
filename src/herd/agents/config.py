"""What an agent is: instructions, model, tools, shields, limits, who is asked before a tool runs, and how tokens are drawn. No behaviour.

`to_dict` and `AgentConfig.from_dict` are the stored form; a key that is not known is refused, so that an older herd never drops a limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, cast

from herd.base.errors import ConfigError, UsageError, did_you_mean
from herd.inference.params import SamplingParams
from herd.inference.port import TOOL_CHOICES, ToolChoice
from herd.safety.defaults import DEFAULT_NAMES
from herd.text.messages import ToolDefinition
from herd.tools.tool import Taint

ApprovalMode = Literal["auto", "ask", "deny"]
APPROVAL_MODES: tuple[ApprovalMode, ...] = ("auto", "ask", "deny")
Memory = Literal["tool", "always", "off"]
MEMORIES: tuple[Memory, ...] = ("tool", "always", "off")
Decision = Literal["once", "always", "deny"]
DECISIONS: tuple[Decision, ...] = ("once", "always", "deny")
UNKNOWN_TAINT = Taint(reads_untrusted=True, acts_outside=True)
"""Of a tool that says nothing about itself, such as a client's: what it brings may be a stranger's, and it may have changed something."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnLimits:
    """What one turn may take. At a limit the model is told which one, and answers once more without tools.

    Attributes:
        max_steps: answers of the model, the last one not counted.
        max_tokens: tokens that the model writes in all; None: no limit but the context.
        max_seconds: seconds of the whole turn, without the time that it waits for a person or a client.
        max_tool_calls: calls of tools in all.
        max_repeats: times that the same tool runs with the same arguments.
        max_parallel: tools that run at once.
        final_tokens: tokens of the last answer, once a limit is reached.
        final_seconds: seconds of it.
    """

    max_steps: int = 10
    max_tokens: int | None = 32_768
    max_seconds: float = 300.0
    max_tool_calls: int = 32
    max_repeats: int = 3
    max_parallel: int = 8
    final_tokens: int = 512
    final_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_tokens", "max_seconds", "max_repeats", "max_parallel", "final_tokens", "final_seconds"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} is {value}, it must be above 0", hint="leave it out to have the default")
        if self.max_tool_calls < 0:
            raise ConfigError(f"max_tool_calls is {self.max_tool_calls}, it must not be below 0", hint="0 runs no tool")


@dataclass(frozen=True, kw_only=True, slots=True)
class ApprovalPolicy:
    """Who is asked before a tool runs. The Rule of Two stands above it: a call that would be the third of the three always waits.

    Attributes:
        outside: for tools that change or send something.
        other: for the other tools.
        by_tool: for a tool by name, before the two above.
    """

    outside: ApprovalMode = "ask"
    other: ApprovalMode = "auto"
    by_tool: Mapping[str, ApprovalMode] = field(default_factory=dict[str, ApprovalMode])

    def __post_init__(self) -> None:
        for name, mode in (("outside", self.outside), ("other", self.other), *self.by_tool.items()):
            if mode not in APPROVAL_MODES:
                hint = did_you_mean(str(mode), APPROVAL_MODES, otherwise="modes: " + ", ".join(APPROVAL_MODES))
                raise ConfigError(f"the approval of {name!r} is {mode!r}", hint=hint)

    def mode(self, tool: str, taint: Taint) -> ApprovalMode:
        """What holds for a tool with these labels."""
        return self.by_tool.get(tool, self.outside if taint.acts_outside else self.other)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientTool:
    """A tool that the application runs itself: the turn waits for its output."""

    definition: ToolDefinition
    taint: Taint = UNKNOWN_TAINT

    @property
    def name(self) -> str:
        """The name that a model calls it by."""
        return self.definition.name


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentConfig:
    """An agent.

    Attributes:
        model: the name that the model is asked by.
        instructions: the system message.
        name: for people.
        tools: names of tools or of tool groups that run here; what is not named is not offered.
        client_tools: tools that the application runs.
        shields: names of the shields that stand around it, see `safety.defaults`; empty: none.
        limits: of a turn.
        approval: who is asked before a tool runs.
        rule_of_two: whether a call that would be the third of untrusted input, private data and outside effect waits for a person.
        sampling: how tokens are drawn.
        tool_choice: `auto`, `none`, or `required`, which holds for the first step of a turn.
        tool_name: the tool that has to be called in the first step.
        parallel_tool_calls: whether one answer may hold several calls.
        strict_tools: whether calls are held to the tools' parameters by a grammar.
        native_tools: whether tools that Llama 3.1 knows by name (code_interpreter, brave_search, wolfram_alpha) are offered by that name
            rather than by a definition; for models that are asked in their own prompt format.
        memory: `tool`: the session's documents are searched when the model calls knowledge_search; `always`: also at the beginning of
            each turn, by the user's words; `off`: not at all.
        num_passages: with `always`, passages of documents that are put before the model.
        response_schema: JSON Schema of the last answer; it is then written in a step of its own once no tool is called.
    """

    model: str = "cria"
    instructions: str = ""
    name: str = ""
    tools: tuple[str, ...] = ()
    client_tools: tuple[ClientTool, ...] = ()
    shields: tuple[str, ...] = DEFAULT_NAMES
    limits: TurnLimits = field(default_factory=TurnLimits)
    approval: ApprovalPolicy = field(default_factory=ApprovalPolicy)
    rule_of_two: bool = True
    sampling: SamplingParams = field(default_factory=SamplingParams)
    tool_choice: ToolChoice = "auto"
    tool_name: str | None = None
    parallel_tool_calls: bool = True
    strict_tools: bool = True
    native_tools: bool = False
    memory: Memory = "tool"
    num_passages: int = 5
    response_schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.tool_choice not in TOOL_CHOICES:
            raise UsageError(f"tool_choice is {self.tool_choice!r}", hint="choose " + ", ".join(TOOL_CHOICES))
        if self.memory not in MEMORIES:
            raise ConfigError(f"memory is {self.memory!r}", hint="choose " + ", ".join(MEMORIES))
        if not 1 <= self.num_passages <= MAX_PASSAGES:
            raise ConfigError(
                f"num_passages is {self.num_passages}, it must be 1 to {MAX_PASSAGES}", hint="5 passages are some 1,500 tokens"
            )
        names = [tool.name for tool in self.client_tools]
        twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
        if twice is not None:
            raise ConfigError(f"two client tools are named {twice!r}", hint="rename one of them")

    def to_dict(self) -> dict[str, Any]:
        """Its stored form."""
        data: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        sampling = {
            item.name: getattr(self.sampling, item.name)
            for item in fields(SamplingParams)
            if getattr(self.sampling, item.name) != getattr(_PLAIN_SAMPLING, item.name)
        }
        return data | {
            "tools": list(self.tools),
            "client_tools": [{"definition": tool.definition.to_dict(), "taint": asdict(tool.taint)} for tool in self.client_tools],
            "shields": list(self.shields),
            "limits": asdict(self.limits),
            "approval": {"outside": self.approval.outside, "other": self.approval.other, "by_tool": dict(self.approval.by_tool)},
            "sampling": sampling,
            "response_schema": None if self.response_schema is None else dict(self.response_schema),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AgentConfig:
        """Read what `to_dict` wrote. Raises ConfigError for a key that is not known."""
        known = {item.name for item in fields(cls)}
        unknown = next((key for key in data if key not in known), None)
        if unknown is not None:
            raise ConfigError(f"an agent has no {unknown!r}", hint=did_you_mean(unknown, known, otherwise="it was written by a newer herd"))
        values = dict(data)
        values["tools"] = tuple(data.get("tools", ()))
        values["shields"] = tuple(data.get("shields", DEFAULT_NAMES))
        values["client_tools"] = tuple(
            ClientTool(definition=ToolDefinition.from_dict(tool["definition"]), taint=Taint(**tool["taint"]))
            for tool in data.get("client_tools", ())
        )
        values["limits"] = TurnLimits(**data.get("limits", {}))
        values["approval"] = ApprovalPolicy(**data.get("approval", {}))
        values["sampling"] = sampling_of(data.get("sampling", {}))
        return cls(**values)


MAX_PASSAGES = 50
_PLAIN_SAMPLING = SamplingParams()
_TUPLES = ("allowed_token_ids", "banned_token_ids", "stop", "stop_token_ids")


def sampling_of(data: Mapping[str, Any]) -> SamplingParams:
    """Sampling parameters from JSON, where tuples are lists and the keys of a bias are text."""
    values: dict[str, Any] = {name: tuple(value) if name in _TUPLES and value is not None else value for name, value in data.items()}
    if "logit_bias" in values:
        bias = cast("Mapping[Any, float]", values["logit_bias"])
        values["logit_bias"] = {int(key): value for key, value in bias.items()}
    return SamplingParams(**values)
