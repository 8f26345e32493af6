"""Which row comes next: a pure function of (seed, sample number), so that a resumed run's whole data state is one counter.

Sample n draws its source by the weights; the k-th sample of a source is row perm_epoch(k // R)[k % R]. No state, no shuffle buffer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import ConfigError
from herd.data.rows import Rows


class Mixture:
    """Rows of several sources in a seeded order. `num_samples` bounds the run: reading past it is an error of the caller."""

    def __init__(self, sources: Mapping[str, Rows], weights: Mapping[str, float], *, seed: int, num_samples: int) -> None:
        """Raises ConfigError when a source is empty or no weight is positive."""
        self.names = [name for name in sources if weights[name] > 0]
        if not self.names:
            raise ConfigError("no data source has a positive weight", hint="set the weight of at least one source above 0")
        for name in self.names:
            if len(sources[name]) == 0:
                raise ConfigError(f"data source {name!r} is empty", hint="check its path, its language filter and the data folder")
        self.rows = [sources[name] for name in self.names]
        self.seed = seed
        share = np.array([weights[name] for name in self.names], dtype=np.float64)
        draws = np.random.default_rng([seed, 0]).random(num_samples)
        self._source = np.searchsorted(np.cumsum(share / share.sum()), draws, side="right").clip(max=len(share) - 1).astype(np.int16)
        self._turn = np.zeros(num_samples, dtype=np.int64)
        for number in range(len(self.names)):
            mine = self._source == number
            self._turn[mine] = np.arange(int(mine.sum()))
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self._source)

    def _row(self, source: int, turn: int) -> int:
        epoch, place = divmod(turn, len(self.rows[source]))
        key = (source, epoch)
        if key not in self._orders:
            self._orders[key] = np.random.default_rng([self.seed, 1, source, epoch]).permutation(len(self.rows[source]))
        return int(self._orders[key][place])

    def places(self, first: int, size: int) -> list[tuple[int, int]]:
        """For samples first..first+size-1, the number of the source in `names` and the row in it."""
        picks = [(int(self._source[n]), int(self._turn[n])) for n in range(first, first + size)]
        return [(source, self._row(source, turn)) for source, turn in picks]

    def batch(self, first: int, size: int) -> tuple[NDArray[np.int32], NDArray[np.int16], NDArray[np.bool_]]:
        """Samples first..first+size-1: tokens, document numbers and loss mask, each [size, T+1]."""
        places = self.places(first, size)
        return (
            np.stack([self.rows[source].tokens[row] for source, row in places]),
            np.stack([self.rows[source].documents[row] for source, row in places]),
            np.stack([self.rows[source].counts[row] for source, row in places]),
        )

    def epochs(self, num_samples: int) -> dict[str, float]:
        """How often each source has been read after `num_samples` samples."""
        counts = np.bincount(self._source[:num_samples], minlength=len(self.names))
        return {name: float(counts[number]) / len(self.rows[number]) for number, name in enumerate(self.names)}
