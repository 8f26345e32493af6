"""One optimiser step over a batch of packed rows: the law of the loss is carried out here.

The objective gives sums over parts of the batch and says how many units the whole batch holds; the loss is the sums divided by those
counts, however the batch is cut into micro batches. Compute runs in the stage's dtype by autocast over float32 masters; sums, norms and the
optimiser are float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from herd.model.transformer import Transformer
from herd.train.batch import AnyBatch, Batch, as_columns, some_rows
from herd.train.config import StageConfig
from herd.train.objectives.next_token import NextToken, next_token_sum
from herd.train.objectives.objective import Objective, Sums, mean_loss, mean_metrics
from herd.train.precision import compute_dtype
from herd.train.update import Accept, apply_update

__all__ = ["Batch", "StepResult", "batch_loss_sum", "some_rows", "train_step"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one step measured: mean loss over the units (tokens, pairs), their number, the gradient norm before clipping, other metrics.

    `applied` is false where the update was refused.
    """

    loss: float
    num_counted: int
    grad_norm: float
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    applied: bool = True


def batch_loss_sum(model: Transformer, batch: AnyBatch, dtype: torch.dtype) -> Tensor:
    """Sum of cross entropies, in nats, of the counted tokens of a batch of rows [B, T+1]."""
    return next_token_sum(model, as_columns(batch), dtype)


def _backward(sums: Sums, units: dict[str, int]) -> Sums:
    """Add the gradients of one part; returns its sums without their graph."""
    terms = [term / max(1, units[name]) for name, term in sums.terms.items()]
    loss = sum(terms[1:], terms[0])
    if loss.requires_grad:  # rows without a single unit give a constant
        loss.backward()
    return Sums(terms={name: term.detach() for name, term in sums.terms.items()}, metrics=sums.metrics)


def train_step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    batch: AnyBatch,
    stage: StageConfig,
    *,
    lr: float,
    objective: Objective | None = None,
    accept: Accept | None = None,
) -> StepResult:
    """Forward, backward, clip, update. Gradients are cleared before returning. The objective is next-token loss unless given.

    `accept` may refuse the update, by the loss and the gradient norm.
    """
    dtype = compute_dtype(stage, model.device)
    objective = objective or NextToken()
    columns = as_columns(batch)
    units = objective.units(columns)
    parts = [some_rows(columns, start, stage.micro_batch_size) for start in range(0, stage.batch_size, stage.micro_batch_size)]
    with torch.no_grad():
        shared = objective.prepare(model, parts, dtype)
    found = [_backward(objective.sums(model, part, dtype, shared), units) for part in parts]
    loss = mean_loss(found, units)
    grad_norm, applied = apply_update(model, optimizer, stage, lr=lr, loss=loss, accept=accept)
    return StepResult(loss=loss, num_counted=next(iter(units.values())), grad_norm=grad_norm, metrics=mean_metrics(found), applied=applied)
