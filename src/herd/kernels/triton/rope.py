"""Rotary positions and the write to the paged cache for GPUs: one program for each token and head.

The rotation is `kernels.rope`'s: in float32, products and sum rounded one by one, then to the model's dtype. Keys and values go to the
token's slot as they are, in another floating dtype, or as a byte a number with the vector's float32 scale behind them (`int8_rows`).
A slot below 0 is written nowhere: that is the padding of a captured graph. Shapes: T tokens, N query heads, K KV heads, H head dim.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownMemberType=false

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from herd.kernels.triton.numbers import finite_or_nan, fp8_of, int8_of, largest_of, narrow, rounded
from herd.kernels.triton.runtime import options, require

PLAIN, INT8, FP8 = 0, 1, 2


def cache_mode(dtype: torch.dtype) -> int:
    """How a cache of a dtype is read and written."""
    return {torch.int8: INT8, torch.float8_e4m3fn: FP8}.get(dtype, PLAIN)


def raw_cache(cache: Tensor) -> Tensor:
    """A cache as kernels take it: one of fp8 as bytes."""
    return cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache


@triton.jit
@no_type_check
def _write(cache, place, first, second, i, there, H: tl.constexpr, MODE: tl.constexpr):
    """Both halves of a vector, float32 numbers that the model's dtype holds, at an element of a cache."""
    at = cache + place
    if MODE == 0:
        tl.store(at + i, narrow(first, cache.dtype.element_ty), mask=there)
        tl.store(at + H // 2 + i, narrow(second, cache.dtype.element_ty), mask=there)
    else:
        one, other = largest_of(first), largest_of(second)
        largest = tl.where((one != one) | (other != other), float("nan"), tl.maximum(one, other))
        if MODE == 2:
            scale = finite_or_nan(tl.math.div_rn(largest, 448.0))
            tl.store(at + i, fp8_of(first, scale), mask=there)
            tl.store(at + H // 2 + i, fp8_of(second, scale), mask=there)
        else:
            scale = finite_or_nan(tl.math.div_rn(largest, 127.0))
            tl.store(at + i, int8_of(first, scale), mask=there)
            tl.store(at + H // 2 + i, int8_of(second, scale), mask=there)
        tl.store((at + H).to(tl.pointer_type(tl.float32), bitcast=True), scale)


@triton.jit
@no_type_check
def _rope(
    q, k, v, cos, sin, positions, slots, keys, values, sq, sk, sv,
    N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, BLOCK)
    there = i < H // 2
    position, slot = tl.load(positions + token), tl.load(slots + token).to(tl.int64)
    place = tl.where(slot >= 0, position, 0).to(tl.int64) * (H // 2)
    c = tl.load(cos + place + i, mask=there, other=0.0)
    s = tl.load(sin + place + i, mask=there, other=0.0)
    kind: tl.constexpr = q.dtype.element_ty
    if head < N:
        at = q + token * sq + head * H
    else:
        at = k + token * sk + (head - N) * H
    x = tl.load(at + i, mask=there, other=0.0).to(tl.float32)
    y = tl.load(at + H // 2 + i, mask=there, other=0.0).to(tl.float32)
    first, second = rounded(x * c - y * s, kind), rounded(y * c + x * s, kind)
    if head < N:
        tl.store(at + i, narrow(first, kind), mask=there)
        tl.store(at + H // 2 + i, narrow(second, kind), mask=there)
    elif slot >= 0:
        spot = (slot * K + (head - N)) * C
        _write(keys, spot, first, second, i, there, H, MODE)
        from_v = v + token * sv + (head - N) * H
        first = tl.load(from_v + i, mask=there, other=0.0).to(tl.float32)
        second = tl.load(from_v + H // 2 + i, mask=there, other=0.0).to(tl.float32)
        _write(values, spot, first, second, i, there, H, MODE)


def rope_write(
    q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, *, cos: Tensor, sin: Tensor, positions: Tensor, slots: Tensor, keys: Tensor, values: Tensor
) -> None:
    """Rotate q in place; write rotated k and plain v to the slots (whole numbers [T], as positions) of a layer's caches.

    Heads lie side by side, tokens may be apart. `cos` and `sin` are float32 [positions, H/2]. Where several tokens have one slot, one wins.
    """
    require(q_TNH.device)
    tokens, heads, head_dim = q_TNH.shape
    kv_heads = k_TKH.shape[1]
    if not tokens:
        return
    _rope[(tokens, heads + kv_heads)](
        q_TNH, k_TKH, v_TKH, cos, sin, positions, slots, raw_cache(keys), raw_cache(values),
        q_TNH.stride(0), k_TKH.stride(0), v_TKH.stride(0),
        N=heads, K=kv_heads, H=head_dim, C=keys.shape[-1], BLOCK=triton.next_power_of_2(head_dim // 2), MODE=cache_mode(keys.dtype),
        **options(1),
    )  # fmt: skip
