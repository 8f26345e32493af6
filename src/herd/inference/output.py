"""A finished answer as a script sees it, and making one of a stream of events. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from herd.inference.port import Finished, FinishReason, Part, Timings, TokenLogprob, Usage, to_dict
from herd.text.messages import Message, ToolCall


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """A finished answer."""

    text: str
    message: Message
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls that the model asks for."""
        return self.message.tool_calls

    def to_dict(self) -> dict[str, Any]:
        """The JSON that `herd run --json` prints."""
        return to_dict(self._finished())

    def _finished(self) -> Finished:
        return Finished(
            reason=self.finish_reason,
            text=self.text,
            message=self.message,
            token_ids=self.token_ids,
            usage=self.usage,
            timings=self.timings,
            logprobs=self.logprobs,
        )


def output_of(finished: Finished) -> Output:
    """The output of a stream's last event."""
    return Output(
        text=finished.text,
        message=finished.message,
        token_ids=finished.token_ids,
        finish_reason=finished.reason,
        usage=finished.usage,
        timings=finished.timings,
        logprobs=finished.logprobs,
    )


def outputs_of(parts: Iterable[Part]) -> list[Output]:
    """Run the answers of a request to their ends; the outputs in the order of their indices."""
    found = {part.index: output_of(part.event) for part in parts if isinstance(part.event, Finished)}
    return [found[index] for index in sorted(found)]
