"""Cross entropy of rows of logits for GPUs, a program a row: losses, and the logits' gradient in their place.

    log Z = m + log sum_v exp(x_v - m);  loss = log Z - x_target;  dx_v = exp(x_v - log Z) (1 + 2 z log Z) - [v = target]

The first pass over a row finds log Z online, block by block, in float32; the second writes the gradient over the logits, rounded once to
their dtype. A row that does not count has loss, log Z and gradient 0, whatever its logits are. For training alone, so the batch law of the
serving kernels is not asked of it; it holds all the same, since a row meets no other. Shapes: M rows, V vocabulary.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownMemberType=false

from __future__ import annotations

from contextlib import nullcontext
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from herd.kernels.triton.numbers import narrow
from herd.kernels.triton.runtime import options, require

_MOST, _LEAST = 8192, 128
"""Logits of a block: at most so many, which 16 warps hold 16 a thread."""


@triton.jit
@no_type_check
def _cross_entropy(
    logits, targets, losses, log_zs, stride, ignore, z_loss,
    V: tl.constexpr, BLOCK: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * stride
    kind: tl.constexpr = logits.dtype.element_ty
    target = tl.load(targets + row)
    counted = target != ignore
    log_z = 0.0
    loss = 0.0
    if counted:
        # Read before the second pass writes over it; the sums of the first make every thread wait for it.
        picked = tl.load(base + target).to(tl.float32)
        highest = -float("inf")
        total = 0.0
        for start in range(0, V, BLOCK):
            i = start + tl.arange(0, BLOCK)
            x = tl.load(base + i, mask=i < V, other=-float("inf")).to(tl.float32)
            higher = tl.maximum(highest, tl.max(x, 0))
            total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
            highest = higher
        log_z = highest + tl.log(total)
        loss = log_z - picked
        if GRADIENT:
            factor = 1.0 + 2.0 * z_loss * log_z
            for start in range(0, V, BLOCK):
                i = start + tl.arange(0, BLOCK)
                x = tl.load(base + i, mask=i < V, other=-float("inf")).to(tl.float32)
                grad = tl.exp(x - log_z) * factor - (i == target).to(tl.float32)
                tl.store(base + i, narrow(grad, kind), mask=i < V)
    elif GRADIENT:
        for start in range(0, V, BLOCK):
            i = start + tl.arange(0, BLOCK)
            tl.store(base + i, narrow(tl.zeros((BLOCK,), tl.float32), kind), mask=i < V)
    tl.store(losses + row, loss)
    tl.store(log_zs + row, log_z)


def cross_entropy(logits_MV: Tensor, targets_M: Tensor, *, ignore: int, z_loss: float = 0.0, gradient: bool) -> tuple[Tensor, Tensor]:
    """Losses and log Z of every row, float32; with `gradient` the logits become their gradient.

    Args:
        logits_MV: rows that lie one after the other; of any floating dtype.
        targets_M: int64, `ignore` where a row does not count.
        ignore: the target of a row that does not count.
        z_loss: weight of log Z squared in the gradient; the losses are without it.
        gradient: whether to write the gradient of sum(losses + z_loss log Z^2) over the logits.
    """
    require(logits_MV.device)
    rows, width = logits_MV.shape
    losses, log_zs = (torch.empty(rows, dtype=torch.float32, device=logits_MV.device) for _ in range(2))
    if not rows:
        return losses, log_zs
    block = max(_LEAST, min(_MOST, triton.next_power_of_2(width)))
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(logits_MV.device) if logits_MV.is_cuda else nullcontext():
        _cross_entropy[(rows,)](
            logits_MV, targets_M, losses, log_zs, logits_MV.stride(0), ignore, float(z_loss),
            V=width, BLOCK=block, GRADIENT=gradient, **options(max(1, block // 512)),
        )  # fmt: skip
    return losses, log_zs
