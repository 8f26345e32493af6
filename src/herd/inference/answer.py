"""From token events to what an application sees: text whole in its characters, stop texts, tool calls, the finished answer. No torch.

One `AnswerBuilder` reads one continuation. Neither a character nor a stop text goes on beyond a special token or the end.
"""

from __future__ import annotations

from herd.engine.stream import Tokens
from herd.inference.params import SamplingParams
from herd.inference.port import Finished, FinishReason, Timings, TokenLogprob, Usage
from herd.inference.stop import StopTexts
from herd.text.reply import ReplyEvent, ReplyParser
from herd.text.tokenizer import Tokenizer


class AnswerBuilder:
    """Feed with `push`; once it says that the answer is complete, `finished` is it."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, *, calls: bool, num_prompt: int, ends: frozenset[int]) -> None:
        self._tokenizer, self._num_prompt, self._ends = tokenizer, num_prompt, ends
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

    def push(self, tokens: Tokens) -> list[ReplyEvent]:
        """Take what a step added; returns what can be shown. What comes after a stop text is dropped."""
        events: list[ReplyEvent] = []
        ended = False
        for place, token_id in enumerate(tokens.ids):
            self._ids.append(token_id)
            if tokens.logprobs:
                self._logprobs.append(self._named(tokens, place))
            ended = token_id in self._ends
            if not ended:
                events += self._token(token_id)
            if self._stops.stopped:
                break
        if tokens.finish is not None or self._stops.stopped:
            events += self._finish(ended=ended or self._stops.stopped)
        return events

    def _named(self, tokens: Tokens, place: int) -> TokenLogprob:
        found = tokens.logprobs[place]
        data = self._tokenizer.token_bytes
        top = tuple((token_id, data(token_id), logprob) for token_id, logprob in found.top)
        return TokenLogprob(token_id=found.token_id, data=data(found.token_id), logprob=found.logprob, top=top)

    def _token(self, token_id: int) -> list[ReplyEvent]:
        name = self._tokenizer.special_name(token_id)
        if name is None:
            return self._show(self._stops.push(self._decoder.push(token_id)))
        events = self._rest()
        return events if self._stops.stopped else events + self._parser.push_special(name)

    def _show(self, text: str) -> list[ReplyEvent]:
        self._texts.append(text)
        return self._parser.push(text)

    def _rest(self) -> list[ReplyEvent]:
        """What was held back."""
        events = self._show(self._stops.push(self._decoder.finish()))
        return events + self._show(self._stops.finish())

    def _finish(self, *, ended: bool) -> list[ReplyEvent]:
        events = self._rest() + self._parser.finish()
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
        )
