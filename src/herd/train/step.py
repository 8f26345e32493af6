"""One optimiser step over a packed batch: the law of the loss lives here.

The loss is the sum of the counted tokens' cross entropies divided by their number over the whole batch, however it is cut into micro
batches. Compute runs in the stage's dtype by autocast over float32 masters; sums, norms and the optimiser are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from herd.model.attention import MaskedCore, document_mask
from herd.model.transformer import Transformer
from herd.train.config import StageConfig
from herd.train.loss import IGNORE, cross_entropy_sum
from herd.train.update import Accept, apply_update

Batch = tuple[NDArray[np.int32], NDArray[np.int16], NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one step measured: mean loss in nats over the counted tokens, their number, and the gradient norm before clipping.

    `applied` is false where the update was refused.
    """

    loss: float
    num_counted: int
    grad_norm: float
    applied: bool = True


def some_rows(batch: Batch, first: int, size: int) -> Batch:
    """Rows first..first+size-1 of a batch."""
    tokens, documents, counts = batch
    return tokens[first : first + size], documents[first : first + size], counts[first : first + size]


def batch_loss_sum(model: Transformer, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Sum of cross entropies, in nats, of the counted tokens of a batch of rows [B, T+1]."""
    tokens, documents, counts = (torch.from_numpy(np.ascontiguousarray(part)).to(model.device) for part in batch)
    tokens = tokens.long()
    targets = torch.where(counts[:, 1:], tokens[:, 1:], IGNORE)
    core = MaskedCore(document_mask(documents[:, :-1]))
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        hidden = model.hidden(tokens[:, :-1], core=core)
    return cross_entropy_sum(hidden.flatten(0, 1).to(dtype), model.head_weight, targets.flatten())


def train_step(
    model: Transformer, optimizer: torch.optim.Optimizer, batch: Batch, stage: StageConfig, *, lr: float, accept: Accept | None = None
) -> StepResult:
    """Forward, backward, clip, update. Gradients are cleared before returning."""
    dtype = getattr(torch, stage.compute_dtype)
    num_counted = int(batch[2][:, 1:].sum())
    divisor = max(1, num_counted)
    total = 0.0
    for start in range(0, stage.batch_size, stage.micro_batch_size):
        loss_sum = batch_loss_sum(model, some_rows(batch, start, stage.micro_batch_size), dtype)
        (loss_sum / divisor).backward()
        total += loss_sum.item()
    grad_norm, applied = apply_update(model, optimizer, stage, lr=lr, loss=total / divisor, accept=accept)
    return StepResult(loss=total / divisor, num_counted=num_counted, grad_norm=grad_norm, applied=applied)
