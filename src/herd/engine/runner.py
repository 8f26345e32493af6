"""The CPU runner: embedding, packed layers over a paged cache and scores, by the kernels of `herd.kernels`: in one call of C where it can,
else op by op (`op_runner`).

Built from a `Transformer`'s config and parameters, or from packed weights in a mapped file; rounding points are the model's, and a parity
test holds the two together. Everything is allocated here, once: cache, activations, scores. A row's scores are the same whatever else is in
the batch (kernels' law). Needs no torch where the weights are mapped and C runs; what goes op by op imports it.
Shapes: T tokens, D model dim, R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from herd.engine.arenas import allocate
from herd.engine.batch import RaggedBatch
from herd.engine.packed.mapped import MappedModel
from herd.kernels import draw
from herd.kernels.buffer import Buffer, dtype_name
from herd.kernels.caches import cache_dtype_name
from herd.kernels.forward import Angles, Block, Forward

if TYPE_CHECKING:
    from herd.engine.op_runner import OpRunner
    from herd.engine.packed.stored import StoredWeights
    from herd.engine.packed.weights import PackedWeights
    from herd.model.transformer import Transformer


class CpuRunner:
    """A `Runner` on the CPU. `vocab_size` leaves rows of the output matrix out that no token stands for."""

    draw_rows = staticmethod(draw.draw)

    def __init__(
        self,
        model: Transformer | MappedModel,
        *,
        num_blocks: int,
        block_size: int,
        max_tokens: int,
        score_rows: int,
        cache_dtype: str | None = None,
        vocab_size: int | None = None,
    ) -> None:
        config = model.config
        self.config, self.num_blocks, self.block_size = config, num_blocks, block_size
        self.draws_rows = draw.available()
        self.vocab_size = min(vocab_size or config.vocab_size, config.vocab_size)
        self._weights, self._angles = _weights_of(model, self.vocab_size)
        self._arenas = allocate(
            config,
            dtype=dtype_name(model.dtype),
            cache_dtype=cache_dtype_name(cache_dtype, model.dtype),
            num_blocks=num_blocks,
            block_size=block_size,
            max_tokens=max_tokens,
        )
        self._scores = Buffer.zeros((score_rows, self.vocab_size), "float32")
        self._forward = self._whole()

    def _whole(self) -> Forward | None:
        """All blocks in one call, where C knows the shapes."""
        config, weights, arenas = self.config, self._weights, self._arenas
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        shape = {"num_heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        if not Forward.fits(weights.head, weights.embedding, **shape, cache_dtype=arenas.keys.dtype):
            return None
        names = ("norm", "qkv", "out", "ffn_norm", "gate_up", "down")
        return Forward(
            [
                Block(**{name: getattr(block, name) for name in names}, keys=arenas.keys[layer], values=arenas.values[layer])
                for layer, block in enumerate(weights.blocks)
            ],
            norm=weights.norm,
            head=weights.head,
            embedding=weights.embedding,
            rope=self._angles,
            num_heads=heads,
            eps=config.rms_norm_eps,
            arenas=arenas.activations,
            scores=self._scores,
        )

    @cached_property
    def _ops(self) -> OpRunner:
        """The ops, over the same memory."""
        from herd.engine.op_runner import OpRunner
        from herd.engine.packed.weights import PackedWeights
        from herd.kernels.rope import RopeTable

        weights = self._weights if isinstance(self._weights, PackedWeights) else PackedWeights.of(self._weights)
        rope = self._angles if isinstance(self._angles, RopeTable) else None
        return OpRunner(self.config, weights, self._arenas, self._scores, rope=rope)

    def run(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.run`: the batch has been computed when this returns."""
        self._arenas.copy_blocks(batch.copies)
        if self._forward is None or not self._forward.available or len(batch.hidden_E):
            normed_RD = self._ops.normed_rows(batch)
            return self._chunks(len(normed_RD), lambda first, count: self._ops.score(normed_RD[first : first + count]))
        places = {"first_S": batch.first_S, "starts": batch.starts, "block_table_SW": batch.block_table_SW}
        self._forward(batch.tokens_T, rows_R=batch.rows_R, **places)
        return self._chunks(len(batch.rows_R), self._forward.score)

    def _chunks(self, num_rows: int, score: Callable[[int, int], NDArray[np.float32]]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for first in range(0, num_rows, len(self._scores)):
            yield first, score(first, min(num_rows - first, len(self._scores)))

    def hidden(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.hidden`: a batch that has some was run op by op."""
        return self._ops.states(batch)

    @property
    def block_layout(self) -> str:
        """See `batch.BlockCopier`."""
        return self._ops.layers.block_layout

    @property
    def block_bytes(self) -> int:
        """See `batch.BlockCopier`."""
        return self._ops.layers.block_bytes

    def copy_out(self, block: int) -> memoryview:
        """See `batch.BlockCopier`."""
        return self._ops.layers.copy_out(block)

    def copy_in(self, block: int, content: memoryview) -> None:
        """See `batch.BlockCopier`."""
        self._ops.layers.copy_in(block, content)


def _weights_of(model: Transformer | MappedModel, vocab_size: int) -> tuple[PackedWeights | StoredWeights, Angles]:
    """A model's packed weights, of the output matrix the first rows, and its angles."""
    if isinstance(model, MappedModel):
        return model.weights.with_vocabulary(vocab_size), model.angles
    from herd.engine.packed.weights import pack_model
    from herd.kernels.rope import RopeTable
    from herd.model.rope import rope_frequencies

    return pack_model(model, vocab_size), RopeTable(rope_frequencies(model.config))
