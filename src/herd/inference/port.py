"""The inference port: the one protocol that applications, guards, agents and evaluations speak. No torch here.

A request goes in, a stream of typed events comes out: text and calls as they arrive, and one `Finished` at the end. A local model and a
remote server are both an `Inference`; what runs over one runs over the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from herd.base.errors import UsageError
from herd.engine.grammar.spec import Grammar
from herd.inference.params import SamplingParams
from herd.text.messages import Message, ToolDefinition
from herd.text.reply import CallDelta, CallDone, TextDelta

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
"""Why an answer ended: by itself or a stop text, at `max_tokens` or the context's end, to wait for a tool, or stopped by a guard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens read and written; `cached_tokens` of the prompt were known from an earlier request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Seconds of a request: until the prompt was read, and of writing the answer after it."""

    prefill_s: float
    decode_s: float
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """A token's natural log-probability, and that of the likeliest ones at its place as (id, bytes, log-probability)."""

    token_id: int
    data: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The last event. `text` is the whole text, `message` the parsed answer, `token_ids` every id written, also the one that ended it.

    `stop_reason` is the stop text or the stop id, of those that the request named, that ended it.
    """

    reason: FinishReason
    text: str
    message: Message
    token_ids: tuple[int, ...]
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] = ()
    stop_reason: str | int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokensDone:
    """Tokens of the answer as they come, where `params.logprobs` asks for them: what the texts around this event are made of."""

    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRead:
    """The prompt's tokens with their log-probabilities, where `params.prompt_logprobs` asks for them; the first has none."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob | None, ...]


Event = TextDelta | CallDelta | CallDone | TokensDone | PromptRead | Finished


@dataclass(frozen=True, slots=True)
class Part:
    """An event of continuation `index`."""

    index: int
    event: Event


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks. Time is shared fairly between tenants, cached prefixes are shared within one salt, and a lower priority goes first."""

    tenant: str = ""
    salt: bytes = b""
    priority: int = 0


ToolChoice = Literal["auto", "none", "required"]
TOOL_CHOICES: tuple[ToolChoice, ...] = ("auto", "none", "required")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """A conversation to answer.

    Attributes:
        messages: the conversation.
        tools: what the model may call.
        builtin_tools: names the model knows (brave_search, wolfram_alpha, code_interpreter).
        tool_choice: `auto`: text or calls; `none`: text; `required`: calls.
        tool_name: this tool has to be called.
        strict_tools: what is written is text or a call that fits the tool's parameters, nothing between; false takes what the model gives,
            in whichever format, as text if it is no call. A call that is required is always strict.
        parallel_tool_calls: whether one answer may hold several calls.
        grammar: what the answer has to look like; goes without tools.
        n: answers wanted.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...] = ()
    builtin_tools: tuple[str, ...] = ()
    tool_choice: ToolChoice = "auto"
    tool_name: str | None = None
    strict_tools: bool = True
    parallel_tool_calls: bool = True
    grammar: Grammar | None = None
    n: int = 1
    params: SamplingParams = field(default_factory=SamplingParams)
    caller: Caller = field(default_factory=Caller)

    def __post_init__(self) -> None:
        check_n(self.n)
        if self.tool_choice not in TOOL_CHOICES:
            raise UsageError(f"tool_choice is {self.tool_choice!r}", hint="choose " + ", ".join(TOOL_CHOICES))
        if (self.tool_choice == "required" or self.tool_name is not None) and not (self.tools or self.builtin_tools):
            raise UsageError("a tool has to be called and there are no tools", hint="give tools, or leave tool_choice out")
        if self.grammar is not None and self.calls:
            raise UsageError("an answer cannot both follow a grammar and call tools", hint="leave out one, or set tool_choice to none")

    @property
    def calls(self) -> bool:
        """Whether the answer may call a tool."""
        return bool(self.tools or self.builtin_tools) and self.tool_choice != "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """A text to go on with, or its token ids as they are, `n` times; `grammar` is what every continuation has to look like."""

    prompt: str | tuple[int, ...]
    grammar: Grammar | None = None
    n: int = 1
    params: SamplingParams = field(default_factory=SamplingParams)
    caller: Caller = field(default_factory=Caller)

    def __post_init__(self) -> None:
        check_n(self.n)


MAX_N = 256


def check_n(n: int) -> None:
    """Raises UsageError for a number of answers that cannot be."""
    if not 1 <= n <= MAX_N:
        raise UsageError(f"n is {n}, it must be 1 to {MAX_N}", hint=f"ask for {MAX_N} answers at most")


@runtime_checkable
class Inference(Protocol):
    """What answers requests with n = 1. Closing an iterator early cancels its request."""

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Answer a conversation. Raises FormatError, ContextOverflowError."""
        ...

    def complete(self, request: CompletionRequest) -> Iterator[Event]:
        """Go on with a text. Raises ContextOverflowError."""
        ...


@runtime_checkable
class AsyncAnswer(Protocol):
    """The parts of an answer in order, as many at a time as there are. `close` cancels what still runs."""

    def __aiter__(self) -> AsyncIterator[list[Part]]: ...

    def close(self) -> None:
        """End the request now."""
        ...


@runtime_checkable
class AsyncInference(Protocol):
    """What answers many at once, in an event loop. What returns has been accepted; what cannot be answered is raised before."""

    async def chat(self, request: ChatRequest) -> AsyncAnswer:
        """Answer a conversation. Raises FormatError, ContextOverflowError, UsageError."""
        ...

    async def complete(self, request: CompletionRequest) -> AsyncAnswer:
        """Go on with a text. Raises ContextOverflowError, UsageError."""
        ...


def to_dict(finished: Finished) -> dict[str, Any]:
    """The JSON of a finished answer: the contract of `herd run --json`."""
    data: dict[str, Any] = {
        "text": finished.text,
        "token_ids": list(finished.token_ids),
        "finish_reason": finished.reason,
        "usage": {"prompt_tokens": finished.usage.prompt_tokens, "completion_tokens": finished.usage.completion_tokens},
        "timings": {
            "prefill_s": finished.timings.prefill_s,
            "decode_s": finished.timings.decode_s,
            "tokens_per_s": finished.timings.tokens_per_s,
        },
    }
    if finished.message.tool_calls:
        data["tool_calls"] = [call.to_dict() for call in finished.message.tool_calls]
    return data
