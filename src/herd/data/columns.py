"""A mixture of rows that have more columns than text does; the order is that of `loader.StreamMixture`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.data.loader import StreamMixture
from herd.data.rows import Rows

Table = Mapping[str, NDArray[Any]]


class ColumnMixture:
    """Rows of several sources, each with the same named columns, in a seeded order."""

    def __init__(self, sources: Mapping[str, Table], weights: Mapping[str, float], *, seed: int, num_samples: int) -> None:
        """Raises ConfigError when a source is empty or no weight is positive."""
        rows = {name: Rows(tokens=table["tokens"], documents=table["documents"], counts=table["counts"]) for name, table in sources.items()}
        self.order = StreamMixture(rows, weights, seed=seed, num_samples=num_samples)
        self._tables = [sources[name] for name in self.order.names]

    def __len__(self) -> int:
        return len(self.order)

    def batch(self, first: int, size: int) -> dict[str, NDArray[Any]]:
        """Samples first..first+size-1: every column, [size, ...]."""
        places = list(zip(*self.order.rows_of(first, size), strict=True))
        return {name: np.stack([self._tables[source][name][row] for source, row in places]) for name in self._tables[0]}

    def epochs(self, num_samples: int) -> dict[str, float]:
        """How often each source has been read after `num_samples` samples."""
        return self.order.epochs(num_samples)
