"""From token events to what an application sees: text whole in its characters, stop texts, tool calls, the finished answer. No torch.

One `AnswerBuilder` reads one continuation, an `AnswerReader` all of a request. Neither a character nor a stop text goes on beyond a special
token or the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from herd.engine.sampler import TokenLogprobs
from herd.engine.stream import Admitted, Failed, PromptLogprobs, TokenEvent, TokenRequest, Tokens
from herd.inference.params import SamplingParams
from herd.inference.port import Event, Finished, FinishReason, Part, PromptRead, Timings, TokenLogprob, TokensDone, Usage
from herd.inference.stop import StopTexts
from herd.text.reply import ReplyParser
from herd.text.tokenizer import Tokenizer


class AnswerBuilder:
    """Feed with `push`; once it says that the answer is complete, `finished` is it."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, *, calls: bool, num_prompt: int, ends: frozenset[int]) -> None:
        self._tokenizer, self._num_prompt, self._ends = tokenizer, num_prompt, ends
        self._named_ends = frozenset(params.stop_token_ids)
        self._stops = StopTexts(params.stop, include=params.include_stop)
        self._decoder = tokenizer.stream_decoder()
        self._parser = ReplyParser(calls=calls)
        self._texts: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._reason: FinishReason = "length"
        self.complete = False

    @property
    def num_tokens(self) -> int:
        """Tokens that belong to the answer so far."""
        return len(self._ids)

    def push(self, tokens: Tokens) -> list[Event]:
        """Take what a step added; returns what can be shown. What comes after a stop text is dropped."""
        events: list[Event] = []
        ended = False
        for place, token_id in enumerate(tokens.ids):
            self._ids.append(token_id)
            if tokens.logprobs:
                told = named(self._tokenizer, tokens.logprobs[place])
                self._logprobs.append(told)
                events.append(TokensDone(logprobs=(told,)))
            ended = token_id in self._ends
            if not ended:
                events += self._token(token_id)
            if self._stops.stopped:
                break
        if tokens.finish is not None or self._stops.stopped:
            events += self._finish(ended=ended or self._stops.stopped)
        return events

    def _token(self, token_id: int) -> list[Event]:
        name = self._tokenizer.special_name(token_id)
        if name is None:
            return self._show(self._stops.push(self._decoder.push(token_id)))
        events = self._rest()
        return events if self._stops.stopped else [*events, *self._parser.push_special(name)]

    def _show(self, text: str) -> list[Event]:
        self._texts.append(text)
        return [*self._parser.push(text)]

    def _rest(self) -> list[Event]:
        """What was held back."""
        events = self._show(self._stops.push(self._decoder.finish()))
        return events + self._show(self._stops.finish())

    def _finish(self, *, ended: bool) -> list[Event]:
        events = [*self._rest(), *self._parser.finish()]
        # An answer that was cut may end in half a call, so being cut is what counts.
        self._reason = "length" if not ended else "tool_calls" if self._parser.message.tool_calls else "stop"
        self.complete = True
        return events

    def finished(self, timings: Timings, *, num_cached: int) -> Finished:
        """The whole answer."""
        message = self._parser.message
        return Finished(
            reason=self._reason,
            text=message.text if message.tool_calls else "".join(self._texts),
            message=message,
            token_ids=tuple(self._ids),
            usage=Usage(prompt_tokens=self._num_prompt, completion_tokens=len(self._ids), cached_tokens=num_cached),
            timings=timings,
            logprobs=tuple(self._logprobs),
            stop_reason=self._stop_reason(),
        )

    def _stop_reason(self) -> str | int | None:
        if self._stops.stopped:
            return self._stops.found
        return self._ids[-1] if self._reason != "length" and self._ids and self._ids[-1] in self._named_ends else None


class AnswerReader:
    """Token events of one request in, parts of its answers out. `cut` is emptied by the caller: continuations that a stop text has ended
    and the engine does not know of yet.
    """

    def __init__(
        self,
        builders: Sequence[AnswerBuilder],
        tokenizer: Tokenizer,
        request: TokenRequest,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._builders, self._tokenizer, self._prompt, self._clock = builders, tokenizer, request.prompt, clock
        self._wants_prompt = request.params.prompt_logprobs is not None
        self._started = clock()
        self._first: list[float | None] = [None] * len(builders)
        self._num_cached = 0
        self._read: list[TokenLogprob | None] = [None]
        self._open = len(builders)
        self.cut: list[int] = []

    @property
    def done(self) -> bool:
        """Whether every continuation is complete."""
        return self._open == 0

    def push(self, event: TokenEvent) -> list[Part]:
        """What an event shows. Raises the error of a failed request."""
        if isinstance(event, Tokens):
            return self._tokens(event)
        if isinstance(event, Failed):
            self._open = 0
            raise event.error
        if isinstance(event, Admitted):
            self._num_cached = event.num_cached
        elif isinstance(event, PromptLogprobs):
            self._read += [named(self._tokenizer, found) for found in event.logprobs]
        if self._wants_prompt and len(self._read) == len(self._prompt):
            self._wants_prompt = False
            return [Part(0, PromptRead(token_ids=tuple(self._prompt), logprobs=tuple(self._read)))]
        return []

    def _tokens(self, event: Tokens) -> list[Part]:
        index, builder = event.index, self._builders[event.index]
        if builder.complete:
            return []
        if self._first[index] is None:
            self._first[index] = self._clock()
        parts = [Part(index, shown) for shown in builder.push(event)]
        if builder.complete:
            self._open -= 1
            if event.finish is None:
                self.cut.append(index)
            parts.append(Part(index, builder.finished(self._timings(index), num_cached=self._num_cached)))
        return parts

    def _timings(self, index: int) -> Timings:
        ended, first = self._clock(), self._first[index]
        assert first is not None
        decode_s, count = ended - first, self._builders[index].num_tokens
        rate = (count - 1) / decode_s if count > 1 and decode_s > 0 else 0.0
        return Timings(prefill_s=round(first - self._started, 6), decode_s=round(decode_s, 6), tokens_per_s=round(rate, 2))


def named(tokenizer: Tokenizer, found: TokenLogprobs) -> TokenLogprob:
    """Log-probabilities with the bytes of their tokens."""
    data = tokenizer.token_bytes
    top = tuple((token_id, data(token_id), logprob) for token_id, logprob in found.top)
    return TokenLogprob(token_id=found.token_id, data=data(found.token_id), logprob=found.logprob, top=top)
