"""The next token of each row of scores on a GPU: the likeliest, or one drawn at a temperature, of all tokens or of those that limits leave.

    weight = e^((score - highest) / temperature) in float32
    top-k   the k highest scores stay;  top-p  a weight stays while the mass of those above it is at most p * total;  min-p  from min_p on
    the first token up to which the sum of what stays passes u * total

u comes from (seed, position) on the host, as for every draw of herd, so a draw depends on its row and its own numbers alone. The last
score of top-k and the last weight of top-p are found without sorting, by halving the range of their bits: some 30 passes over the row each.
Of equals the lowest ids stay. Sums are float64, in blocks of 1024 in ascending order. The CPU's two samplers differ from this one, and from
each other, in the last bits of a weight, so at one number in some 10^7 the neighbouring token comes; typical sampling is the CPU's alone.
Shapes: R rows, V vocabulary.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownMemberType=false

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl
from torch import Tensor

from herd.kernels.triton.runtime import options, require

_BLOCK = 1024
_WIDE = 4096
"""Scores of a step of the walk for the likeliest, whose result does not depend on it."""


@triton.jit
@no_type_check
def _order(number):
    """Int32 that ascend as float32 numbers do; both zeros are one."""
    bits = (number + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 2147483647, bits)


@triton.jit
@no_type_check
def _scores(at, i, V):
    return tl.load(at + i, mask=i < V, other=float("-inf")).to(tl.float32)


@triton.jit
@no_type_check
def _weights_of_k(at, i, V, high, heat, k_key, k_last):
    """Weights, 0 for what top-k takes away: below `k_key`, and its equals behind `k_last`."""
    score = _scores(at, i, V)
    key = _order(score)
    stays = (i < V) & ((key > k_key) | ((key == k_key) & (i <= k_last)))
    return tl.where(stays, tl.exp(tl.math.div_rn(score - high, heat)), 0.0)


@triton.jit
@no_type_check
def _weights(at, i, V, high, heat, least, k_key, k_last, p_key, p_last):
    """Weights of what stays of all, in float64."""
    weight = _weights_of_k(at, i, V, high, heat, k_key, k_last)
    key = _order(weight)
    stays = (weight >= least) & ((key > p_key) | ((key == p_key) & (i <= p_last)))
    return tl.where(stays, weight, 0.0).to(tl.float64)


@triton.jit
@no_type_check
def _count_from(at, V, key, BLOCK: tl.constexpr):
    """How many scores have a key of `key` or more."""
    count = tl.full((), 0, tl.int32)
    for begin in range(0, V, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        count += tl.sum(((i < V) & (_order(_scores(at, i, V)) >= key)).to(tl.int32))
    return count


@triton.jit
@no_type_check
def _mass_from(at, V, high, heat, k_key, k_last, key, BLOCK: tl.constexpr):
    """The sum of weights whose key is `key` or more."""
    mass = tl.full((), 0.0, tl.float64)
    for begin in range(0, V, BLOCK):
        weight = _weights_of_k(at, begin + tl.arange(0, BLOCK), V, high, heat, k_key, k_last)
        mass += tl.sum(tl.where(_order(weight) >= key, weight, 0.0).to(tl.float64))
    return mass


@triton.jit
@no_type_check
def _limit_of_k(at, V, k, top_key, BLOCK: tl.constexpr):
    """The highest key that k scores have or pass, and the last of its equals that is among the k."""
    low, top = tl.full((), -2147483648, tl.int64), top_key.to(tl.int64)
    while low < top:
        middle = low + (top - low + 1) // 2
        enough = _count_from(at, V, middle.to(tl.int32), BLOCK) >= k
        low = tl.where(enough, middle, low)
        top = tl.where(enough, top, middle - 1)
    key = low.to(tl.int32)
    equals = k - _count_from(at, V, key + 1, BLOCK)
    before, last = tl.full((), 0, tl.int32), tl.full((), -1, tl.int32)
    for begin in range(0, V, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        equal = ((i < V) & (_order(_scores(at, i, V)) == key)).to(tl.int32)
        rank = before + tl.cumsum(equal, 0)
        last = tl.maximum(last, tl.max(tl.where((equal > 0) & (rank <= equals), i, -1)))
        before += tl.sum(equal)
    return key, last


@triton.jit
@no_type_check
def _limit_of_p(at, V, high, heat, k_key, k_last, within, BLOCK: tl.constexpr):
    """The highest key of a weight from which on the mass is over `within`, and the last of its equals before which it is not."""
    low, top = tl.full((), 0, tl.int64), tl.full((), 1065353216, tl.int64)  # keys of 0 and of 1, the weight of the likeliest
    while low < top:
        middle = low + (top - low + 1) // 2
        passes = _mass_from(at, V, high, heat, k_key, k_last, middle.to(tl.int32), BLOCK) > within
        low = tl.where(passes, middle, low)
        top = tl.where(passes, top, middle - 1)
    key = low.to(tl.int32)
    above = _mass_from(at, V, high, heat, k_key, k_last, key + 1, BLOCK)
    each = key.to(tl.float32, bitcast=True).to(tl.float64)
    before, last = tl.full((), 0, tl.int32), tl.full((), -1, tl.int32)
    for begin in range(0, V, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        equal = (_order(_weights_of_k(at, i, V, high, heat, k_key, k_last)) == key).to(tl.int32)
        rank = before + tl.cumsum(equal, 0) - 1
        last = tl.maximum(last, tl.max(tl.where((equal > 0) & (above + rank.to(tl.float64) * each <= within), i, -1)))
        before += tl.sum(equal)
    return key, last


@triton.jit
@no_type_check
def _likeliest(at, V, WIDE: tl.constexpr):
    """The highest score, the lowest id that has it, and how many are NaN: one walk, whose lanes meet at its end alone."""
    high = tl.full((WIDE,), float("-inf"), tl.float32)
    best, noise = tl.full((WIDE,), 2147483647, tl.int32), tl.full((WIDE,), 0, tl.int32)
    for begin in range(0, V, WIDE):
        i = begin + tl.arange(0, WIDE)
        score = _scores(at, i, V)
        noise += (score != score).to(tl.int32)
        best = tl.where(score > high, i, best)
        high = tl.where(score > high, score, high)
    most = tl.max(high)
    return most, tl.min(tl.where(high == most, best, 2147483647)), tl.sum(noise)


@triton.jit
@no_type_check
def _draw(
    scores, temperatures, ks, ps, leasts, uniforms, ids, ss, V,
    BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = scores + row * ss
    high, best, noise = _likeliest(at, V, WIDE)
    heat = tl.load(temperatures + row)
    chosen = best
    if heat > 0.0:
        heat = tl.minimum(tl.maximum(heat, 1e-30), 1e30)
        least = tl.load(leasts + row)
        k_key, k_last = tl.full((), -2147483648, tl.int32), tl.full((), 2147483647, tl.int32)
        k = tl.load(ks + row)
        if (k > 0) & (k < V):
            k_key, k_last = _limit_of_k(at, V, k, _order(high), BLOCK)
        p_key, p_last = tl.full((), -1, tl.int32), tl.full((), 2147483647, tl.int32)
        p = tl.load(ps + row)
        if p < 1.0:
            mass = _mass_from(at, V, high, heat, k_key, k_last, tl.full((), 0, tl.int32), BLOCK)
            if mass > p * mass:
                p_key, p_last = _limit_of_p(at, V, high, heat, k_key, k_last, p * mass, BLOCK)
        total = tl.zeros((), dtype=tl.float64)
        for begin in range(0, V, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            total += tl.max(tl.cumsum(_weights(at, i, V, high, heat, least, k_key, k_last, p_key, p_last), 0))
        target = tl.load(uniforms + row) * total
        before = tl.zeros((), dtype=tl.float64)
        found, last = tl.full((), 2147483647, tl.int32), best
        for begin in range(0, V, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            weight = _weights(at, i, V, high, heat, least, k_key, k_last, p_key, p_last)
            sums = tl.cumsum(weight, 0)
            found = tl.minimum(found, tl.min(tl.where((before + sums > target) & (weight > 0), i, 2147483647)))
            last = tl.maximum(last, tl.max(tl.where(weight > 0, i, 0)))
            before += tl.max(sums)
        chosen = tl.where(found < 2147483647, found, last)
    sound = (noise == 0) & (high < float("inf")) & (high > float("-inf"))
    tl.store(ids + row, tl.where(sound, chosen, -1).to(tl.int64))


def draw(scores_RV: Tensor, *, temperatures: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniforms: Tensor, ids: Tensor) -> Tensor:
    """The ids (int64 [R]) drawn from float32 rows; -1 for a row whose scores are no finite numbers.

    `temperatures` (0 takes the likeliest, the lowest id among equals) and `min_p` are float32 [R], `top_k` int32 [R] (0 is none), `top_p`
    and `uniforms` float64 [R], the latter in [0, 1).
    """
    require(scores_RV.device)
    rows, vocab = scores_RV.shape
    if rows:
        numbers = (temperatures, top_k, top_p, min_p, uniforms)
        _draw[(rows,)](scores_RV, *numbers, ids, scores_RV.stride(0), vocab, BLOCK=_BLOCK, WIDE=_WIDE, **options(4))
    return ids
