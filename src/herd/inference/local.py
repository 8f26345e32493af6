"""A model in this process behind the inference port: many requests at once on one engine.

Conversations are rendered and encoded here, answers decoded and parsed; what lies between is the engine's, in token ids. A request runs
from the moment it is made, whether or not its events are read; letting go of the iterator cancels it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence

from herd.base.errors import ContextOverflowError, TokenizerError
from herd.engine.engine import Engine
from herd.engine.stream import Admitted, PromptLogprobs, TokenEvent, TokenRequest, Tokens, TokenStream
from herd.inference.answer import AnswerBuilder
from herd.inference.params import SamplingParams
from herd.inference.port import ChatRequest, CompletionRequest, Event, Timings
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer


class LocalModel:
    """An engine and its tokenizer as an `Inference`."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, prompt_format: PromptFormat | None = None) -> None:
        if tokenizer.vocab_size > engine.vocab_size:
            raise TokenizerError(
                f"the tokenizer has {tokenizer.vocab_size:,} ids, the model only {engine.vocab_size:,} rows",
                hint="tokenizer and model belong to different checkpoints",
            )
        self.engine = engine
        self.tokenizer = tokenizer
        self.prompt_format = prompt_format or PromptFormat()

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.engine.context

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Answer a conversation; see `port.Inference.chat`."""
        ids = self.prompt_format.encode(self.tokenizer, request.messages, tools=request.tools, builtin_tools=request.builtin_tools)
        return self._run(ids, request.params, calls=bool(request.tools or request.builtin_tools))

    def complete(self, request: CompletionRequest) -> Iterator[Event]:
        """Go on with a text, after <|begin_of_text|>; ids are taken as they are."""
        prompt = request.prompt
        ids = self.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else list(prompt)
        return self._run(ids, request.params, calls=False)

    def _run(self, prompt: Sequence[int], params: SamplingParams, *, calls: bool) -> Iterator[Event]:
        """Start a request; its prompt is checked before this returns."""
        for token_id in (*prompt, *params.stop_token_ids):
            self.tokenizer.token_bytes(token_id)
        room = self.context - len(prompt)
        if prompt and room < 1:
            raise ContextOverflowError(
                f"the prompt has {len(prompt):,} tokens and the model's context is {self.context:,}: no room for an answer",
                hint="shorten the prompt or begin a new conversation; nothing was cut",
            )
        chosen = params.token_params(room=max(1, room), model_stops=self.tokenizer.stop_ids)
        stream = self.engine.submit(TokenRequest(prompt=tuple(prompt), params=chosen))
        builder = AnswerBuilder(self.tokenizer, params, calls=calls, num_prompt=len(prompt), ends=chosen.stop_ids)
        return Answer(stream, builder, started=time.perf_counter())


class Answer(Iterator[Event]):
    """The events of one answer. `close`, or letting go of it, cancels what still runs."""

    def __init__(
        self, stream: TokenStream, builder: AnswerBuilder, *, started: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._stream, self._builder, self._started, self._clock = stream, builder, started, clock
        self._first: float | None = None
        self._num_cached = 0
        self._events = self._read()

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """End the request now."""
        self._events.close()
        self._stream.cancel()

    def __del__(self) -> None:
        if not self._builder.complete:
            self._stream.cancel()

    def _read(self) -> Generator[Event, None, None]:
        for event in self._stream:
            yield from self._seen(event)
            if self._builder.complete:
                self._stream.cancel()
                yield self._builder.finished(self._timings(), num_cached=self._num_cached)
                return

    def _seen(self, event: TokenEvent) -> list[Event]:
        if isinstance(event, Admitted):
            self._num_cached = event.num_cached
        elif isinstance(event, PromptLogprobs):
            return []
        elif isinstance(event, Tokens):
            if self._first is None:
                self._first = self._clock()
            return list(self._builder.push(event))
        return []

    def _timings(self) -> Timings:
        ended = self._clock()
        first = ended if self._first is None else self._first
        decode_s, count = ended - first, self._builder.num_tokens
        rate = (count - 1) / decode_s if count > 1 and decode_s > 0 else 0.0
        return Timings(prefill_s=round(first - self._started, 6), decode_s=round(decode_s, 6), tokens_per_s=round(rate, 2))
