"""The inference port: the one protocol that applications, guards, agents and evaluations speak. No torch here.

A request goes in, a stream of typed events comes out: text and calls as they arrive, and one `Finished` at the end. A local model and a
remote server are both an `Inference`; what runs over one runs over the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from herd.inference.params import SamplingParams
from herd.text.messages import Message, ToolDefinition
from herd.text.reply import CallDelta, CallDone, TextDelta

FinishReason = Literal["stop", "length", "tool_calls"]
"""Why an answer ended: by itself or a stop text, at `max_tokens` or the context's end, or to wait for a tool."""


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
    """The last event. `text` is the whole text, `message` the parsed answer, `token_ids` every id written, also the one that ended it."""

    reason: FinishReason
    text: str
    message: Message
    token_ids: tuple[int, ...]
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] = ()


Event = TextDelta | CallDelta | CallDone | Finished


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """A conversation to answer. `builtin_tools` are names the model knows (brave_search, wolfram_alpha, code_interpreter)."""

    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...] = ()
    builtin_tools: tuple[str, ...] = ()
    params: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """A text to go on with, or its token ids as they are."""

    prompt: str | tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)


class Inference(Protocol):
    """What answers requests. Closing an iterator early cancels its request."""

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Answer a conversation. Raises FormatError, ContextOverflowError."""
        ...

    def complete(self, request: CompletionRequest) -> Iterator[Event]:
        """Go on with a text. Raises ContextOverflowError."""
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
