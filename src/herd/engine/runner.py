"""The CPU runner: embedding, packed layers over a paged cache and scores, by the kernels of `herd.kernels`: in one call of C where it can,
else op by op (`layers`).

Built from a `Transformer`'s config and parameters; rounding points are the model's, and a parity test holds the two together. Everything is
allocated here, once: packed weights, cache, activations, scores. A row's scores are the same whatever else is in the batch (kernels' law).
Shapes: T tokens, D model dim, R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from herd.engine import block_copy
from herd.engine.batch import RaggedBatch
from herd.engine.layers import PackedLayers, packs, stack_packs
from herd.engine.packed.weights import PackedModel, pack_model
from herd.kernels import dispatch, draw
from herd.kernels.forward import Forward
from herd.kernels.int8_rows import cache_dtype_of
from herd.kernels.linear import linear
from herd.kernels.norm import rms_norm
from herd.model.quant_linear import quantised_matrices
from herd.model.transformer import Transformer


def runs_in_c(model: Transformer) -> bool:
    """Whether every quantised matrix of a model has a kernel here; a model with one that has none computes by itself."""
    if isinstance(model, PackedModel) or not quantised_matrices(model):
        return True
    if dispatch.native(model.device, model.dtype) is None:
        return False
    head = model.lm_head
    return all(packs(block) for block in model.model.layers) and (head is None or stack_packs((head,)))


class CpuRunner:
    """A `Runner` on the CPU. `vocab_size` leaves rows of the output matrix out that no token stands for."""

    draw_rows = staticmethod(draw.draw)

    def __init__(
        self,
        model: Transformer,
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
        packed = pack_model(model, self.vocab_size)
        self._layers = PackedLayers(
            config,
            packed.blocks,
            dtype=model.dtype,
            cache_dtype=cache_dtype_of(cache_dtype, model.dtype),
            num_blocks=num_blocks,
            block_size=block_size,
            max_tokens=max_tokens,
        )
        caches = (self._layers.keys, self._layers.values)
        self.block_layout, self.block_bytes = block_copy.block_layout(caches), block_copy.block_bytes(caches)
        self._norm, self._head, self._embedding = packed.norm, packed.head, packed.embedding
        self._scores = torch.empty(score_rows, self.vocab_size, dtype=torch.float32)
        self._states = torch.empty(score_rows, config.hidden_size, dtype=torch.float32)
        self._forward = self._whole()

    def _whole(self) -> Forward | None:
        """All blocks in one call, where C knows the shapes."""
        config = self.config
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        shape = {"num_heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        if not Forward.fits(self._head, self._embedding, **shape, cache_dtype=self._layers.keys.dtype):
            return None
        return Forward(
            self._layers.blocks,
            norm=self._norm,
            head=self._head,
            embedding=self._embedding,
            rope=self._layers.rope,
            num_heads=heads,
            eps=config.rms_norm_eps,
            arenas=self._layers.arenas,
            scores=self._scores,
        )

    def run(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.run`: the batch has been computed when this returns."""
        self._layers.copy(batch.copies)
        if self._forward is None or not self._forward.available or len(batch.hidden_E):
            return self._by_ops(batch)
        places = {"first_S": batch.first_S, "starts": batch.starts, "block_table_SW": batch.block_table_SW}
        self._forward(batch.tokens_T, rows_R=batch.rows_R, **places)
        return self._chunks(len(batch.rows_R), self._forward.score)

    @torch.inference_mode()
    def _by_ops(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        hidden = self._hidden(batch)[torch.from_numpy(batch.rows_R)]
        normed_RD = rms_norm(hidden, self._norm, self.config.rms_norm_eps)

        @torch.inference_mode()
        def score(first: int, count: int) -> NDArray[np.float32]:
            return linear(normed_RD[first : first + count], self._head, out=self._scores[:count]).numpy()

        return self._chunks(len(normed_RD), score)

    def _chunks(self, num_rows: int, score: Callable[[int, int], NDArray[np.float32]]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for first in range(0, num_rows, len(self._scores)):
            yield first, score(first, min(num_rows - first, len(self._scores)))

    def hidden(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.hidden`: the residual stream of the last batch, run op by op, is still in its arena."""
        rows = torch.from_numpy(batch.hidden_E)
        for first in range(0, len(rows), len(self._states)):
            with torch.inference_mode():
                part = self._layers.residual[rows[first : first + len(self._states)]]
                states = self._states[: len(part)].copy_(rms_norm(part, self._norm, self.config.rms_norm_eps))
            yield first, states.numpy()

    def copy_out(self, block: int) -> memoryview:
        """See `batch.BlockCopier`."""
        return block_copy.copy_out((self._layers.keys, self._layers.values), block)

    def copy_in(self, block: int, content: memoryview) -> None:
        """See `batch.BlockCopier`."""
        block_copy.copy_in((self._layers.keys, self._layers.values), block, content)

    def _hidden(self, batch: RaggedBatch) -> Tensor:
        """The residual stream after the last block, [T, D], in the arena."""
        plan = self._layers.plan(batch)
        x_TD = self._layers.residual[: plan.num_tokens]
        x_TD.copy_(self._embed(torch.from_numpy(batch.tokens_T).long()))
        return self._layers.run(x_TD, plan)

    def _embed(self, tokens_T: Tensor) -> Tensor:
        return self._head.rows(tokens_T) if self._embedding is None else self._embedding[tokens_T]
