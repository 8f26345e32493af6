"""GPTQ: columns are rounded one after the other, and what each loses is made good by those that are still to come.

With H = X^T X over the inputs of calibration and U the upper Cholesky factor of its inverse: for column k, q = round(w_k), e = (w_k - q) /
U_kk, and w_j -= e U_kj for j > k. GPTQ (arXiv 2210.17323), algorithm 1. Act-order takes the columns of largest H_kk first; the groups stay
where they are (static), so that files need no order of columns. Without it a group's levels are taken when its first column comes up.
Shapes: N outputs, K inputs, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    hessian = hessian_KK.double()
    n, k = weight_NK.shape
    size, importance = scheme.group or k, hessian.diagonal().clone()
    kept = torch.where(importance == 0, 0.0, weight_NK.float())
    grid = grid_of(kept, scheme, importance.float())
    order = torch.argsort(importance, descending=True, stable=True) if act_order else torch.arange(k)
    # Inputs come first from here on, so that one of them is contiguous.
    state = _State(
        left_KN=kept[:, order].t().double().contiguous(),
        codes_KN=torch.zeros(k, n, dtype=torch.float64),
        factor_KK=inverse_factor(hessian[order][:, order]),
        scales_GN=grid.scales.t().double().contiguous(),
        zeros_GN=None if grid.zeros is None else grid.zeros.t().double().contiguous(),
    )
    for begin in range(0, k, _BLOCK):
        end = min(begin + _BLOCK, k)
        errors = torch.zeros(end - begin, n, dtype=torch.float64)
        for place in range(begin, end):
            if not act_order and scheme.group and place % size == 0:
                state.refresh(errors[: place - begin], begin, place, scheme, importance[place : place + size].float())
            errors[place - begin] = state.round(place, int(order[place]) // size, end, scheme)
        state.left_KN[end:] -= state.factor_KK[begin:end, end:].t() @ errors
    restored = torch.empty_like(state.codes_KN)
    restored[order] = state.codes_KN
    zeros = None if state.zeros_GN is None else state.zeros_GN.t().float().contiguous()
    return assemble(restored.t().contiguous(), Grid(scales=state.scales_GN.t().float().contiguous(), zeros=zeros), scheme)


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """What is left of the weights, the codes so far, the factor, and the levels; inputs in the order in which they are rounded."""

    left_KN: Tensor
    codes_KN: Tensor
    factor_KK: Tensor
    scales_GN: Tensor
    zeros_GN: Tensor | None

    def round(self, place: int, group: int, end: int, scheme: MatrixScheme) -> Tensor:
        """Round one input's weights and pass the error on to the rest of the block; returns the error over the factor's diagonal."""
        value, scale = self.left_KN[place], self.scales_GN[group]
        zero = None if self.zeros_GN is None else self.zeros_GN[group]
        code = codes_of(value, scale, zero, scheme)
        self.codes_KN[place] = code
        level = (code if zero is None else code - zero) * scale
        error = (value - level) / self.factor_KK[place, place]
        self.left_KN[place + 1 : end] -= self.factor_KK[place, place + 1 : end, None] * error
        return error

    def refresh(self, errors: Tensor, begin: int, place: int, scheme: MatrixScheme, importance: Tensor) -> None:
        """The levels of the group that begins here, by what is left of it; what lies behind the block lacks the block's errors so far."""
        size = len(importance)
        values = self.left_KN[place : place + size].clone()
        behind = min(max(begin + _BLOCK - place, 0), size)
        values[behind:] -= self.factor_KK[begin:place, place + behind : place + size].t() @ errors
        grid = grid_of(values.t().float(), replace(scheme, group=size), importance)
        self.scales_GN[place // size] = grid.scales[:, 0].double()
        if self.zeros_GN is not None and grid.zeros is not None:
            self.zeros_GN[place // size] = grid.zeros[:, 0].double()
