"""A model in this process behind the inference port: many requests at once on one engine.

Conversations are encoded by `prepare`, answers decoded and parsed by `answer`; what lies between is the engine's, in token ids.
A request runs from the moment it is made, whether or not its events are read; letting go of the iterator cancels it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TypeVar

from herd.base.errors import UsageError
from herd.engine.engine import Engine
from herd.engine.stream import TokenRequest, TokenStream
from herd.inference.answer import AnswerReader
from herd.inference.port import ChatRequest, CompletionRequest, Event, Part
from herd.inference.prepare import Prepared, Preparer
from herd.inference.reading import Reading
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer

_Result = TypeVar("_Result")


class LocalModel:
    """An engine and its tokenizer as an `Inference`."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, prompt_format: PromptFormat | None = None) -> None:
        self._preparer = Preparer(engine, tokenizer, prompt_format)
        self.engine = engine
        self.tokenizer = tokenizer
        self.prompt_format = self._preparer.prompt_format

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.engine.context

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Answer a conversation; see `port.Inference.chat`. Raises UsageError for several answers: `chat_parts` gives those."""
        return _Single(self.chat_parts(_one(request)))

    def complete(self, request: CompletionRequest) -> Iterator[Event]:
        """Go on with a text; see `port.Inference.complete`. Raises UsageError for several answers: `complete_parts` gives those."""
        return _Single(self.complete_parts(_one(request)))

    def chat_parts(self, request: ChatRequest) -> Answer:
        """Answer a conversation `n` times; the prompt is checked before this returns."""
        return self._submit(self._preparer.chat(request))

    def complete_parts(self, request: CompletionRequest) -> Answer:
        """Go on with a text `n` times; the prompt is checked before this returns."""
        return self._submit(self._preparer.complete(request))

    def read(self, requests: Sequence[tuple[TokenRequest, Reading[_Result]]]) -> list[_Result]:
        """Run what is answered with something else than text, all at once; the results in the order of the requests."""
        streams = [self.engine.submit(request) for request, _ in requests]
        for stream, (_, reader) in zip(streams, requests, strict=True):
            for event in stream:
                reader.push(event)
        return [reader.result() for _, reader in requests]

    def prepare(self, request: ChatRequest | CompletionRequest) -> Prepared:
        """What the engine is asked for a request, and what reads its answer."""
        return self._preparer.chat(request) if isinstance(request, ChatRequest) else self._preparer.complete(request)

    def _submit(self, prepared: Prepared) -> Answer:
        reader = AnswerReader(prepared.builders, self.tokenizer, prepared.tokens)
        return Answer(self.engine.submit(prepared.tokens), reader)


class Answer(Iterator[Part]):
    """The parts of one request's answers. `close`, or letting go of it, cancels what still runs."""

    def __init__(self, stream: TokenStream, reader: AnswerReader) -> None:
        self._stream, self._reader = stream, reader
        self._parts = self._read()

    def __next__(self) -> Part:
        return next(self._parts)

    def close(self) -> None:
        """End the request now."""
        self._parts.close()
        self._stream.cancel()

    def __del__(self) -> None:
        if not self._reader.done:
            self._stream.cancel()

    def _read(self) -> Generator[Part, None, None]:
        for event in self._stream:
            parts = self._reader.push(event)
            while self._reader.cut:
                self._stream.cancel(self._reader.cut.pop())
            yield from parts
            if self._reader.done:
                return


class _Single(Iterator[Event]):
    """The events of an answer that is the only one."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __next__(self) -> Event:
        return next(self._answer).event

    def close(self) -> None:
        """End the request now."""
        self._answer.close()


_Request = TypeVar("_Request", ChatRequest, CompletionRequest)


def _one(request: _Request) -> _Request:
    if request.n != 1:
        raise UsageError(f"n is {request.n}, and an iterator of events is of one answer", hint="call chat_parts or complete_parts")
    return request
