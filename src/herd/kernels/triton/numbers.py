"""What the kernels share: casts that round the same everywhere, products of tiles, rounding to whole numbers.

Triton's interpreter casts to bfloat16 by cutting bits off, loses a carry in casts to fp8, and multiplies bfloat16 tiles as if their bits
were whole numbers (3.9). So a number is brought to one that the narrow dtype holds before it is cast to fp8, which costs a GPU next to
nothing; to bfloat16 in the interpreter alone, since a GPU rounds half to even by itself. There tiles meet in float32, by a plain sum:
numpy's products of matrices add up in another order for another row of a tile, which a GPU's tensor instructions do not.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from herd.kernels.triton.runtime import interpreted

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
@no_type_check
def nearest_whole(x):
    """X rounded half to even, exact below 2^22 in size."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
@no_type_check
def keep_bits(x, CUT: tl.constexpr):
    """Float32 numbers whose last CUT bits are 0: rounded half to even. Infinities and NaN stay."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + ((1 << (CUT - 1)) - 1) + ((bits >> CUT) & 1)) & (0xFFFFFFFF ^ ((1 << CUT) - 1))
    return tl.where((bits & 0x7F800000) == 0x7F800000, x, rounded.to(tl.float32, bitcast=True))


@triton.jit
@no_type_check
def narrow(x, DTYPE: tl.constexpr):
    """A float32 number in another floating dtype, rounded half to even."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        x = keep_bits(x, 16)
    return x.to(DTYPE)


@triton.jit
@no_type_check
def rounded(x, DTYPE: tl.constexpr):
    """A float32 number as DTYPE would hold it, in float32 again."""
    return narrow(x, DTYPE).to(tl.float32)


@triton.jit
@no_type_check
def fp8_bytes(x):
    """Numbers of at most 448 in size as the bytes of float8 e4m3fn, rounded half to even; NaN becomes NaN."""
    small = nearest_whole(x * 512.0) * 0.001953125
    exact = tl.where(tl.abs(x) < 0.015625, small, keep_bits(x, 20))
    found = exact.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    return tl.where(x != x, 0x7F, found).to(tl.uint8)


@triton.jit
@no_type_check
def fp8_of(y, scale):
    """Bytes of y over its row's scale; where the scale is no positive number, of 0."""
    ratio = tl.where(scale > 0, tl.math.div_rn(y, tl.where(scale > 0, scale, 1.0)), 0.0)
    return fp8_bytes(tl.where(ratio > 448.0, 448.0, tl.where(ratio < -448.0, -448.0, ratio)))


@triton.jit
@no_type_check
def int8_of(y, scale):
    """Whole numbers of y over its row's scale; where the scale is no positive number, 0."""
    whole = nearest_whole(tl.where(scale > 0, tl.math.div_rn(y, tl.where(scale > 0, scale, 1.0)), 0.0))
    return tl.where(whole > 127.0, 127.0, tl.where(whole < -127.0, -127.0, whole)).to(tl.int8)


@triton.jit
@no_type_check
def finite_or_nan(scale):
    """The scale of a row, NaN where the row is not finite."""
    return tl.where(scale < float("inf"), scale, float("nan"))


@triton.jit
@no_type_check
def largest_of(y):
    """The largest absolute value, NaN where there is one: a GPU's maximum passes over it."""
    return tl.where(tl.max((y != y).to(tl.int32)) > 0, float("nan"), tl.max(tl.abs(y)))


@triton.jit
@no_type_check
def fp8_numbers(stored):
    """What bytes of float8 e4m3fn stand for, in float32."""
    return stored.to(tl.float8e4nv, bitcast=True).to(tl.float32)


@triton.jit
@no_type_check
def tile_product(a, b):
    """A @ b in float32. Both have one dtype."""
    if INTERPRETED:
        found = tl.sum(a.to(tl.float32)[:, :, None] * b.to(tl.float32)[None, :, :], 1)
    else:
        found = tl.dot(a, b, input_precision="ieee", out_dtype=tl.float32)
    return found
