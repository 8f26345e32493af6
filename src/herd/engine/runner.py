"""The CPU runner: embedding, packed layers over a paged cache, scores.

Built from a `Transformer`'s config and parameters; rounding points are the model's, and a parity test holds the two together. Everything is
allocated here, once: packed weights, cache, activations, scores. A row's scores are the same whatever else is in the batch (kernels' law).
Shapes: T tokens, D model dim, R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from herd.engine.batch import RaggedBatch
from herd.engine.layers import PackedLayers
from herd.kernels.linear import linear, pack_linear
from herd.kernels.norm import rms_norm
from herd.model.transformer import Transformer


class CpuRunner:
    """A `Runner` on the CPU. `vocab_size` leaves rows of the output matrix out that no token stands for."""

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
        self.vocab_size = min(vocab_size or config.vocab_size, config.vocab_size)
        self._layers = PackedLayers(
            config,
            model.model.layers,
            dtype=model.dtype,
            cache_dtype=getattr(torch, cache_dtype) if cache_dtype else model.dtype,
            num_blocks=num_blocks,
            block_size=block_size,
            max_tokens=max_tokens,
        )
        self._norm = model.model.norm.weight.detach()
        self._head = pack_linear(model.head_weight[: self.vocab_size])
        self._embedding = None if config.tie_word_embeddings else model.model.embed_tokens.weight.detach()
        self._scores = torch.empty(score_rows, self.vocab_size, dtype=torch.float32)
        self._states = torch.empty(score_rows, config.hidden_size, dtype=torch.float32)

    def run(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.run`: the batch has been computed when this returns."""
        with torch.inference_mode():
            self._layers.copy(batch.copies)
            hidden = self._hidden(batch)[torch.from_numpy(batch.rows_R)]
            return self._score(rms_norm(hidden, self._norm, self.config.rms_norm_eps))

    def hidden(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.hidden`: the residual stream of the last batch is still in its arena."""
        rows = torch.from_numpy(batch.hidden_E)
        for first in range(0, len(rows), len(self._states)):
            with torch.inference_mode():
                part = self._layers.residual[rows[first : first + len(self._states)]]
                states = self._states[: len(part)].copy_(rms_norm(part, self._norm, self.config.rms_norm_eps))
            yield first, states.numpy()

    def _hidden(self, batch: RaggedBatch) -> Tensor:
        """The residual stream after the last block, [T, D], in the arena."""
        plan = self._layers.plan(batch)
        x_TD = self._layers.residual[: plan.num_tokens]
        x_TD.copy_(self._embed(torch.from_numpy(batch.tokens_T).long()))
        return self._layers.run(x_TD, plan)

    def _embed(self, tokens_T: Tensor) -> Tensor:
        return self._head.rows(tokens_T) if self._embedding is None else self._embedding[tokens_T]

    def _score(self, normed_RD: Tensor) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for first in range(0, len(normed_RD), len(self._scores)):
            with torch.inference_mode():
                rows = normed_RD[first : first + len(self._scores)]
                scores = linear(rows, self._head, out=self._scores[: len(rows)])
            yield first, scores.numpy()
