"""The events of one response, numbered as they come, kept so that a stream can be taken up again after any of them.

One writes, any number follow. `saved` takes whole pieces of the events to where they survive the process; who follows later reads them
from there (`replayed`). Knows nothing of what an event means.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from herd.stack.answers import dumps

Event = dict[str, Any]


def spelled(event: Event) -> bytes:
    """An event as the stream sends it: its type is the event's name too."""
    return b"event: " + str(event["type"]).encode() + b"\ndata: " + dumps(event) + b"\n\n"


class Journal:
    """Events in order; `close` ends every follower's stream."""

    def __init__(self) -> None:
        self._events: list[bytes] = []
        self._waiting: set[asyncio.Event] = set()
        self._closed = False
        self._num_taken = 0

    def __len__(self) -> int:
        return len(self._events)

    @property
    def closed(self) -> bool:
        """Whether nothing more will come."""
        return self._closed

    def add(self, kind: str, **fields: Any) -> None:
        """Write the next event; it gets the next number."""
        assert not self._closed, kind
        self._events.append(spelled({"type": kind, "sequence_number": len(self._events), **fields}))
        self._wake()

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._wake()

    def take_unsaved(self) -> tuple[int, list[bytes]]:
        """Events that were not taken before, with the number of the first."""
        first, self._num_taken = self._num_taken, len(self._events)
        return first, self._events[first:]

    def _wake(self) -> None:
        for waiting in self._waiting:
            waiting.set()

    async def follow(self, after: int = -1) -> AsyncGenerator[bytes, None]:
        """Events with greater numbers, those that come together in one piece, until the end."""
        place = max(0, after + 1)
        arrived = asyncio.Event()
        self._waiting.add(arrived)
        try:
            while True:
                arrived.clear()
                if place < len(self._events):
                    piece, place = b"".join(self._events[place:]), len(self._events)
                    yield piece
                elif self._closed:
                    return
                else:
                    await arrived.wait()
        finally:
            self._waiting.discard(arrived)


async def replayed(events: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Events that were saved, as a stream."""
    piece = b"".join(events)
    if piece:
        yield piece
