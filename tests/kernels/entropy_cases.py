"""Rows of logits, and what torch makes of them: what the cross entropies in C and in Triton are held to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from herd.train.loss import IGNORE


def logits_of(rows: int, width: int, dtype: torch.dtype, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits, and targets of which every third does not count."""
    generator = torch.Generator().manual_seed(rows * width)
    targets = torch.randint(0, width, (rows,), generator=generator)
    targets[::3] = IGNORE
    return (scale * torch.randn(rows, width, generator=generator)).to(dtype), targets


def torchs(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, log Z of what counts, and the gradient of their sum, computed in float64 from the same logits, as float32."""
    leaf = logits.double().requires_grad_()
    log_z = leaf.logsumexp(-1) * (targets != IGNORE)
    losses = F.cross_entropy(leaf, targets, ignore_index=IGNORE, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum() + z_loss * log_z.square().sum(), leaf)
    return losses.detach().float(), log_z.detach().float(), gradient.float()
