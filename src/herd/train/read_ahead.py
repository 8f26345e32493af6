"""The next step's rows, made in a thread while a GPU computes this one. On a CPU nothing is read ahead: the cores are busy already.

Rows are a pure function of the first sample's number and the phase, so what is read ahead for a step that never comes (a rollback) is lost
and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from herd.train.batch import AnyBatch
from herd.train.schedule import Phase

MakeRows = Callable[[int, Phase], AnyBatch]
"""The rows of a step from its first sample and its phase."""


class ReadAhead:
    """Gives rows by their first sample; inside its context those of the step after in advance. Leaving it ends the thread."""

    def __init__(self, make: MakeRows, *, device: str) -> None:
        self._make, self._device = make, device
        self._pool: ThreadPoolExecutor | None = None
        self._next: tuple[tuple[int, Phase], Future[AnyBatch]] | None = None

    def __enter__(self) -> ReadAhead:
        if self._device != "cpu":
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="herd-read-ahead")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._next = None

    def rows(self, first: int, phase: Phase, then: Phase | None) -> AnyBatch:
        """The rows of a step that begins at sample `first`; `then` is the phase of the step after it, None for the last one."""
        ahead, self._next = self._next, None
        found = ahead[1].result() if ahead is not None and ahead[0] == (first, phase) else self._make(first, phase)
        if self._pool is not None and then is not None:
            key = (first + phase.num_samples, then)
            self._next = (key, self._pool.submit(self._make, *key))
        return found
