"""A model's packed weights as they lie in a file, for `kernels.forward`: bytes with names of dtypes. No torch.

`weights.PackedWeights` is the same in tensors, over the same memory or over its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from herd.kernels.buffer import Buffer
from herd.kernels.stored import StoredMatrix


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredBlock:
    """A block's weights."""

    norm: Buffer
    qkv: StoredMatrix
    out: StoredMatrix
    ffn_norm: Buffer
    gate_up: StoredMatrix
    down: StoredMatrix


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredWeights:
    """`embedding` is None where the rows of `head` are the embedding. `size_bytes`: of it all."""

    blocks: list[StoredBlock]
    norm: Buffer
    head: StoredMatrix
    embedding: Buffer | None
    size_bytes: int

    def with_vocabulary(self, size: int) -> StoredWeights:
        """The same memory, of the output matrix the first `size` rows."""
        return replace(self, head=replace(self.head, num_outputs=min(size, self.head.num_outputs)))
