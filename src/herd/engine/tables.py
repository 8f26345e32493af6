"""The block tables of the sequences of a step as one array, kept from step to step: most of it is the same as before. No torch.

Shapes: S sequences, W blocks of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class BlockTables:
    """Rows of block numbers. A row is written again where another list of blocks stands in it, and longer where its list has grown.

    A list that changes in its middle, as one does whose block was copied before it is written, has to be told: `moved`.
    """

    def __init__(self) -> None:
        self._table_SW = np.zeros((0, 0), dtype=np.int32)
        self._lists: list[list[int]] = []
        self._lengths: list[int] = []

    def of(self, lists: Sequence[list[int]], *, moved: bool) -> NDArray[np.int32]:
        """The lists as an array [S, at least W]; what is missing is any block, which no one reads. A view, good until the next call."""
        width = max(map(len, lists))
        if len(lists) > self._table_SW.shape[0] or width > self._table_SW.shape[1]:
            self._table_SW = np.zeros((len(lists) * 5 // 4 + 1, width * 5 // 4 + 1), dtype=np.int32)
            moved = True
        if moved:
            self._lists, self._lengths = [], []
        known, lengths, table = self._lists, self._lengths, self._table_SW
        for row, blocks in enumerate(lists):
            size = len(blocks)
            if row < len(known) and known[row] is blocks:
                if (before := lengths[row]) < size:
                    table[row, before:size] = blocks[before:]
                    lengths[row] = size
                elif before > size:
                    lengths[row] = size
                continue
            table[row, :size] = blocks
            if row < len(known):
                known[row], lengths[row] = blocks, size
            else:
                known.append(blocks)
                lengths.append(size)
        del known[len(lists) :], lengths[len(lists) :]
        return table[: len(lists)]
