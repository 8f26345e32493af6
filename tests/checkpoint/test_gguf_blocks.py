"""Block formats against the gguf package: the same bits, for random blocks, extreme scales and special values."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.checkpoint.gguf_blocks import MAX_MAGNITUDE, QUANTISERS, dequantise, quantise
from herd.checkpoint.gguf_format import KIND_BY_CODE, KINDS, UNREAD_KINDS

KIND_NAMES = list(KINDS)


def peer_dequantise(data: np.ndarray, kind: str) -> np.ndarray:
    rows = data.reshape(-1, KINDS[kind].block_bytes)
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind]).reshape(-1)


def peer_quantise(values: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]).view(np.uint8).reshape(-1)


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.shape == theirs.shape
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def test_the_kinds_have_ggmls_codes_and_block_sizes() -> None:
    for name, kind in KINDS.items():
        assert gguf.GGMLQuantizationType[name] == kind.code
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (kind.block_values, kind.block_bytes)


def test_every_kind_of_ggml_is_read_or_named_in_the_refusal() -> None:
    assert {int(kind): kind.name for kind in gguf.GGMLQuantizationType} == {
        **{code: kind.name for code, kind in KIND_BY_CODE.items()},
        **UNREAD_KINDS,
    }


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_random_blocks_dequantise_to_the_same_bits(kind: str) -> None:
    data = np.random.default_rng(1).integers(0, 256, 700 * KINDS[kind].block_bytes, dtype=np.uint8)
    assert_same_bits(dequantise(data, kind), peer_dequantise(data, kind))


@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("fill", [0x00, 0x01, 0x7B, 0x7C, 0x7F, 0x80, 0xFB, 0xFC, 0xFF])
def test_extreme_scales_dequantise_to_the_same_bits(kind: str, fill: int) -> None:
    data = np.full(8 * KINDS[kind].block_bytes, fill, dtype=np.uint8)
    data[KINDS[kind].block_bytes :] ^= np.random.default_rng(fill).integers(0, 2, 7 * KINDS[kind].block_bytes, dtype=np.uint8)
    assert_same_bits(dequantise(data, kind), peer_dequantise(data, kind))


@given(kind=st.sampled_from(KIND_NAMES), data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_block_dequantises_to_the_same_bits(kind: str, data: st.DataObject) -> None:
    size = KINDS[kind].block_bytes
    block = np.frombuffer(data.draw(st.binary(min_size=2 * size, max_size=2 * size)), dtype=np.uint8)
    assert_same_bits(dequantise(block, kind), peer_dequantise(block, kind))


@pytest.mark.parametrize("kind", list(QUANTISERS))
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e-4, 1.0, 300.0, 6e4])
def test_random_values_quantise_to_the_same_bytes(kind: str, scale: float) -> None:
    values = (np.random.default_rng(2).standard_normal((64, 256)) * scale).astype(np.float32)
    values[0] = 0
    values[1] = -0.0
    np.testing.assert_array_equal(quantise(values, kind), peer_quantise(values, kind))


@given(kind=st.sampled_from(list(QUANTISERS)), values=st.lists(st.floats(-60000, 60000, width=16), min_size=32, max_size=32))
@settings(max_examples=150, deadline=None)
def test_any_values_quantise_to_the_same_bytes(kind: str, values: list[float]) -> None:
    block = np.array([values], dtype=np.float32)
    np.testing.assert_array_equal(quantise(block, kind), peer_quantise(block, kind))


def test_bf16_rounds_special_values_as_ggml_does() -> None:
    bits = [0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x7FC12345, 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x00000001, 0x80008001]
    values = np.array(bits, dtype=np.uint32).view(np.float32).reshape(1, -1)
    np.testing.assert_array_equal(quantise(values, "BF16"), peer_quantise(values, "BF16"))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_quantised_values_are_within_a_step_of_the_originals(kind: str) -> None:
    values = np.random.default_rng(3).standard_normal((16, 32)).astype(np.float32)
    steps = np.abs(values).max(axis=-1, keepdims=True) / {"Q8_0": 127, "Q4_0": 8}[kind]
    error = np.abs(dequantise(quantise(values, kind), kind).reshape(values.shape) - values)
    assert (error <= steps * {"Q8_0": 0.6, "Q4_0": 1.01}[kind]).all()


def test_values_too_small_for_an_fp16_scale_become_zero_and_not_nan() -> None:
    values = np.full((1, 32), 1e-44, dtype=np.float32)
    for kind in ("Q8_0", "Q4_0"):
        assert (dequantise(quantise(values, kind), kind) == 0).all()


@pytest.mark.parametrize(("kind", "limit"), list(MAX_MAGNITUDE.items()))
def test_the_largest_magnitude_of_a_kind_stays_finite_and_a_little_more_does_not(kind: str, limit: float) -> None:
    values = np.zeros((1, 32), dtype=np.float32)
    values[0, 0] = limit
    assert np.isfinite(dequantise(quantise(values, kind), kind)).all()
    values[0, 0] = limit * 1.003
    assert not np.isfinite(dequantise(quantise(values, kind), kind)).all()
