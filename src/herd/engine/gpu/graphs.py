"""Decoding steps as captured graphs: one for each padded number of sequences and of parts of attention, captured when it is first wanted.

Rows of padding stand at position -1 and slot -1: they write nowhere and see nothing. Padding changes no row's bits (kernels' law).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from herd.engine.gpu import device

_SMALL = (1, 2, 4, 8, 16, 24, 32, 48)


def padded_size(count: int, most: int) -> int:
    """The number of rows that a step of `count` is run with: one of a fixed set, at most `most`."""
    for size in _SMALL:
        if count <= size:
            return min(size, most)
    size = 64
    while size < count:
        size += 64 if size < 512 else 256
    return min(size, most)


def padded_parts(count: int) -> int:
    """The parts that are launched where `count` are needed: a power of four."""
    size = 1
    while size < count:
        size *= 4
    return size


@dataclass(slots=True)
class Graphs:
    """Captured steps by their key. `capture` makes one of a function and the pool that all of them share."""

    pool: Any
    capture: Callable[[Callable[[], None], Any], device.Captured] = device.Captured
    found: dict[tuple[int, int], device.Captured] = field(default_factory=dict[tuple[int, int], device.Captured])

    def run(self, key: tuple[int, int], function: Callable[[], None]) -> None:
        """Replay the step, captured now if it never was. What it does is the function's."""
        if key not in self.found:
            self.found[key] = self.capture(function, self.pool)
        self.found[key].replay()
