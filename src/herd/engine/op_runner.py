"""A step op by op, in torch's hands: what `runner.CpuRunner` turns to where its one call of C cannot run, and for hidden states.

Computes over the runner's own memory: cache, activations, scores. Shapes: T tokens, D model dim, R rows, E rows for states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from herd.engine.arenas import Arenas
from herd.engine.batch import RaggedBatch
from herd.engine.layers import PackedLayers
from herd.engine.packed.weights import PackedWeights
from herd.kernels.buffer import Buffer
from herd.kernels.linear import linear
from herd.kernels.norm import rms_norm
from herd.kernels.rope import RopeTable
from herd.model.config import ModelConfig


class OpRunner:
    """The ops over a model's packed weights."""

    def __init__(
        self, config: ModelConfig, weights: PackedWeights, arenas: Arenas, scores: Buffer, *, rope: RopeTable | None = None
    ) -> None:
        self.layers = PackedLayers(config, weights.blocks, arenas, rope=rope)
        self._weights, self._eps = weights, config.rms_norm_eps
        self._scores = scores.tensor()
        self._states = torch.empty(len(scores), config.hidden_size, dtype=torch.float32)

    @torch.inference_mode()
    def normed_rows(self, batch: RaggedBatch) -> Tensor:
        """Run a batch; the final norm of the rows whose scores are wanted, [R, D]."""
        hidden_TD = self._hidden(batch)
        return rms_norm(hidden_TD[torch.from_numpy(batch.rows_R)], self._weights.norm, self._eps)

    @torch.inference_mode()
    def score(self, normed_RD: Tensor) -> NDArray[np.float32]:
        """Scores [R, V] of rows of `normed_rows`, no more than the arena holds, in it."""
        return linear(normed_RD, self._weights.head, out=self._scores[: len(normed_RD)]).numpy()

    def states(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.hidden`: the residual stream of the batch that was run last is still in its arena."""
        rows = torch.from_numpy(batch.hidden_E)
        for first in range(0, len(rows), len(self._states)):
            with torch.inference_mode():
                part = self.layers.residual[rows[first : first + len(self._states)]]
                states = self._states[: len(part)].copy_(rms_norm(part, self._weights.norm, self._eps))
            yield first, states.numpy()

    def _hidden(self, batch: RaggedBatch) -> Tensor:
        """The residual stream after the last block, [T, D], in the arena."""
        plan = self.layers.plan(batch)
        x_TD = self.layers.residual[: plan.num_tokens]
        x_TD.copy_(self._embed(torch.from_numpy(batch.tokens_T).long()))
        return self.layers.run(x_TD, plan)

    def _embed(self, tokens_T: Tensor) -> Tensor:
        embedding = self._weights.embedding
        return self._weights.head.rows(tokens_T) if embedding is None else embedding[tokens_T]
