"""The block formats of GGUF: values to bytes and back, vectorised over many blocks at once.

Bit for bit what ggml's reference code gives (float32 arithmetic, fp16 scales). Knows bytes and values, no tensors and no files.
Layouts, from ggml-common.h and ggml-quants.c; d and m are fp16 scales, q the small integers, low nibbles first:
    Q8_0  d q[32 x i8]                x = d q
    Q4_0  d q[16]                     x = d (q - 8)               value i in a low nibble, value i + 16 in a high one
    Q4_1  d m q[16]                   x = d q + m
    Q5_0  d h[4] q[16]                x = d (q + 16 h - 16)       h holds the fifth bits
    Q5_1  d m h[4] q[16]              x = d (q + 16 h) + m
    Q4_K  d m s[12] q[128]            x = d s_j q - m t_j         8 groups of 32; s packs eight 6-bit scales and eight minima
    Q5_K  d m s[12] h[32] q[128]      x = d s_j (q + 16 h) - m t_j
    Q6_K  q[128] h[64] s[16 x i8] d   x = d s_j (q + 16 h - 32)   16 groups of 16
Shapes: N blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from herd.checkpoint.gguf_format import KINDS
from herd.checkpoint.gguf_k_quants import to_q4_k, to_q6_k

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

NIBBLE_SHIFTS = np.array([0, 4], dtype=np.uint8)[:, None]
PAIR_SHIFTS = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
BIT_SHIFTS = np.arange(8, dtype=np.uint8)[:, None]

MAX_F16 = 65504.0
MAX_MAGNITUDE: Mapping[str, float] = {
    "F16": 65519.0, "BF16": 3.39e38, "Q8_0": MAX_F16 * 127, "Q4_0": MAX_F16 * 8,
    "Q4_K": MAX_F16 * 63, "Q6_K": MAX_F16 * 128,
}  # fmt: skip
"""The largest absolute value each kind can hold; beyond it the fp16 value or scale is infinite."""


def dequantise(data: Bytes, kind: str) -> Floats:
    """The float32 values of whole blocks.

    Args:
        data: bytes of whole blocks, any shape, contiguous.
        kind: one of `gguf_format.KINDS`.

    Returns:
        One dimension: the values of all blocks in order.
    """
    blocks = data.reshape(-1, KINDS[kind].block_bytes)
    # An infinite scale times zero is NaN in ggml too; the warning says nothing more.
    with np.errstate(all="ignore"):
        return _DEQUANTISERS[kind](blocks).reshape(-1)


def quantise(values: Floats, kind: str) -> Bytes:
    """The bytes of values: F32, F16, BF16, Q8_0, Q4_0, Q4_K or Q6_K.

    Args:
        values: float32, whole blocks, any shape. Finite and within `MAX_MAGNITUDE`, or the scales overflow as ggml's do.
        kind: what to store.

    Returns:
        One dimension: the bytes of all blocks in order.
    """
    blocks = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, KINDS[kind].block_values)
    with np.errstate(all="ignore"):
        return QUANTISERS[kind](blocks).reshape(-1)


def _half(data: Bytes) -> Floats:
    """Fp16 scales as float32, [N 1]."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def _nibbles(data: Bytes, group: int) -> Bytes:
    """Low nibbles of each `group` bytes, then their high nibbles; [N 2*bytes]."""
    return ((data.reshape(len(data), -1, 1, group) >> NIBBLE_SHIFTS) & np.uint8(15)).reshape(len(data), -1)


def _fifth_bits(data: Bytes) -> Bytes:
    """Four bytes of bits, lowest first, as 16s; [N 32]."""
    return np.unpackbits(data, axis=-1, bitorder="little") << np.uint8(4)


def _centred(quants: Bytes, zero: int) -> Floats:
    """Small integers less the one that stands for zero."""
    return (quants.astype(np.int16) - np.int16(zero)).astype(np.float32)


def _from_f32(blocks: Bytes) -> Floats:
    return blocks.view("<f4").astype(np.float32)


