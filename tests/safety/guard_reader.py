"""A guard model that is told what to think."""

from __future__ import annotations

import math
from collections.abc import Iterator

from told_shields import finished  # pyright: ignore[reportMissingImports]

from herd.inference.port import ChatRequest, CompletionRequest, Event, Finished, TokenLogprob


class Reader:
    """An `Inference` that gives this probability of `unsafe`, or takes it from the text it judges: `... 0.7`."""

    def __init__(self, unsafe: float | None = None) -> None:
        self.unsafe = unsafe

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        said = request.messages[0].text.partition("<BEGIN CONVERSATION>")[2].partition("<END CONVERSATION>")[0]
        unsafe = float(said.split()[-1]) if self.unsafe is None else self.unsafe
        text = "\n\nunsafe\nS2" if unsafe >= 0.5 or "Agent" in said else "\n\nsafe"
        top = tuple((number, word, math.log(p)) for number, word, p in ((7, b"unsafe", unsafe), (8, b"safe", 1 - unsafe)))
        word = top[0] if text.endswith("S2") else top[1]
        end = finished(text)
        yield Finished(
            reason=end.reason,
            text=text,
            message=end.message,
            token_ids=end.token_ids,
            usage=end.usage,
            timings=end.timings,
            logprobs=(TokenLogprob(token_id=word[0], data=word[1], logprob=word[2], top=top),),
        )

    def complete(self, request: CompletionRequest) -> Iterator[Event]:
        raise AssertionError("a guard is asked by chat")
