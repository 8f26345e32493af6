"""RMSNorm: x * rsqrt(mean(x^2) + eps) in float32, cast back, times the weight; the order of cast and product is the model's (model.norm).

`add_rms_norm` adds to the residual stream first, in place, and saves a pass over it. Shapes: M rows, D model dim.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from herd.kernels import dispatch, library, tiles
from herd.kernels.checks import check_apart, check_rows, flat, refuse, require, row_stride


def rms_norm(
    x: Float[Tensor, "*batch D"], weight: Float[Tensor, "D"], eps: float, out: Float[Tensor, "*batch D"] | None = None
) -> Float[Tensor, "*batch D"]:
    """The normalised rows. `out` may be x. Raises ConfigError where a shape, dtype or stride does not fit."""
    return _run(x, None, weight, eps, out)


def add_rms_norm(
    x: Float[Tensor, "*batch D"],
    delta: Float[Tensor, "*batch D"],
    weight: Float[Tensor, "D"],
    eps: float,
    out: Float[Tensor, "*batch D"] | None = None,
) -> Float[Tensor, "*batch D"]:
    """Add delta to x in place; the normalised rows of the sum."""
    require(out is None or out.data_ptr() != x.data_ptr(), "out is x, which keeps the sum", "give out a tensor of its own")
    return _run(x, delta, weight, eps, out)


def _run(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, out: Tensor | None) -> Tensor:
    x_MD = flat("x", x)
    m, d = x_MD.shape
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out_MD = flat("out", out)
    delta_MD = None if delta is None else flat("delta", delta)
    check_rows("x", x_MD, (m, d), x.dtype, x.device)
    check_rows("out", out_MD, (m, d), x.dtype, x.device)
    if delta_MD is not None:
        check_rows("delta", delta_MD, (m, d), x.dtype, x.device)
    check_apart("out", out_MD)
    if delta_MD is not None:
        check_apart("x", x_MD)
    if not eps > 0.0:
        raise refuse(f"eps is {eps}, it must be positive", "Llama 3 uses 1e-5")
    weight = weight if weight.dtype == x.dtype else weight.to(x.dtype)
    check_rows("weight", weight, (d,), x.dtype, x.device)
    found = dispatch.native(x.device, x.dtype)
    if found is None:
        if delta_MD is not None:
            x_MD += delta_MD
        out_MD.copy_(reference(x_MD, weight, eps))
        return out
    added = (None, 0) if delta_MD is None else (delta_MD.data_ptr(), row_stride(delta_MD))
    arguments = (x_MD.data_ptr(), row_stride(x_MD), *added, weight.data_ptr(), eps, m, d, library.code(x.dtype))
    library.raise_for(found.rms_norm(*arguments, out_MD.data_ptr(), row_stride(out_MD)))
    return out


def reference(x_MD: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The oracle, 16 rows at a time: the lines of herd.model's RMSNorm."""

    def normalise(tile: Tensor) -> Tensor:
        wide = tile.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return wide.to(tile.dtype) * weight

    return tiles.by_rows(normalise, x_MD)
