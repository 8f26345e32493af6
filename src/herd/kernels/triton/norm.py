"""RMSNorm for GPUs, a program a row: with the residual sum before it, and with the next product's rowwise quantisation behind it.

    x = x + delta;  y = round(x rsqrt(mean(x^2) + eps)) * weight;  with quantisation: scale and codes of y, by `kernels.quantised`

Every step rounds to the dtype of x where the model rounds; a quantised row is what `fp8_rows` or `int8_rows` makes of the plain one.
Shapes: M rows, D model dim.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownMemberType=false

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from herd.kernels.quantised import FP8_DTYPE, FP8_MIN_SCALE
from herd.kernels.triton.numbers import finite_or_nan, fp8_bytes, int8_of, largest_of, narrow, rounded
from herd.kernels.triton.runtime import options, require

NONE, INT8, FP8 = 0, 1, 2
MODES = {"none": NONE, "int8": INT8, "fp8": FP8}


@triton.jit
@no_type_check
def quantised_row(y, bound, MODE: tl.constexpr, MIN_SCALE: tl.constexpr):
    """A row's scale, and its codes as float32 whole numbers (int8) or bytes (fp8). `bound` caps the largest; below 0 nothing does."""
    largest = largest_of(y)
    if MODE == 2:
        largest = tl.where((bound >= 0) & (largest > bound), bound, largest)
        scale = tl.math.div_rn(largest, 448.0)
        scale = tl.where(scale < MIN_SCALE, MIN_SCALE, scale)
        ratio = tl.math.div_rn(y, scale)
        return scale, fp8_bytes(tl.where(ratio > 448.0, 448.0, tl.where(ratio < -448.0, -448.0, ratio)))
    else:
        scale = finite_or_nan(tl.math.div_rn(largest, 127.0))
        return scale, int8_of(y, scale)


@triton.jit
@no_type_check
def _norm(
    x, delta, weight, out, codes, scales, sx, sd, so, sc, eps, bound,
    D: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, MODE: tl.constexpr, KEEP: tl.constexpr, NORM: tl.constexpr,
    MIN_SCALE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    there = i < D
    kind: tl.constexpr = x.dtype.element_ty
    y = tl.load(x + row * sx + i, mask=there, other=0.0).to(tl.float32)
    if ADD:
        y = rounded(y + tl.load(delta + row * sd + i, mask=there, other=0.0).to(tl.float32), kind)
        tl.store(x + row * sx + i, narrow(y, kind), mask=there)
    if NORM:
        mean = tl.math.div_rn(tl.sum(y * y), D * 1.0)
        y = rounded(y * tl.rsqrt(mean + eps), kind)
        y = rounded(y * tl.load(weight + i, mask=there, other=0.0).to(tl.float32), kind)
    if KEEP:
        tl.store(out + row * so + i, narrow(y, kind), mask=there)
    if MODE != 0:
        scale, found = quantised_row(y, bound, MODE, MIN_SCALE)
        tl.store(codes + row * sc + i, found, mask=there)
        tl.store(scales + row, scale)


def _launch(
    x: Tensor, delta: Tensor | None, weight: Tensor | None, eps: float, out: Tensor | None, codes: Tensor | None, scales: Tensor | None,
    mode: str, bound: float | None,
) -> None:  # fmt: skip
    require(x.device)
    rows, width = x.shape
    if not rows:
        return
    raw = x if codes is None else codes.view(torch.uint8) if codes.dtype == FP8_DTYPE else codes
    block = triton.next_power_of_2(width)
    _norm[(rows,)](
        x, x if delta is None else delta, x if weight is None else weight, x if out is None else out, raw, x if scales is None else scales,
        x.stride(0), 0 if delta is None else delta.stride(0), 0 if out is None else out.stride(0), 0 if codes is None else codes.stride(0),
        eps, -1.0 if bound is None else bound,
        D=width, BLOCK=block, ADD=delta is not None, MODE=MODES[mode], KEEP=out is not None, NORM=weight is not None,
        MIN_SCALE=FP8_MIN_SCALE, **options(min(16, max(1, block // 512))),
    )  # fmt: skip


def rms_norm(x_MD: Tensor, weight: Tensor, eps: float, *, out: Tensor, delta: Tensor | None = None) -> Tensor:
    """The normalised rows, after `delta` was added to x in place. Weight and delta have x's dtype."""
    _launch(x_MD, delta, weight, eps, out, None, None, "none", None)
    return out


def rms_norm_quantised(
    x_MD: Tensor, weight: Tensor, eps: float, *, mode: str, codes: Tensor, scales: Tensor, delta: Tensor | None = None,
    bound: float | None = None, out: Tensor | None = None,
) -> None:  # fmt: skip
    """The same, then rowwise codes (int8 or float8_e4m3fn) and float32 scales of the rows; `out` keeps the rows themselves as well."""
    _launch(x_MD, delta, weight, eps, out, codes, scales, mode, bound)


def quantise_rows(x_MD: Tensor, *, mode: str, codes: Tensor, scales: Tensor, bound: float | None = None) -> None:
    """Rowwise codes and scales of rows as they are."""
    _launch(x_MD, None, None, 1.0, None, codes, scales, mode, bound)
