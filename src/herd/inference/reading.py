"""What reads a request's token events, so that threads and event loops can run any of them alike. No torch."""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

from herd.engine.stream import TokenEvent
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

    def push(self, event: TokenEvent) -> list[Part]:
        """What an event shows. Raises the error of a failed request."""
        ...


@runtime_checkable
class Reading(Reader, Protocol[_Result]):
    """A reader that gives its result in one piece."""

    def result(self) -> _Result:
        """What was read, once `done`."""
        ...
