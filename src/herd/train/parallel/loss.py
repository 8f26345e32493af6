"""Cross entropy over a vocabulary that is cut over tensor parallel ranks; the logits of one chunk, and of the rank's rows, exist at once.

    log Z = log sum_r exp(log Z_r),   loss = log Z - logit of the target, which one rank has

Two numbers a token are exchanged, never logits. Gradients of the hidden states are this rank's part of a sum, which the caller adds up
(`tensor.gather_sequence`). The one-rank form, and what the words mean, is `train.loss`. Shapes: N tokens, D model dim, V rows of this rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from herd.train.loss import IGNORE, cross_entropy_sum


class _SplitCrossEntropy(torch.autograd.Function):
    """Sum of -log p(target); the finished gradients of hidden states and of the rank's rows are saved."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        group: Any,
        chunk: int,
        needs_grad: bool,
        z_loss: float,
        out: Tensor | None,
    ) -> Tensor:
        rows, first = weight.shape[0], dist.get_rank(group) * weight.shape[0]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        narrow = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needs_grad else None
        for start in range(0, hidden.shape[0], chunk):
            part, target = hidden[start : start + chunk], targets[start : start + chunk]
            logits = (part @ narrow.t()).float()
            counted = target != IGNORE
            mine = counted & (target >= first) & (target < first + rows)
            index = (target - first).clamp(0, rows - 1)[:, None]
            log_z, picked = _over_ranks(logits, index, mine, group)
            losses = (log_z - picked) * counted
            total += losses.sum()
            if out is not None:
                out[start : start + chunk] = losses
            if z_loss:
                total += z_loss * (log_z.square() * counted).sum()
            if grad_hidden is not None and grad_weight is not None:
                grad = logits.sub_(log_z[:, None]).exp_()
                if z_loss:
                    grad *= 1 + 2 * z_loss * log_z[:, None]
                grad.scatter_add_(1, index, -mine[:, None].to(grad.dtype))
                grad = grad.mul_(counted[:, None]).to(hidden.dtype)
                grad_hidden[start : start + chunk] = grad @ narrow
                grad_weight += grad.t() @ part
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0]
        return grad_hidden * scale.to(grad_hidden.dtype), grad_weight * scale, *[None] * 6


def _over_ranks(logits: Tensor, index: Tensor, mine: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """The log of the whole normaliser and the target's logit, of every token."""
    here = logits.logsumexp(-1)
    highest = here.clone()
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    both = torch.stack(((here - highest).exp(), logits.gather(1, index)[:, 0] * mine))
    dist.all_reduce(both, group=group)
    return highest + both[0].log(), both[1]


def split_cross_entropy_sum(
    hidden_ND: Float[Tensor, "N D"],
    weight_VD: Float[Tensor, "V D"],
    targets_N: Int[Tensor, "N"],
    *,
    group: Any = None,
    chunk: int = 512,
    z_loss: float = 0.0,
    out_N: Float[Tensor, "N"] | None = None,
) -> Float[Tensor, ""]:
    """`train.loss.cross_entropy_sum` where each rank of `group` has its rows of the output matrix; without a group that function itself."""
    if group is None:
        return cross_entropy_sum(hidden_ND, weight_VD, targets_N, chunk=chunk, z_loss=z_loss, out_N=out_N)
    needs_grad = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    return _SplitCrossEntropy.apply(hidden_ND, weight_VD, targets_N, group, chunk, needs_grad, z_loss, out_N)  # pyright: ignore[reportReturnType]
