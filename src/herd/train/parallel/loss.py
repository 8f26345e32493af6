"""Cross entropy over a vocabulary that is cut over tensor parallel ranks; the logits of one chunk, and of the rank's rows, exist at once.

    log Z = log sum_r exp(log Z_r),   loss = log Z - logit of the target, which one rank has

Two numbers a token are exchanged, never logits. Gradients of the hidden states are this rank's part of a sum, which the caller adds up
(`tensor.gather_sequence`). The loop over chunks, and what the words mean, is `train.loss`. Shapes: N tokens, D model dim, V rows here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from herd.train.loss import IGNORE, cross_entropy_sum


class _RankRows:
    """The rows of this rank, one equal slice after the other in the order of ranks."""

    def __init__(self, group: Any, num_rows: int) -> None:
        self._group, self._num_rows, self._first = group, num_rows, dist.get_rank(group) * num_rows

    def places(self, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Rows counted from this rank's first; a target of another rank has any."""
        places = targets_N - self._first
        here = (targets_N != IGNORE) & (places >= 0) & (places < self._num_rows)
        return places.clamp(0, self._num_rows - 1), here

    def whole(self, log_z_N: Tensor, picked_N: Tensor) -> tuple[Tensor, Tensor]:
        """Exchanged between the ranks."""
        highest = log_z_N.clone()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=self._group)
        both = torch.stack(((log_z_N - highest).exp(), picked_N))
        dist.all_reduce(both, group=self._group)
        return highest + both[0].log(), both[1]


def split_cross_entropy_sum(
    hidden_ND: Float[Tensor, "N D"],
    weight_VD: Float[Tensor, "V D"],
    targets_N: Int[Tensor, "N"],
    *,
    group: Any = None,
    chunk: int | None = None,
    z_loss: float = 0.0,
    out_N: Float[Tensor, "N"] | None = None,
) -> Float[Tensor, ""]:
    """`train.loss.cross_entropy_sum` where each rank of `group` has its rows of the output matrix; without a group that function itself."""
    rows = None if group is None else _RankRows(group, weight_VD.shape[0])
    return cross_entropy_sum(hidden_ND, weight_VD, targets_N, chunk=chunk, z_loss=z_loss, out_N=out_N, vocabulary=rows)
