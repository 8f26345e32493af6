"""cross_entropy: losses of rows of logits, and the logits' gradient in their place, as `triton.cross_entropy` does it on a GPU.

    log Z = m + log sum_v exp(x_v - m);  loss = log Z - x_target;  dx_v = exp(x_v - log Z) (1 + 2 z log Z) - [v = target]

Sums are float32, and the gradient is rounded once to the dtype of the logits. Registered with torch, so that a step can be traced with
tensors that hold nothing (`train --simulate`). Shapes: M rows, V vocabulary.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from herd.kernels import dispatch, library
from herd.kernels.checks import check_apart, check_rows, refuse, row_stride


def cross_entropy(
    logits_MV: Float[Tensor, "M V"], targets_M: Int[Tensor, "M"], *, ignore: int, z_loss: float = 0.0, gradient: bool
) -> tuple[Float[Tensor, "M"], Float[Tensor, "M"]]:
    """Losses and log Z of every row, in nats, float32, both 0 where a row does not count; with `gradient` the logits become their gradient.

    Args:
        logits_MV: float32 or bfloat16 where C is to run.
        targets_M: int64, `ignore` where a row does not count.
        ignore: the target of a row that does not count.
        z_loss: weight of log Z squared in the gradient; the losses are without it.
        gradient: whether to write the gradient of sum(losses + z_loss log Z^2) over the logits.

    Raises ConfigError for a shape, dtype or stride that does not fit, and for a target outside of the vocabulary.
    """
    rows, width = logits_MV.shape
    check_rows("logits", logits_MV, (rows, width), logits_MV.dtype, logits_MV.device)
    check_apart("logits", logits_MV)
    if targets_M.shape != (rows,) or targets_M.dtype != torch.int64:
        raise refuse(f"targets are {targets_M.dtype} {list(targets_M.shape)}, expected torch.int64 [{rows}]", "give one a row")
    return _cross_entropy(logits_MV, targets_M.contiguous(), ignore, z_loss, gradient)


@torch.library.custom_op(
    "herd::cross_entropy",
    mutates_args=("logits",),
    schema="(Tensor(a!) logits, Tensor targets, int ignore, float z_loss, bool gradient) -> (Tensor, Tensor)",
)
def _cross_entropy(logits: Tensor, targets: Tensor, ignore: int, z_loss: float, gradient: bool) -> tuple[Tensor, Tensor]:
    rows, width = logits.shape
    outside = (targets != ignore) & ((targets < 0) | (targets >= width))
    if bool(outside.any()):
        raise refuse(f"target {int(targets[outside][0])} is outside of a vocabulary of {width}", f"give 0 to {width - 1}, or {ignore}")
    found = dispatch.native(logits.device, logits.dtype)
    if found is None:
        return reference(logits, targets, ignore=ignore, z_loss=z_loss, gradient=gradient)
    losses, log_zs = (torch.empty(rows, dtype=torch.float32) for _ in range(2))
    at = (logits.data_ptr(), row_stride(logits), rows, width, library.code(logits.dtype))
    library.raise_for(found.cross_entropy(*at, targets.data_ptr(), ignore, z_loss, int(gradient), losses.data_ptr(), log_zs.data_ptr()))
    return losses, log_zs


@_cross_entropy.register_fake
def _(logits: Tensor, targets: Tensor, ignore: int, z_loss: float, gradient: bool) -> tuple[Tensor, Tensor]:
    losses, log_zs = (torch.empty(len(logits), dtype=torch.float32, device=logits.device) for _ in range(2))
    return losses, log_zs


def reference(logits: Tensor, targets: Tensor, *, ignore: int, z_loss: float, gradient: bool) -> tuple[Tensor, Tensor]:
    """The oracle."""
    counted = targets != ignore
    place = targets.where(counted, 0)[:, None]
    exact = logits.float()
    log_zs = exact.logsumexp(-1).where(counted, 0.0)
    losses = (log_zs - exact.gather(1, place)[:, 0]).where(counted, 0.0)
    if gradient:
        grad = (exact - log_zs[:, None]).exp() * (1 + 2 * z_loss * log_zs[:, None])
        grad.scatter_add_(1, place, -torch.ones_like(place, dtype=grad.dtype))
        logits.copy_(grad.where(counted[:, None], 0.0))
    return losses, log_zs
