"""Keys and values in int8: what a cache of that dtype holds for the vector of one token and KV head.

    scale = max |x| / 127 in float32;  byte = x / scale, rounded half to even;  x is about byte * scale

A row is H bytes and the four of its scale behind them, so that a cache stays one tensor and a block is copied scales and all. The error of
a number is at most half a scale, 1/254 of the largest in its vector. A vector of zeros has the scale 0, one that is not finite the scale
NaN. The oracle of csrc/quantise.h, byte for byte. Shapes: H head dim.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor

SCALE_BYTES = 4


def row_width(head_dim: int, dtype: torch.dtype) -> int:
    """Elements that a cache of `dtype` has for a vector: H, in int8 those of the scale too."""
    return head_dim + SCALE_BYTES if dtype == torch.int8 else head_dim


def head_dim_of(cache: Tensor) -> int:
    """H of a cache whose last dimension is rows."""
    return cache.shape[-1] - (SCALE_BYTES if cache.dtype == torch.int8 else 0)


def quantise(x: Float[Tensor, "*batch H"]) -> Int8[Tensor, "*batch C"]:
    """Vectors as rows of C = H + 4."""
    scale = x.float().abs().amax(dim=-1, keepdim=True) / 127.0
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    numbers = torch.where(scale > 0, x.float() / scale, 0.0).round().clamp(-127, 127)
    return torch.cat([numbers.to(torch.int8), scale.contiguous().view(torch.int8)], dim=-1)


def numbers_of(rows: Int8[Tensor, "*batch C"]) -> Float[Tensor, "*batch H"]:
    """The bytes as float32, without their scale."""
    return rows[..., :-SCALE_BYTES].float()


def scales_of(rows: Int8[Tensor, "*batch C"]) -> Float[Tensor, "*batch"]:
    """The scales, float32."""
    return rows[..., -SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)[..., 0]


def dequantise(rows: Int8[Tensor, "*batch C"]) -> Float[Tensor, "*batch H"]:
    """What the rows stand for, in float32."""
    return numbers_of(rows) * scales_of(rows)[..., None]
