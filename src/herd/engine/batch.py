"""What one step asks of a runner: tokens of many sequences behind one another, where their keys lie, and which rows want scores. No torch.

Ragged: sequence s has the tokens starts[s]..starts[s+1]-1, from position first[s] on; its keys and values lie in the blocks of row s of the
table, whose i-th block holds positions i*block_size and after.
Shapes: T tokens, S sequences, R rows, E rows for states, W blocks of the longest sequence, V vocabulary, D model dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class RaggedBatch:
    """`rows_R` (whose scores are wanted) and `hidden_E` (whose final normed hidden states are) are places among the T tokens, ascending.

    `copies` are (from, to) blocks, to be copied before anything is written.
    """

    tokens_T: NDArray[np.int32]
    first_S: NDArray[np.int32]
    starts: NDArray[np.int32]
    block_table_SW: NDArray[np.int32]
    rows_R: NDArray[np.int64]
    copies: tuple[tuple[int, int], ...] = ()
    hidden_E: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@runtime_checkable
class Runner(Protocol):
    """A model over its own paged cache."""

    block_size: int
    num_blocks: int
    vocab_size: int

    def run(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Compute the batch, before this returns; then give (first row, float32 scores [r, V]) until all R rows were given.

        The scores lie in the runner's arena: they are overwritten by what comes next.
        """
        ...

    def hidden(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Of the batch that was run last, (first row, float32 states [r, D]) until all E rows were given. They lie in an arena too."""
        ...


@runtime_checkable
class BlockCopier(Protocol):
    """A runner whose cache blocks can be copied out and in, bit for bit, between two batches.

    `block_layout` tells dtypes and shapes of what a block's `block_bytes` are.
    """

    @property
    def block_layout(self) -> str:
        """See above."""
        ...

    @property
    def block_bytes(self) -> int:
        """See above."""
        ...

    def copy_out(self, block: int) -> memoryview:
        """A copy of a block's content, of every layer."""
        ...

    def copy_in(self, block: int, content: memoryview) -> None:
        """Overwrite a block with what `copy_out` gave."""
        ...


class RowReader:
    """Rows taken one after another from parts that are overwritten by the next."""

    def __init__(self, parts: Iterator[tuple[int, NDArray[np.float32]]]) -> None:
        self._parts = parts
        self._left = np.empty((0, 0), dtype=np.float32)

    def take(self, count: int) -> NDArray[np.float32]:
        """The next `count` rows; a view where one part holds them all."""
        parts: list[NDArray[np.float32]] = []
        while count > len(self._left):
            if len(self._left):
                parts.append(self._left.copy())
                count -= len(self._left)
            self._left = next(self._parts)[1]
        taken, self._left = self._left[:count], self._left[count:]
        return np.concatenate([*parts, taken]) if parts else taken


def block_table(tables: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Block lists of unequal length as one array; what is missing is block 0, which no one reads."""
    width = max(1, max(map(len, tables), default=0))
    padding = [0] * width
    flat: list[int] = []
    for blocks in tables:
        flat += blocks
        flat += padding[len(blocks) :]
    return np.array(flat, dtype=np.int32).reshape(len(tables), width)


class Piece(NamedTuple):
    """One sequence's part of a batch: tokens from position `first` on, and the positions whose scores and whose states are wanted."""

    tokens: list[int]
    first: int
    blocks: Sequence[int]
    rows: range = range(0)
    hidden: range = range(0)


def ragged(pieces: Sequence[Piece], copies: Sequence[tuple[int, int]] = ()) -> RaggedBatch:
    """The pieces behind one another."""
    tokens, rows, hidden = list[int](), list[int](), list[int]()
    starts = [0]
    for piece in pieces:
        shift = len(tokens) - piece.first
        tokens += piece.tokens
        rows += [shift + place for place in piece.rows]
        hidden += [shift + place for place in piece.hidden]
        starts.append(len(tokens))
    return RaggedBatch(
        tokens_T=np.asarray(tokens, dtype=np.int32),
        first_S=np.asarray([piece.first for piece in pieces], dtype=np.int32),
        starts=np.asarray(starts, dtype=np.int32),
        block_table_SW=block_table([piece.blocks for piece in pieces]),
        rows_R=np.asarray(rows, dtype=np.int64),
        copies=tuple(copies),
        hidden_E=np.asarray(hidden, dtype=np.int64),
    )
