"""Cross entropy of the counted tokens: pre-training, and fine-tuning where only answers count. Unit: tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from herd.model.transformer import Transformer
from herd.train.batch import Columns, to_tensors
from herd.train.loss import IGNORE, cross_entropy_sum
from herd.train.objectives.forward import hidden_states
from herd.train.objectives.objective import Objective, Shared, Sums


def num_targets(columns: Columns) -> int:
    """Counted tokens that have one before them in the row."""
    return int(columns["counts"][:, 1:].sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class NextToken(Objective):
    """`z_loss` times the square of the log of the softmax's normaliser is added to each token's loss: it keeps logits from drifting."""

    z_loss: float = 0.0

    def units(self, columns: Columns) -> dict[str, int]:
        """The counted tokens."""
        return {"tokens": num_targets(columns)}

    def prepare(self, model: Transformer, parts: Sequence[Columns], dtype: torch.dtype) -> Shared:
        """Nothing."""
        return {}

    def sums(self, model: Transformer, columns: Columns, dtype: torch.dtype, shared: Shared) -> Sums:
        """The sum of the tokens' losses, in nats."""
        return Sums(terms={"tokens": next_token_sum(model, columns, dtype, z_loss=self.z_loss)})


def next_token_sum(model: Transformer, columns: Columns, dtype: torch.dtype, *, z_loss: float = 0.0) -> Tensor:
    """Sum of cross entropies, in nats, of the counted tokens of rows [B, T+1]."""
    tensors = to_tensors(columns, model.device)
    targets = torch.where(tensors["counts"][:, 1:], tensors["tokens"][:, 1:], IGNORE)
    hidden = hidden_states(model, tensors, dtype)
    return cross_entropy_sum(hidden.flatten(0, 1), model.head_weight, targets.flatten(), z_loss=z_loss)