def _from_bf16(blocks: Bytes) -> Floats:
    return (blocks.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _from_q8_0(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _from_q4_0(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * _centred(_nibbles(blocks[:, 2:], 16), 8)


def _from_q4_1(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * _nibbles(blocks[:, 4:], 16).astype(np.float32) + _half(blocks[:, 2:4])


def _from_q5_0(blocks: Bytes) -> Floats:
    quants = _nibbles(blocks[:, 6:], 16) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks[:, :2]) * _centred(quants, 16)


def _from_q5_1(blocks: Bytes) -> Floats:
    quants = _nibbles(blocks[:, 8:], 16) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks[:, :2]) * quants.astype(np.float32) + _half(blocks[:, 2:4])


def _scales_and_minima(packed: Bytes) -> tuple[Floats, Floats]:
    """The eight 6-bit scales and eight 6-bit minima of 12 bytes, each [N 8].

    Bytes 0 to 3 and 4 to 7 hold the first four of each in their low 6 bits and the top 2 bits of the last four above;
    bytes 8 to 11 hold the low 4 bits of the last four, scales in the low nibble.
    """
    first, second, low = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    top = np.uint8(0x30)
    scales = np.concatenate((first & 63, (low & 15) | ((first >> 2) & top)), axis=-1)
    minima = np.concatenate((second & 63, (low >> 4) | ((second >> 2) & top)), axis=-1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _k_values(blocks: Bytes, quants: Bytes) -> Floats:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    steps = (_half(blocks[:, :2]) * scales)[:, :, None]
    offsets = (_half(blocks[:, 2:4]) * minima)[:, :, None]
    values = steps * quants.reshape(len(blocks), 8, 32).astype(np.float32)
    return np.subtract(values, offsets, dtype=np.float32)


def _from_q4_k(blocks: Bytes) -> Floats:
    return _k_values(blocks, _nibbles(blocks[:, 16:], 32))


def _from_q5_k(blocks: Bytes) -> Floats:
    high = ((blocks[:, None, 16:48] >> BIT_SHIFTS) & np.uint8(1)) << np.uint8(4)
    return _k_values(blocks, _nibbles(blocks[:, 48:], 32) | high.reshape(len(blocks), -1))


def _from_q6_k(blocks: Bytes) -> Floats:
    low = _nibbles(blocks[:, :128], 64)
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> PAIR_SHIFTS) & np.uint8(3)
    quants = _centred(low | (high.reshape(len(blocks), -1) << np.uint8(4)), 32)
    steps = _half(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return steps[:, :, None] * quants.reshape(len(blocks), 16, 16)


_DEQUANTISERS: dict[str, Callable[[Bytes], Floats]] = {
    "F32": _from_f32,
    "F16": _half,
    "BF16": _from_bf16,
    "Q8_0": _from_q8_0,
    "Q4_0": _from_q4_0,
    "Q4_1": _from_q4_1,
    "Q5_0": _from_q5_0,
    "Q5_1": _from_q5_1,
    "Q4_K": _from_q4_k,
    "Q5_K": _from_q5_k,
    "Q6_K": _from_q6_k,
}


def _as_bytes(values: npt.NDArray[Any], code: str) -> Bytes:
    return np.ascontiguousarray(values.astype(code)).view(np.uint8)


def _to_bf16(blocks: Floats) -> Bytes:
    """Round to nearest, ties to even; a NaN keeps its sign and top bits and becomes quiet."""
    bits = blocks.view(np.uint32)
    quiet = (bits & np.uint32(0xFFFF0000)) | np.uint32(0x00400000)
    bits = np.where((bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000), quiet, bits)
    return _as_bytes((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16), "<u2")


def _inverse(steps: Floats) -> Floats:
    """1/d, and 0 where it would be infinite: a block of zeros, or of values so small that their fp16 scale is zero anyway."""
    inverse = np.float32(1) / steps
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _to_q8_0(blocks: Floats) -> Bytes:
    """Steps d = max |x| / 127; ties round away from zero."""
    steps = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(steps)
    size = np.abs(scaled)
    floor = np.floor(size)
    quants = np.sign(scaled) * (floor + np.floor(np.float32(2) * (size - floor)))
    return np.concatenate((_as_bytes(steps, "<f2"), _as_bytes(quants, "i1")), axis=-1)


def _to_q4_0(blocks: Floats) -> Bytes:
    """Steps d = x / -8 of the x of largest magnitude, so that it lands on the one level without a mirror image."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)
    steps = largest / np.float32(-8)
    quants = np.trunc(blocks * _inverse(steps) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    return np.concatenate((_as_bytes(steps, "<f2"), quants[:, :16] | (quants[:, 16:] << np.uint8(4))), axis=-1)


QUANTISERS: dict[str, Callable[[Floats], Bytes]] = {
    "F32": lambda blocks: _as_bytes(blocks, "<f4"),
    "F16": lambda blocks: _as_bytes(blocks, "<f2"),
    "BF16": _to_bf16,
    "Q8_0": _to_q8_0,
    "Q4_0": _to_q4_0,
    "Q4_K": to_q4_k,
    "Q6_K": to_q6_k,
}
"""The kinds that herd writes."""
