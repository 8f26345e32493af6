"""Runs a file of requests through a model: many at once, answers written as they come, from where an earlier run stopped. No torch.

A window of requests is in flight, so memory does not grow with the file. A line that cannot be answered gets its error as an answer.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.base.errors import HerdError, NotFoundError, UsageError
from herd.base.progress import track_steps
from herd.engine.engine import EngineError
from herd.engine.stream import TokenEvent, TokenStream
from herd.inference.answer import AnswerReader
from herd.inference.batch_line import Line, name_of, read_json, read_line
from herd.inference.batch_output import BatchOutput
from herd.inference.local import LocalModel
from herd.inference.params import SamplingParams
from herd.inference.port import Finished, to_dict


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchReport:
    """Lines of the input: all, those that an earlier run had done, those answered now, those that have an error for an answer now."""

    num_lines: int
    num_before: int
    num_answered: int
    num_failed: int


@dataclass(slots=True)
class _Flying:
    """A line whose answer is being written."""

    number: int
    custom_id: str
    reader: AnswerReader
    stream: TokenStream
    finished: dict[int, Finished] = field(default_factory=dict[int, Finished])


class _Flight:
    """The requests in flight."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self._events: queue.SimpleQueue[tuple[int, TokenEvent]] = queue.SimpleQueue()
        self.flying: dict[int, _Flying] = {}

    def start(self, number: int, line: Line) -> None:
        """Queue a line. Raises HerdError where it cannot be answered."""
        prepared = self._model.prepare(line.request)
        reader = AnswerReader(prepared.builders, self._model.tokenizer, prepared.tokens)
        stream = self._model.engine.submit(prepared.tokens, lambda event: self._events.put((number, event)))
        self.flying[number] = _Flying(number, line.custom_id, reader, stream)

    def landed(self) -> tuple[_Flying, HerdError | None]:
        """Wait until the answer of some line is whole, or failed."""
        while True:
            if self._events.empty():
                self._model.engine.drive(self._events.empty)
            number, event = self._events.get()
            one = self.flying.get(number)
            if one is None:
                continue
            try:
                parts = one.reader.push(event)
            except EngineError:
                raise
            except HerdError as error:
                return self.flying.pop(number), error
            while one.reader.cut:
                one.stream.cancel(one.reader.cut.pop())
            one.finished |= {part.index: part.event for part in parts if isinstance(part.event, Finished)}
            if one.reader.done:
                return self.flying.pop(number), None

    def close(self) -> None:
        """Cancel what is in flight."""
        for one in self.flying.values():
            one.stream.cancel()


def run_file(
    model: LocalModel, source: Path | str, target: Path | str, *, params: SamplingParams | None = None, window: int | None = None
) -> BatchReport:
    """Answer every line of `source` into `target` that it does not answer yet.

    Args:
        model: who answers.
        source: requests, one JSON object a line; see `batch_line`.
        target: answers, in the order of their coming; see `batch_output`.
        params: what the lines leave open.
        window: requests in flight; None takes twice what the engine runs at once.

    Raises NotFoundError, FormatError for an output of another input, UsageError.
    """
    source, target = Path(source), Path(target)
    size = 2 * model.engine.scheduler.limits.max_sequences if window is None else window
    if size < 1:
        raise UsageError(f"the window is {size}, it must be at least 1", hint="leave it out")
    if not source.is_file():
        raise NotFoundError(f"there is no file {source}", hint="give a file with one JSON object a line")
    if target.exists() and source.samefile(target):
        raise UsageError(f"{source} is both input and output", hint="give another output")
    total = sum(1 for _ in _lines(source))
    with BatchOutput(target) as output, track_steps("batch", total=total, done=output.num_done) as advance:
        run = _Run(model, output, params or SamplingParams())
        try:
            for number, raw in _lines(source):
                run.line(number, raw, window=size)
                advance(output.num_done, f"{run.num_failed} errors" if run.num_failed else "")
            while run.flight.flying:
                run.land()
                advance(output.num_done, f"{run.num_failed} errors" if run.num_failed else "")
        finally:
            run.flight.close()
        return BatchReport(num_lines=total, num_before=run.num_before, num_answered=run.num_answered, num_failed=run.num_failed)


def _lines(source: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, by number."""
    with open(source, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                yield number, raw


class _Run:
    """One run: what flies, where it lands, and the counts."""

    def __init__(self, model: LocalModel, output: BatchOutput, defaults: SamplingParams) -> None:
        self._output, self._defaults = output, defaults
        self.flight = _Flight(model)
        self.num_before = self.num_answered = self.num_failed = 0

    def line(self, number: int, raw: bytes, *, window: int) -> None:
        """Start a line unless it is done; wait for others while the window is full."""
        name, data, error = f"line-{number}", None, None
        try:
            data = read_json(raw)
            name = name_of(data, number)
        except HerdError as wrong:
            error = wrong
        if self._output.is_done(number, name):
            self.num_before += 1
            return
        while len(self.flight.flying) >= window:
            self.land()
        try:
            if error is not None:
                raise error
            self.flight.start(number, read_line(data, number, self._defaults))
        except EngineError:
            raise
        except HerdError as wrong:
            self._fail(number, name, wrong)

    def land(self) -> None:
        """Wait for an answer and write it."""
        one, error = self.flight.landed()
        if error is not None:
            self._fail(one.number, one.custom_id, error)
            return
        outputs: list[dict[str, Any]] = [to_dict(one.finished[index]) for index in sorted(one.finished)]
        self._output.write(one.number, one.custom_id, outputs=outputs)
        self.num_answered += 1

    def _fail(self, number: int, name: str, error: HerdError) -> None:
        self._output.write(number, name, error=error.to_dict())
        self.num_failed += 1
