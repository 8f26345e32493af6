"""The next token of each row of scores on a GPU: the likeliest, or one drawn at a temperature, over all tokens or those of min-p.

    weight = e^((score - highest) / temperature) in float32, 0 below min_p;  the first token up to which the weights' sum passes u * total

u comes from (seed, position) on the host, as for every draw of herd, so a draw depends on its row and its own numbers alone. Sums are
float64, in blocks of 1024 in ascending order. The CPU's two samplers differ from this one, and from each other, in the last bits of a
weight, so at one number in some 10^7 the neighbouring token comes; top-k, top-p and typical are the CPU's alone.
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


@triton.jit
@no_type_check
def _weights(at, i, V, high, heat, least):
    score = tl.load(at + i, mask=i < V, other=float("-inf")).to(tl.float32)
    weight = tl.exp(tl.math.div_rn(score - high, heat))
    return tl.where((weight < least) | (i >= V), 0.0, weight).to(tl.float64)


@triton.jit
@no_type_check
def _draw(scores, temperatures, leasts, uniforms, ids, ss, V, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = scores + row * ss
    high, best, noise = tl.full((), float("-inf"), tl.float32), tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    for begin in range(0, V, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        score = tl.load(at + i, mask=i < V, other=float("-inf")).to(tl.float32)
        noise += tl.sum((score != score).to(tl.int32))
        most = tl.max(score)
        if most > high:
            high = most
            best = tl.min(tl.where(score == most, i, 2147483647))
    heat = tl.load(temperatures + row)
    chosen = best
    if heat > 0.0:
        heat = tl.minimum(tl.maximum(heat, 1e-30), 1e30)
        least = tl.load(leasts + row)
        total = tl.zeros((), dtype=tl.float64)
        for begin in range(0, V, BLOCK):
            total += tl.max(tl.cumsum(_weights(at, begin + tl.arange(0, BLOCK), V, high, heat, least), 0))
        target = tl.load(uniforms + row) * total
        before = tl.zeros((), dtype=tl.float64)
        found, last = tl.full((), 2147483647, tl.int32), best
        for begin in range(0, V, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            weight = _weights(at, i, V, high, heat, least)
            sums = tl.cumsum(weight, 0)
            found = tl.minimum(found, tl.min(tl.where((before + sums > target) & (weight > 0), i, 2147483647)))
            last = tl.maximum(last, tl.max(tl.where(weight > 0, i, 0)))
            before += tl.max(sums)
        chosen = tl.where(found < 2147483647, found, last)
    sound = (noise == 0) & (high < float("inf")) & (high > float("-inf"))
    tl.store(ids + row, tl.where(sound, chosen, -1).to(tl.int64))


def draw(scores_RV: Tensor, *, temperatures: Tensor, min_p: Tensor, uniforms: Tensor, ids: Tensor) -> Tensor:
    """The ids (int64 [R]) drawn from float32 rows; -1 for a row whose scores are no finite numbers.

    `temperatures` (0 takes the likeliest, the lowest id among equals) and `min_p` are float32 [R], `uniforms` float64 [R] in [0, 1).
    """
    require(scores_RV.device)
    rows, vocab = scores_RV.shape
    if rows:
        _draw[(rows,)](scores_RV, temperatures, min_p, uniforms, ids, scores_RV.stride(0), vocab, BLOCK=_BLOCK, **options(4))
    return ids
