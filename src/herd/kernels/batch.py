"""The tokens of one step: whose each is, where it stands, and where its key and value go. Checked once, used by every layer.

A sequence's tokens are consecutive, in the batch and in position; a prompt's chunk and a decoding sequence's one token look alike.
Block `table[s, i]` of the cache holds positions i * block_size and on of sequence s; a slot is block * block_size + offset.
Sequences may share blocks that they read; nobody may share a slot that is written. Shapes: S sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from herd.kernels.checks import require


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """Checked arrays of a step, on the CPU. Make it with `plan_batch`."""

    block_table: Tensor  # [S, blocks], int32
    starts: Tensor  # [S + 1], int32: tokens of sequence s are starts[s] .. starts[s + 1]
    first: Tensor  # [S], int32: position of a sequence's first token in this batch
    positions: Tensor  # [T], int64
    slots: Tensor  # [T], int64
    num_blocks: int
    block_size: int
    num_positions: int  # the highest position, plus one

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.positions)

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.first)


def plan_batch(
    block_table: Tensor | np.ndarray | Sequence[Sequence[int]],
    *,
    first: Tensor | np.ndarray | Sequence[int],
    lengths: Tensor | np.ndarray | Sequence[int],
    num_blocks: int,
    block_size: int,
) -> Batch:
    """Lay out a step: sequence s adds `lengths[s]` tokens from position `first[s]` on.

    Rows of the table may be longer than needed; what lies behind a sequence's last position is not looked at.
    Raises ConfigError where a block that is needed is missing or out of range, or where two tokens would be written to one slot.
    """
    table = np.ascontiguousarray(np.asarray(block_table, dtype=np.int32))
    first_S, lengths_S = np.asarray(first, dtype=np.int64), np.asarray(lengths, dtype=np.int64)
    require(num_blocks >= 1 and block_size >= 1, f"a cache of {num_blocks} blocks of {block_size} holds nothing", "both must be positive")
    shapes = (table.shape, first_S.shape, lengths_S.shape)
    fits = table.ndim == 2 and first_S.shape == lengths_S.shape == table.shape[:1]
    require(fits, f"table, first and lengths have shapes {shapes}, expected [S, blocks], [S] and [S]", "give one row for each sequence")
    require(bool((first_S >= 0).all() and (lengths_S >= 0).all()), "a position or a length is negative", "positions count from 0")
    ends_S = first_S + lengths_S
    most = int(ends_S.max(initial=0))
    require(most < 2**31 and num_blocks < 2**31, f"{most} positions in {num_blocks} blocks do not fit 32 bits", "shorten the sequences")
    _check_blocks(table, np.where(lengths_S > 0, -(-ends_S // block_size), 0), num_blocks, block_size)
    starts = np.zeros(len(first_S) + 1, dtype=np.int64)
    np.cumsum(lengths_S, out=starts[1:])
    sequence_T = np.repeat(np.arange(len(first_S)), lengths_S)
    positions = np.arange(starts[-1]) - starts[sequence_T] + first_S[sequence_T]
    slots = table[sequence_T, positions // block_size].astype(np.int64) * block_size + positions % block_size
    _check_slots(slots, block_size)
    return Batch(
        block_table=torch.from_numpy(table),
        starts=torch.from_numpy(starts.astype(np.int32)),
        first=torch.from_numpy(first_S.astype(np.int32)),
        positions=torch.from_numpy(positions.astype(np.int64)),
        slots=torch.from_numpy(slots),
        num_blocks=num_blocks,
        block_size=block_size,
        num_positions=int(positions.max(initial=-1)) + 1,
    )


def _check_blocks(table: np.ndarray, needed_S: np.ndarray, num_blocks: int, block_size: int) -> None:
    width = table.shape[1]
    short = np.flatnonzero(needed_S > width)
    if len(short):
        s = int(short[0])
        require(False, f"sequence {s} needs {needed_S[s]} blocks of {block_size}, its row lists {width}", "allocate before the step")
    used = table[:, : int(needed_S.max(initial=0))]
    bad = ((used < 0) | (used >= num_blocks)) & (np.arange(used.shape[1]) < needed_S[:, None])
    if bad.any():
        s, i = (int(index[0]) for index in np.nonzero(bad))
        require(False, f"block {used[s, i]}, number {i} of sequence {s}, is not one of 0 to {num_blocks - 1}", "check the block table")


def _check_slots(slots: np.ndarray, block_size: int) -> None:
    if len(slots) < 2:
        return
    ordered = np.sort(slots)
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        block, offset = divmod(int(ordered[twice[0]]), block_size)
        require(False, f"two tokens would be written to offset {offset} of block {block}", "sequences may share only blocks that are full")
