"""Values to the k-quants of GGUF: super-blocks of 256 values whose groups' scales are quantised in turn, each by a search for least error.

    Q4_K   8 groups of 32, x = d s_j q - m t_j: 21 tries of a step; for each, scale and minimum by weighed least squares
    Q6_K   16 groups of 16, x = d s_j q: 19 tries of a step; for each, the scale by least squares

The searches are those of ggml's reference code (make_qkx2_quants, make_qx_quants), without an importance matrix. Layouts are in
`gguf_blocks`. Shapes: N super-blocks, G groups of a super-block.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
_ONE = np.float32(1)


def _half(values: Floats) -> tuple[Bytes, Floats]:
    """Numbers as fp16 bytes, and what these stand for."""
    halves = values.astype("<f2")
    return halves.view(np.uint8).reshape(*values.shape[:-1], -1), halves.astype(np.float32)


def _over(numerator: Floats, denominator: Floats) -> Floats:
    """A quotient, 0 where there is none."""
    with np.errstate(all="ignore"):
        return np.where(denominator != 0, numerator / np.where(denominator != 0, denominator, _ONE), np.float32(0)).astype(np.float32)


def _scale_and_minimum(x: Floats) -> tuple[Floats, Floats]:
    """Scale and minimum (as a positive number that is taken off) of groups [.., 32] for codes 0..15."""
    weights = np.sqrt(np.square(x).mean(-1, keepdims=True)) + np.abs(x)
    low, high = np.minimum(x.min(-1, keepdims=True), 0), x.max(-1, keepdims=True)
    span = (high - low).astype(np.float32)
    sum_w, sum_x = weights.sum(-1, keepdims=True), (weights * x).sum(-1, keepdims=True)
    scale, minimum = span / np.float32(15), low
    codes = np.rint((x - low) * _over(np.float32(15) * np.ones_like(span), span)).clip(0, 15)
    least = (weights * np.square(scale * codes + minimum - x)).sum(-1, keepdims=True)
    for step in range(21):
        inverse = _over(np.float32(-1 + 0.1 * step + 15) * np.ones_like(span), span)
        codes = np.rint(inverse * (x - low)).clip(0, 15).astype(np.float32)
        sum_l, sum_l2 = (weights * codes).sum(-1, keepdims=True), (weights * codes * codes).sum(-1, keepdims=True)
        sum_xl = (weights * codes * x).sum(-1, keepdims=True)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = _over(sum_w * sum_xl - sum_x * sum_l, determinant)
        new_minimum = _over(sum_l2 * sum_x - sum_l * sum_xl, determinant)
        positive = new_minimum > 0
        new_scale = np.where(positive, _over(sum_xl, sum_l2), new_scale)
        new_minimum = np.where(positive, np.float32(0), new_minimum)
        error = (weights * np.square(new_scale * codes + new_minimum - x)).sum(-1, keepdims=True)
        better = (determinant > 0) & (error < least)
        scale, minimum = np.where(better, new_scale, scale), np.where(better, new_minimum, minimum)
        least = np.where(better, error, least)
    flat = span[..., 0] == 0
    return np.where(flat, np.float32(0), scale[..., 0]).astype(np.float32), -minimum[..., 0].astype(np.float32)


def to_q4_k(blocks: Floats) -> Bytes:
    """Super-blocks [N, 256] as [N, 144] bytes."""
    x = blocks.reshape(-1, 8, 32)
    scales, minima = _scale_and_minimum(x)
    top_scale, top_minimum = scales.max(-1, keepdims=True), minima.max(-1, keepdims=True)
    step_bytes, step = _half(np.maximum(top_scale, 0) / np.float32(63))
    base_bytes, base = _half(np.maximum(top_minimum, 0) / np.float32(63))
    sixty_three = np.float32(63) * np.ones_like(top_scale)
    ls = np.rint(scales * _over(sixty_three, top_scale)).clip(0, 63).astype(np.uint8)
    lm = np.rint(minima * _over(sixty_three, top_minimum)).clip(0, 63).astype(np.uint8)
    steps, offsets = (step * ls.astype(np.float32))[..., None], (base * lm.astype(np.float32))[..., None]
    codes = np.rint(_over((x + offsets).astype(np.float32), np.broadcast_to(steps, x.shape))).clip(0, 15).astype(np.uint8)
    first = ls[:, :4] | ((ls[:, 4:] >> 4) << 6)
    second = lm[:, :4] | ((lm[:, 4:] >> 4) << 6)
    low = (ls[:, 4:] & 15) | ((lm[:, 4:] & 15) << 4)
    pairs = codes.reshape(-1, 4, 2, 32)
    quants = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, 128)
    return np.concatenate((step_bytes, base_bytes, first, second, low, quants), axis=-1).astype(np.uint8)


def _signed_scale(x: Floats) -> Floats:
    """The scale of groups [.., 16] for codes -32..31."""
    index = np.abs(x).argmax(-1, keepdims=True)
    largest = np.take_along_axis(x, index, -1)
    weights = np.square(x)
    scale = best = None
    for step in (0, *range(-9, 0), *range(1, 10)):
        inverse = _over(np.float32(-(32 + 0.1 * step)) * np.ones_like(largest), largest)
        codes = np.rint(inverse * x).clip(-32, 31).astype(np.float32)
        sum_lx, sum_l2 = (weights * x * codes).sum(-1), (weights * codes * codes).sum(-1)
        found = _over(sum_lx, sum_l2)
        if scale is None or best is None:
            scale, best = found, found * sum_lx
            continue
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        scale, best = np.where(better, found, scale), np.where(better, found * sum_lx, best)
    assert scale is not None
    return np.where(np.abs(largest[..., 0]) < 1e-15, np.float32(0), scale).astype(np.float32)


def to_q6_k(blocks: Floats) -> Bytes:
    """Super-blocks [N, 256] as [N, 210] bytes."""
    x = blocks.reshape(-1, 16, 16)
    scales = _signed_scale(x)
    top = np.take_along_axis(scales, np.abs(scales).argmax(-1, keepdims=True), -1)
    top = np.where(np.abs(top) < 1e-15, np.float32(0), top)
    step_bytes, step = _half((top / np.float32(-128)).astype(np.float32))
    small = np.rint(scales * _over(np.float32(-128) * np.ones_like(top), top)).clip(-128, 127).astype(np.int8)
    steps = (step * small.astype(np.float32))[..., None]
    codes = np.rint(_over(x, np.broadcast_to(steps, x.shape))).clip(-32, 31).astype(np.int8)
    quants = (codes + np.int8(32)).astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = quants & 15, quants >> 4
    nibbles = np.concatenate((low[:, :, 0] | (low[:, :, 2] << 4), low[:, :, 1] | (low[:, :, 3] << 4)), axis=-1).reshape(-1, 128)
    pairs = (high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)).reshape(-1, 64)
    return np.concatenate((nibbles, pairs, small.view(np.uint8), step_bytes), axis=-1).astype(np.uint8)
