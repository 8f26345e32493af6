"""One vector from the hidden states of a prompt, which come in chunks: their mean, or the last one. No torch.

Sums are float64 and go position by position, so that a vector is the same bits however the prompt was cut. Shapes: T tokens, D model dim.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Pooling = Literal["mean", "last"]
POOLINGS: tuple[Pooling, ...] = ("mean", "last")


class Pooler:
    """The states of one sequence. A sequence that is computed again after a preemption begins again."""

    def __init__(self, kind: Pooling) -> None:
        self._kind = kind
        self._sum: NDArray[np.float64] | None = None
        self._count = 0

    def rows(self, first: int, end: int, *, is_last: bool) -> range:
        """Of the positions of a chunk, those whose states are wanted."""
        return range(first if self._kind == "mean" else end - is_last, end)

    def add(self, first: int, states_TD: NDArray[np.float32]) -> None:
        """Take in the wanted states of the chunk that begins at position `first`."""
        if first == 0 or self._kind == "last":
            self._sum, self._count = None, 0
        for state in states_TD:
            self._sum = state.astype(np.float64) if self._sum is None else np.add(self._sum, state, out=self._sum)
            self._count += 1

    def vector(self) -> NDArray[np.float32]:
        """The pooled state, once all chunks were added."""
        assert self._sum is not None, "no state was added"
        return (self._sum / self._count).astype(np.float32)
