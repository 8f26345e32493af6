"""Rows of scores as a step hands them out: one after another from the runner's chunks, with the id of the highest score of each. No torch.

The best ids of a whole chunk are found at once: that is all that greedy sequences need. Shapes: r rows of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from herd.engine.sampler import best_ids


class Rows(NamedTuple):
    """Rows begin..end-1 of a chunk [r, V], and the best id of each of the chunk's r rows."""

    chunk: NDArray[np.float32]
    best: list[int]
    begin: int
    end: int

    @property
    def num_rows(self) -> int:
        """How many."""
        return self.end - self.begin

    @property
    def scores(self) -> NDArray[np.float32]:
        """Theirs alone."""
        return self.chunk[self.begin : self.end]


class ScoreReader:
    """Rows taken one after another from chunks that are overwritten by the next."""

    def __init__(self, chunks: Iterator[tuple[int, NDArray[np.float32]]], width: int) -> None:
        self._chunks = chunks
        self._chunk, self._best, self._place = np.empty((0, width), dtype=np.float32), list[int](), 0

    def take(self, count: int) -> Rows:
        """The next `count` rows; views where one chunk holds them all."""
        parts: list[NDArray[np.float32]] = []
        best: list[int] = []
        while self._place + count > len(self._best):
            parts.append(self._chunk[self._place :].copy())
            best += self._best[self._place :]
            count -= len(self._best) - self._place
            self._chunk, self._place = next(self._chunks)[1], 0
            self._best = best_ids(self._chunk)
        begin, self._place = self._place, self._place + count
        if not best:
            return Rows(self._chunk, self._best, begin, self._place)
        best += self._best[begin : self._place]
        return Rows(np.concatenate([*parts, self._chunk[begin : self._place]]), best, 0, len(best))
