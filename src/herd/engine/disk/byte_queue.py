"""A queue between two threads that is bounded by the bytes of what lies in it. Knows nothing of what that is."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ByteQueue(Generic[Item]):
    """Takes items of `max_bytes` together; one that is larger goes in alone."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._items: deque[tuple[Item, int]] = deque()
        self._num_bytes = self._num_open = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def has_room(self, size: int) -> bool:
        """Whether an item of this size would be taken now; for the one thread that puts."""
        with self._changed:
            return self._fits(size)

    def _fits(self, size: int) -> bool:
        return not self._is_closed and (not self._num_bytes or self._num_bytes + size <= self._max_bytes)

    def put(self, item: Item, size: int, *, wait: bool = False) -> bool:
        """Add an item; where there is no room wait for it, or return False. False too once the queue is closed."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._is_closed or self._fits(size))
            if not self._fits(size):
                return False
            self._items.append((item, size))
            self._num_bytes += size
            self._num_open += 1
            self._changed.notify_all()
            return True

    def get(self, *, wait: bool = False) -> Item | None:
        """The oldest item; where there is none wait for it, or return None. None too once the queue is closed and empty."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._items or self._is_closed)
            if not self._items:
                return None
            item, size = self._items.popleft()
            self._num_bytes -= size
            self._changed.notify_all()
            return item

    def done(self) -> None:
        """Say that an item that was taken has been dealt with."""
        with self._changed:
            self._num_open -= 1
            self._changed.notify_all()

    def join(self, timeout_s: float) -> bool:
        """Wait until every item has been dealt with; False where that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._num_open, timeout_s)

    def close(self) -> None:
        """Take nothing more and wake everyone. What lies in the queue can still be taken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
