"""Paged attention for GPUs: chunks of prompts and decoding tokens, queries sharing KV heads, caches in 32, 16 or 8 bits.

One order of summation, by positions alone. Keys lie in parts of 256 positions, aligned at position 0. Within a part, blocks of 64 keys go
into one running softmax, from nothing, in ascending order; parts are merged in ascending order as `kernels.attention` merges its splits.
A part that a token does not see changes none of its bits. So a token's output is the same alone, in a chunk and in a batch.

Two kernels share that arithmetic, tile by tile of 64 rows (tokens times the heads that share a KV head):
    _whole      a program for 64 rows and a KV head walks all parts: for chunks of prompts
    _part_of    a program for one token, a KV head and one part leaves m, l and o; `_merge` joins them: for decoding, where that is all the
                parallelism there is. How many parts are launched depends on the batch; those behind a token's position do nothing.
In int8 and fp8 a key's scale multiplies its scores and a value's scale its probabilities. Probabilities meet values in the dtype of q.
Shapes: T tokens, N query heads, K KV heads, G = N/K, H head dim, C elements of a cached vector, S sequences, W blocks of a table's row.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownMemberType=false

from __future__ import annotations

from itertools import pairwise
from typing import no_type_check

import triton
import triton.language as tl
from torch import Tensor

from herd.kernels.triton.numbers import fp8_numbers, narrow, tile_product
from herd.kernels.triton.rope import cache_mode, raw_cache
from herd.kernels.triton.runtime import options, require

ROWS = 64
KEYS = 64
PART = 256


@triton.jit
@no_type_check
def _vectors(
    cache, table, at, seen, head, h,
    K: tl.constexpr, H: tl.constexpr, C: tl.constexpr, SIZE: tl.constexpr, MODE: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The numbers of 64 cached vectors, [keys, H] in the dtype of q, and their scales."""
    block = tl.load(table + at // SIZE, mask=seen, other=0).to(tl.int64)
    place = ((block * SIZE + at % SIZE) * K + head) * C
    stored = tl.load(cache + place[:, None] + h[None, :], mask=seen[:, None] & (h[None, :] < H), other=0)
    if MODE == 0:
        numbers = narrow(stored.to(tl.float32), KIND)
        scale = seen.to(tl.float32)
    else:
        scale = tl.load((cache + place + H).to(tl.pointer_type(tl.float32), bitcast=True), mask=seen, other=0.0)
        if MODE == 1:
            numbers = stored.to(tl.float32).to(KIND)
        else:
            numbers = fp8_numbers(stored).to(KIND)
    return numbers, scale


@triton.jit
@no_type_check
def _one_part(
    q, positions, last, number, keys, values, table, head, h, scale,
    K: tl.constexpr, H: tl.constexpr, C: tl.constexpr, SIZE: tl.constexpr, MODE: tl.constexpr, BM: tl.constexpr, BH: tl.constexpr,
    STEP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """m, l and o of the rows over the keys of one part, up to position `last`."""
    m = tl.full((BM,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BM,), dtype=tl.float32)
    o = tl.zeros((BM, BH), dtype=tl.float32)
    kind: tl.constexpr = q.dtype
    for begin in range(number * WIDTH, tl.minimum(last + 1, (number + 1) * WIDTH), STEP):
        at = begin + tl.arange(0, STEP)
        seen = at <= last
        k, k_scale = _vectors(keys, table, at, seen, head, h, K, H, C, SIZE, MODE, kind)
        scores = tile_product(q, tl.trans(k))
        if MODE != 0:
            scores *= k_scale[None, :]
        visible = at[None, :] <= positions[:, None]
        scores = tl.where(visible, scores * scale, float("-inf"))
        high = tl.maximum(m, tl.max(scores, 1))
        safe = tl.where(high == float("-inf"), 0.0, high)
        p = tl.where(visible, tl.exp(scores - safe[:, None]), 0.0)
        keep = tl.exp(m - safe)
        total = total * keep + tl.sum(p, 1)
        v, v_scale = _vectors(values, table, at, seen, head, h, K, H, C, SIZE, MODE, kind)
        if MODE != 0:
            p *= v_scale[None, :]
        o = o * keep[:, None] + tile_product(narrow(p, kind), v)
        m = high
    return m, total, o


@triton.jit
@no_type_check
def _merged(m, total, o, m_part, total_part, o_part):
    high = tl.maximum(m, m_part)
    safe = tl.where(high == float("-inf"), 0.0, high)
    keep, take = tl.exp(m - safe), tl.exp(m_part - safe)
    return high, total * keep + total_part * take, o * keep[:, None] + o_part * take[:, None]


@triton.jit
@no_type_check
def _ended(o, total):
    return tl.math.div_rn(o, tl.maximum(total, 1e-37)[:, None])


@triton.jit
@no_type_check
def _whole(
    q, keys, values, tables, starts, first, tiles, out, st, sq, so, scale,
    G: tl.constexpr, K: tl.constexpr, H: tl.constexpr, C: tl.constexpr, SIZE: tl.constexpr, MODE: tl.constexpr,
    BM: tl.constexpr, BH: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    sequence, begin = tl.load(tiles + 2 * tl.program_id(0)), tl.load(tiles + 2 * tl.program_id(0) + 1)
    head = tl.program_id(1)
    end, at = tl.load(starts + sequence + 1), tl.load(starts + sequence)
    row, h = tl.arange(0, BM), tl.arange(0, BH)
    token = begin + row // G
    used = (row < (BM // G) * G) & (token < end)
    positions = tl.where(used, tl.load(first + sequence) + token - at, -1)
    place = token.to(tl.int64)[:, None] * sq + ((head * G + row % G) * H)[:, None] + h[None, :]
    here = used[:, None] & (h[None, :] < H)
    tile = tl.load(q + place, mask=here, other=0.0)
    last = tl.max(positions)
    table = tables + sequence.to(tl.int64) * st
    m = tl.full((BM,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BM,), dtype=tl.float32)
    o = tl.zeros((BM, BH), dtype=tl.float32)
    for number in range(last // WIDTH + 1):
        found = _one_part(tile, positions, last, number, keys, values, table, head, h, scale, K, H, C, SIZE, MODE, BM, BH, STEP, WIDTH)
        m, total, o = _merged(m, total, o, found[0], found[1], found[2])
    place = token.to(tl.int64)[:, None] * so + ((head * G + row % G) * H)[:, None] + h[None, :]
    tl.store(out + place, narrow(_ended(o, total), out.dtype.element_ty), mask=here)


@triton.jit
@no_type_check
def _part_of(
    q, keys, values, tables, positions, highs, totals, outs, st, sq, scale, PARTS,
    G: tl.constexpr, K: tl.constexpr, H: tl.constexpr, C: tl.constexpr, SIZE: tl.constexpr, MODE: tl.constexpr,
    BM: tl.constexpr, BH: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token, head, number = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    last = tl.load(positions + token)
    if number * WIDTH <= last:
        row, h = tl.arange(0, BM), tl.arange(0, BH)
        here = (row[:, None] < G) & (h[None, :] < H)
        at = tl.where(row < G, last, -1)
        tile = tl.load(q + token * sq + ((head * G + row) * H)[:, None] + h[None, :], mask=here, other=0.0)
        m, total, o = _one_part(
            tile, at, last.to(tl.int32), number, keys, values, tables + token * st, head, h, scale, K, H, C, SIZE, MODE, BM, BH, STEP, WIDTH
        )
        place = ((token * PARTS + number) * K + head) * G + row
        tl.store(highs + place, m, mask=row < G)
        tl.store(totals + place, total, mask=row < G)
        tl.store(outs + place[:, None] * H + h[None, :], o, mask=here)


@triton.jit
@no_type_check
def _merge(
    highs, totals, outs, positions, out, so, PARTS,
    G: tl.constexpr, K: tl.constexpr, H: tl.constexpr, BG: tl.constexpr, BH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    last = tl.load(positions + token).to(tl.int32)
    row, h = tl.arange(0, BG), tl.arange(0, BH)
    here = (row[:, None] < G) & (h[None, :] < H)
    m = tl.full((BG,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BG,), dtype=tl.float32)
    o = tl.zeros((BG, BH), dtype=tl.float32)
    for number in range((last + WIDTH) // WIDTH):
        place = ((token * PARTS + number) * K + head) * G + row
        m_part = tl.load(highs + place, mask=row < G, other=float("-inf"))
        total_part = tl.load(totals + place, mask=row < G, other=0.0)
        o_part = tl.load(outs + place[:, None] * H + h[None, :], mask=here, other=0.0)
        m, total, o = _merged(m, total, o, m_part, total_part, o_part)
    tl.store(out + token * so + ((head * G + row) * H)[:, None] + h[None, :], narrow(_ended(o, total), out.dtype.element_ty), mask=here)


def tiles_of(starts: list[int], group: int) -> list[tuple[int, int]]:
    """(sequence, first token) of each tile of a ragged batch, whose sequence s has the tokens starts[s]..starts[s+1]-1."""
    width = ROWS // group
    return [(s, at) for s, (begin, end) in enumerate(pairwise(starts)) for at in range(begin, end, width)]


def num_parts(positions: int) -> int:
    """Parts of so many positions."""
    return triton.cdiv(positions, PART)


def _shape(q: Tensor, keys: Tensor) -> dict[str, int]:
    _, heads, head_dim = q.shape
    kv_heads, width = keys.shape[2:]
    return {"G": heads // kv_heads, "K": kv_heads, "H": head_dim, "C": width, "SIZE": keys.shape[1], "MODE": cache_mode(keys.dtype)}


def _tile(head_dim: int) -> dict[str, int]:
    return {"BM": ROWS, "BH": max(16, triton.next_power_of_2(head_dim)), "STEP": KEYS, "WIDTH": PART}


def attend(
    q_TNH: Tensor, keys: Tensor, values: Tensor, *, tables: Tensor, starts: Tensor, first: Tensor, tiles: Tensor, out: Tensor
) -> Tensor:
    """Any ragged batch: `tables` int32 [S, W], `starts` [S + 1] and `first` [S] int32, `tiles` int32 [n, 2] of `tiles_of`."""
    require(q_TNH.device)
    if len(tiles):
        shape = _shape(q_TNH, keys)
        _whole[(len(tiles), shape["K"])](
            q_TNH, raw_cache(keys), raw_cache(values), tables, starts, first, tiles, out,
            tables.stride(0), q_TNH.stride(0), out.stride(0), q_TNH.shape[2] ** -0.5, **shape, **_tile(q_TNH.shape[2]), **options(4),
        )  # fmt: skip
    return out


def partial_numbers(tokens: int, heads: int, head_dim: int, parts: int) -> int:
    """Float32 numbers of scratch that `attend_decoding` needs."""
    return tokens * heads * parts * (head_dim + 2)


def attend_decoding(
    q_TNH: Tensor, keys: Tensor, values: Tensor, *, tables: Tensor, positions: Tensor, parts: int, scratch: Tensor, out: Tensor
) -> Tensor:
    """One token of each sequence: token t stands at positions[t] (below 0 it is padding and gets zeros) and reads row t of `tables`.

    `parts` is at least `num_parts` of the highest position plus one; `scratch` float32 of `partial_numbers`.
    """
    require(q_TNH.device)
    tokens, heads, head_dim = q_TNH.shape
    if not tokens:
        return out
    shape, tile = _shape(q_TNH, keys), _tile(head_dim)
    count = tokens * heads * parts
    highs, totals, outs = scratch[:count], scratch[count : 2 * count], scratch[2 * count : count * (head_dim + 2)]
    _part_of[(tokens, shape["K"], parts)](
        q_TNH, raw_cache(keys), raw_cache(values), tables, positions, highs, totals, outs,
        tables.stride(0), q_TNH.stride(0), head_dim**-0.5, parts, **shape, **tile, **options(4),
    )  # fmt: skip
    _merge[(tokens, shape["K"])](
        highs, totals, outs, positions, out, out.stride(0), parts,
        G=shape["G"], K=shape["K"], H=head_dim, BG=triton.next_power_of_2(shape["G"]), BH=tile["BH"], WIDTH=PART, **options(1),
    )  # fmt: skip
    return out
