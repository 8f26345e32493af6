"""A step's numbers as the kernels read them, in one int32 array: one copy to the device a step. Where each lies follows from sizes alone,
so that a captured graph finds them again.

Shapes: T tokens, S sequences, W blocks of a table's row, R rows whose scores are wanted, n tiles of attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

_NAMES = ("tokens", "positions", "slots", "rows", "starts", "first", "tiles", "tables")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How many of everything a step has."""

    tokens: int
    sequences: int
    width: int
    rows: int
    tiles: int

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of each array, in the order of `_NAMES`."""
        return (
            self.tokens,
            self.tokens,
            self.tokens,
            self.rows,
            self.sequences + 1,
            self.sequences,
            2 * self.tiles,
            self.sequences * self.width,
        )

    @property
    def total(self) -> int:
        """All of them, each begun at a multiple of four numbers."""
        return sum(_padded(count) for count in self.counts)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Places:
    """Views of the array: tokens, positions and slots [T], rows [R], starts [S + 1], first [S], tiles [n, 2], tables [S, W]."""

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    rows: Tensor
    starts: Tensor
    first: Tensor
    tiles: Tensor
    tables: Tensor


def _padded(count: int) -> int:
    return -(-count // 4) * 4


def places(flat: Tensor, sizes: Sizes) -> Places:
    """The views of an array of at least `sizes.total` numbers."""
    counts = sizes.counts
    begins = [0, *accumulate(_padded(count) for count in counts)]
    parts = {name: flat[begin : begin + count] for name, begin, count in zip(_NAMES, begins, counts, strict=False)}
    parts["tiles"] = parts["tiles"].view(sizes.tiles, 2)
    parts["tables"] = parts["tables"].view(sizes.sequences, sizes.width)
    return Places(**parts)


def numbers_of(values: object) -> Tensor:
    """An array or a list as int32."""
    return torch.as_tensor(values).to(torch.int32)
