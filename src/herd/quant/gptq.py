"""GPTQ: columns are rounded one after the other, and what each loses is made good by those that are still to come.

With H = X^T X over the inputs of calibration and U the upper Cholesky factor of its inverse: for column k, q = round(w_k), e = (w_k - q) /
U_kk, and w_j -= e U_kj for j > k. GPTQ (arXiv 2210.17323), algorithm 1. Act-order takes the columns of largest H_kk first; the groups stay
where they are (static), so that files need no order of columns. Without it a group's levels are taken when its first column comes up.
Shapes: N outputs, K inputs, G groups.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from herd.checkpoint.quant_scheme import MatrixScheme
from herd.kernels.quantised import QuantWeight
from herd.quant.rounding import Grid, assemble, codes_of, grid_of

DAMPING = 0.01
_BLOCK = 128


def inverse_factor(hessian_KK: Float[Tensor, "K K"], damping: float = DAMPING) -> Float[Tensor, "K K"]:
    """U: upper triangular with U^T U = H^-1, H damped by a share of its mean diagonal; damped more while it has no factor."""
    wide = hessian_KK.double()
    mean = float(wide.diagonal().mean())
    share = damping
    while True:
        damped = wide + torch.eye(len(wide), dtype=torch.float64, device=wide.device) * (share * mean if mean > 0 else 1.0)
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            inverse, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if int(info) == 0:
                return inverse
        share *= 10


def gptq(weight_NK: Float[Tensor, "N K"], hessian_KK: Float[Tensor, "K K"], scheme: MatrixScheme, *, act_order: bool = True) -> QuantWeight:
    """A matrix of int8 or int4, rounded with regard to its inputs."""
    weight, hessian = weight_NK.double().clone(), hessian_KK.double()
    n, k = weight.shape
    size, importance = scheme.group or k, hessian.diagonal().clone()
    dead = importance == 0
    weight[:, dead] = 0.0
    static = act_order or not scheme.group
    grid = grid_of(weight.float(), scheme, importance.float())
    order = torch.argsort(importance, descending=True, stable=True) if act_order else torch.arange(k, device=weight.device)
    weight, factor = weight[:, order], inverse_factor(hessian[order][:, order])
    codes = torch.zeros(n, k, dtype=torch.float64, device=weight.device)
    scales, zeros = grid.scales.double(), None if grid.zeros is None else grid.zeros.double()
    for begin in range(0, k, _BLOCK):
        end = min(begin + _BLOCK, k)
        errors = torch.zeros(n, end - begin, dtype=torch.float64, device=weight.device)
        for column in range(begin, end):
            group = int(order[column]) // size
            if not static and column % size == 0:
                # Its columns in this block are up to date; those of later blocks once the block is done, so groups within a block are exact.
                fresh = _refresh(weight, factor, errors, begin, column, size, scheme, importance)
                scales[:, group] = fresh.scales[:, 0].double()
                if zeros is not None and fresh.zeros is not None:
                    zeros[:, group] = fresh.zeros[:, 0].double()
            scale, zero = scales[:, group], None if zeros is None else zeros[:, group]
            value = weight[:, column]
            code = codes_of(value, scale, zero, scheme)
            codes[:, column] = code
            error = (value - (code - (0.0 if zero is None else zero)) * scale) / factor[column, column]
            errors[:, column - begin] = error
            weight[:, column + 1 : end] -= error[:, None] * factor[column, column + 1 : end]
        weight[:, end:] -= errors @ factor[begin:end, end:]
    restored = torch.empty_like(codes)
    restored[:, order] = codes
    return assemble(restored, Grid(scales=scales.float(), zeros=None if zeros is None else zeros.float()), scheme)


def _refresh(
    weight: Tensor, factor: Tensor, errors: Tensor, begin: int, column: int, size: int, scheme: MatrixScheme, importance: Tensor
) -> Grid:
    """The levels of the group that begins at `column`, with what the block's earlier columns owe to columns behind the block."""
    end = column + size
    values = weight[:, column:end].clone()
    behind = max(begin + errors.shape[1] - column, 0)
    if behind < size:
        done = column - begin
        values[:, behind:] -= errors[:, :done] @ factor[begin:column, column + behind : end]
    one = MatrixScheme(kind=scheme.kind, group=size, symmetric=scheme.symmetric, layout=scheme.layout)
    return grid_of(values.float(), one, importance[column:end].float())
