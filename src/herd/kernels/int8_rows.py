"""Keys and values in a byte a number: what a cache of int8 or fp8 (e4m3fn) holds for the vector of one token and KV head.

    int8   scale = max |x| / 127 in float32;  byte = x / scale, rounded half to even;  x is about byte * scale
    fp8    scale = max |x| / 448 in float32;  byte = e4m3fn(x / scale), rounded half to even;  x is about byte * scale

A row is H bytes and the four of its scale behind them, so that a cache stays one tensor and a block is copied scales and all. In int8 the
error of a number is at most half a scale, 1/254 of the largest in its vector; in fp8 1/16 of the number itself, down to 1/458752 of the
largest. A vector of zeros has the scale 0, one that is not finite the scale NaN. The oracle of csrc/quantise.h, byte for byte, which knows
int8, and of the Triton kernels, which know both. Shapes: H head dim.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from herd.kernels.caches import SCALE_BYTES, cache_dtype_name

BYTE_DTYPES = (torch.int8, torch.float8_e4m3fn)
_FP8_MAX = 448.0


def cache_dtype_of(name: str | None, default: torch.dtype) -> torch.dtype:
    """The dtype of a cache by the name that users give it: torch's, or fp8. None: the default."""
    return getattr(torch, cache_dtype_name(name, default))


def quantise(x: Float[Tensor, "*batch H"], dtype: torch.dtype = torch.int8) -> Shaped[Tensor, "*batch C"]:
    """Vectors as rows of C = H + 4, in int8 or float8_e4m3fn."""
    if dtype != torch.int8:
        return _quantise_fp8(x)
    scale = x.float().abs().amax(dim=-1, keepdim=True) / 127.0
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    numbers = torch.where(scale > 0, x.float() / scale, 0.0).round().clamp(-127, 127)
    return torch.cat([numbers.to(torch.int8), scale.contiguous().view(torch.int8)], dim=-1)


def _quantise_fp8(x: Tensor) -> Tensor:
    wide = x.float()
    scale = wide.abs().amax(dim=-1, keepdim=True) / _FP8_MAX
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    numbers = torch.where(scale > 0, wide / scale, 0.0).clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)
    return torch.cat([part.view(torch.uint8) for part in (numbers, scale.contiguous())], dim=-1).view(torch.float8_e4m3fn)


def numbers_of(rows: Shaped[Tensor, "*batch C"]) -> Float[Tensor, "*batch H"]:
    """The bytes as float32, without their scale."""
    return rows[..., :-SCALE_BYTES].float()


def scales_of(rows: Shaped[Tensor, "*batch C"]) -> Float[Tensor, "*batch"]:
    """The scales, float32."""
    return rows[..., -SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)[..., 0]


def dequantise(rows: Shaped[Tensor, "*batch C"]) -> Float[Tensor, "*batch H"]:
    """What the rows stand for, in float32."""
    return numbers_of(rows) * scales_of(rows)[..., None]


def stored(x: Float[Tensor, "*batch H"], dtype: torch.dtype) -> Shaped[Tensor, "*batch C"]:
    """Vectors as a cache of any dtype holds them."""
    return quantise(x, dtype) if dtype in BYTE_DTYPES else x.to(dtype)
