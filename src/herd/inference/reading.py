"""What reads a request's token events, so that threads and event loops can run any of them alike. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, TypeVar, runtime_checkable

from herd.engine.stream import Failed, TokenEvent, Tokens
from herd.inference.port import Part

_Result = TypeVar("_Result", covariant=True)


@runtime_checkable
class Reader(Protocol):
    """Events in, parts of answers out. `cut` is emptied by the caller: continuations that are of no more use."""

    cut: list[int]

    @property
    def done(self) -> bool:
        """Whether all was read."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens read so far that were written for it."""
        ...

    def push(self, event: TokenEvent) -> list[Part]:
        """What an event shows. Raises the error of a failed request."""
        ...


@runtime_checkable
class Reading(Reader, Protocol[_Result]):
    """A reader that gives its result in one piece."""

    def result(self) -> _Result:
        """What was read, once `done`."""
        ...


class QuietReader(ABC):
    """The beginning of a `Reading` of a request that is read to its end and whose tokens no one wants."""

    def __init__(self) -> None:
        self.cut: list[int] = []
        self.done = False

    @property
    def num_tokens(self) -> int:
        """None is written that anyone keeps."""
        return 0

    def push(self, event: TokenEvent) -> list[Part]:
        """Take an event. Raises the error of a failed request."""
        if isinstance(event, Failed):
            self.done = True
            raise event.error
        self.take(event)
        self.done = self.done or (isinstance(event, Tokens) and event.finish is not None)
        return []

    @abstractmethod
    def take(self, event: TokenEvent) -> None:
        """Keep what the result is made of."""
