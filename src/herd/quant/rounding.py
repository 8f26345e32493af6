"""Round to nearest: scales of a matrix, by its largest values or by a search for the best clip, and the codes that they give.

    fp8    row-wise, FBGEMM's definition (`kernels.quantised.fp8_rows`); nothing to search
    int8   scale = max / 127
    int4   symmetric: codes -8..7, scale = c max / 7.5 with the c of least squared error, each input weighed by its importance
           asymmetric: codes 0..15 over c (max - min), zero point rounded

Scales are rounded to what the file holds before codes are taken. Knows one matrix at a time. Shapes: N outputs, K inputs, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from herd.base.errors import CheckpointError
from herd.checkpoint.quant_parts import scale_dtype
from herd.checkpoint.quant_scheme import MatrixScheme
from herd.kernels.quantised import INT4_ZERO, QuantWeight, fp8_rows, pack_int4

_CLIPS = tuple(1.0 - 0.03 * step for step in range(16))
_TINY = 2.0**-40


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The levels of every group: float32 scales [N, G] and, for int4, zero points [N, G] in float32 (8 where symmetric)."""

    scales: Tensor
    zeros: Tensor | None


def check_finite(name: str, weight: Tensor) -> None:
    """Raises CheckpointError for a matrix with values that are not numbers: no scale stands for them."""
    bad = weight.numel() - int(torch.isfinite(weight).sum())
    if bad:
        raise CheckpointError(
            f"{name} holds {bad:,} value{'s' if bad > 1 else ''} that are NaN or infinite", hint="`herd verify` lists what is damaged"
        )


def written_scales(scales: Tensor, scheme: MatrixScheme) -> Tensor:
    """Scales as the file will hold them, none of them zero."""
    return scales.clamp(min=_TINY).to(scale_dtype(scheme)).float()


def grid_of(
    weight_NK: Float[Tensor, "N K"], scheme: MatrixScheme, importance_K: Float[Tensor, "K"] | None = None, *, search: bool = True
) -> Grid:
    """The levels for a matrix of int8 or int4. `search` looks for the clip of least error in every group of int4."""
    groups = scheme.groups(weight_NK.shape[1])
    grouped = weight_NK.float().reshape(len(weight_NK), groups, -1)
    if scheme.kind == "int8":
        return Grid(scales=written_scales(grouped.abs().amax(-1) / 127.0, scheme), zeros=None)
    weights = None if importance_K is None else importance_K.float().view(1, groups, -1)
    best, least = None, None
    for clip in _CLIPS if search else (1.0,):
        grid = _int4_grid(grouped, scheme, clip)
        error = (levels_of(grouped, grid, scheme) - grouped).square()
        error = (error if weights is None else error * weights).sum(-1)
        if best is None or least is None:
            best, least = grid, error
            continue
        better = error < least
        assert best.zeros is not None and grid.zeros is not None
        best = Grid(scales=torch.where(better, grid.scales, best.scales), zeros=torch.where(better, grid.zeros, best.zeros))
        least = torch.where(better, error, least)
    assert best is not None
    return best


def _int4_grid(grouped: Tensor, scheme: MatrixScheme, clip: float) -> Grid:
    if scheme.symmetric:
        scales = written_scales(grouped.abs().amax(-1) * (clip / 7.5), scheme)
        return Grid(scales=scales, zeros=torch.full_like(scales, INT4_ZERO))
    low, high = grouped.amin(-1).clamp(max=0) * clip, grouped.amax(-1).clamp(min=0) * clip
    scales = written_scales((high - low) / 15.0, scheme)
    return Grid(scales=scales, zeros=(-low / scales).round().clamp(0, 15))


def levels_of(grouped: Tensor, grid: Grid, scheme: MatrixScheme) -> Tensor:
    """The nearest level to each value [N, G, inputs of a group]."""
    zeros = 0.0 if grid.zeros is None else grid.zeros[..., None]
    return (codes_of(grouped, grid.scales[..., None], grid.zeros if grid.zeros is None else grid.zeros[..., None], scheme) - zeros) * (
        grid.scales[..., None]
    )


def codes_of(values: Tensor, scales: Tensor, zeros: Tensor | None, scheme: MatrixScheme) -> Tensor:
    """The codes of values, float32: -127..127 for int8, 0..15 for int4."""
    if scheme.kind == "int8":
        return (values / scales).round().clamp(-127, 127)
    assert zeros is not None
    return ((values / scales).round() + zeros).clamp(0, 15)


def assemble(codes_NK: Tensor, grid: Grid, scheme: MatrixScheme) -> QuantWeight:
    """Codes and levels as a matrix."""
    values = codes_NK.to(torch.int8) if scheme.kind == "int8" else pack_int4(codes_NK.to(torch.uint8))
    zeros = None if scheme.symmetric or grid.zeros is None else grid.zeros.to(torch.uint8)
    return QuantWeight(kind=scheme.kind, values=values, scales=grid.scales, zeros=zeros, activation=scheme.activation, bound=scheme.bound)


def round_matrix(
    weight_NK: Float[Tensor, "N K"], scheme: MatrixScheme, importance_K: Float[Tensor, "K"] | None = None, *, search: bool = True
) -> QuantWeight:
    """A matrix rounded to nearest. The values must be finite."""
    if scheme.kind == "fp8":
        codes, scales = fp8_rows(weight_NK)
        return QuantWeight(kind="fp8", values=codes, scales=scales[:, None], activation=scheme.activation, bound=scheme.bound)
    return round_on(weight_NK, grid_of(weight_NK, scheme, importance_K, search=search), scheme)


def round_on(weight_NK: Float[Tensor, "N K"], grid: Grid, scheme: MatrixScheme) -> QuantWeight:
    """A matrix of int8 or int4 rounded to levels that are given."""
    grouped = weight_NK.float().reshape(*grid.scales.shape, -1)
    codes = codes_of(grouped, grid.scales[..., None], None if grid.zeros is None else grid.zeros[..., None], scheme)
    return assemble(codes.reshape(weight_NK.shape), grid, scheme)


def relative_error(weight_NK: Tensor, quantised: QuantWeight) -> float:
    """Root mean square of the error over that of the matrix."""
    size = float(weight_NK.float().square().mean())
    return (float((quantised.dequantise() - weight_NK.float()).square().mean()) / size) ** 0.5 if size else 0.0
