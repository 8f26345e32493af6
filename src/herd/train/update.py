"""The end of a step: clip the gradient, ask whether the step may be made, update, clear. Every objective's step ends here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from herd.train.config import StageConfig

Accept = Callable[[float, float], bool]
"""Asked with the loss and the gradient norm, before the update, whether it is to be made."""


def apply_update(
    model: nn.Module, optimizer: torch.optim.Optimizer, stage: StageConfig, *, lr: float, loss: float, accept: Accept | None = None
) -> tuple[float, bool]:
    """Clip and update; returns the gradient norm before clipping and whether the update was made. Gradients are cleared."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    by_norm = stage.grad_clip > 0 and stage.clip == "norm"
    grad_norm = float(torch.nn.utils.clip_grad_norm_(weights, stage.grad_clip if by_norm else float("inf")))
    if stage.grad_clip > 0 and stage.clip == "value":
        torch.nn.utils.clip_grad_value_(weights, stage.grad_clip)
    return grad_norm, update_if(accept, optimizer, lr=lr, loss=loss, grad_norm=grad_norm)


def update_if(accept: Accept | None, optimizer: torch.optim.Optimizer, *, lr: float, loss: float, grad_norm: float) -> bool:
    """Update by the gradients as they are, where that is accepted, and clear them; whether the update was made."""
    applied = accept is None or accept(loss, grad_norm)
    if applied:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return applied
