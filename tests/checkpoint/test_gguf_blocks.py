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
PEERS = [kind for kind in QUANTISERS if not kind.endswith("_K")]
"""What the gguf package quantises too; it reads k-quants, but makes none."""


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


@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e-4, 1.0, 300.0, 6e4])
def test_random_values_quantise_to_the_same_bytes(kind: str, scale: float) -> None:
    values = (np.random.default_rng(2).standard_normal((64, 256)) * scale).astype(np.float32)
    values[0] = 0
    values[1] = -0.0
    np.testing.assert_array_equal(quantise(values, kind), peer_quantise(values, kind))


@given(kind=st.sampled_from(PEERS), values=st.lists(st.floats(-60000, 60000, width=16), min_size=32, max_size=32))
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


@pytest.mark.parametrize(("kind", "limit"), [(kind, MAX_MAGNITUDE[kind]) for kind in ("Q8_0", "Q4_0")])
def test_the_largest_magnitude_of_a_kind_stays_finite_and_a_little_more_does_not(kind: str, limit: float) -> None:
    values = np.zeros((1, 32), dtype=np.float32)
    values[0, 0] = limit
    assert np.isfinite(dequantise(quantise(values, kind), kind)).all()
    values[0, 0] = limit * 1.003
    assert not np.isfinite(dequantise(quantise(values, kind), kind)).all()


@pytest.mark.parametrize(("kind", "expected"), [("Q8_0", 0.0054), ("Q4_0", 0.0860)])
def test_published_errors(kind: str, expected: float) -> None:
    values = (np.random.default_rng(0).standard_normal((256, 4096)) * 0.02).astype(np.float32)
    assert relative_error(values, kind) == pytest.approx(expected, abs=0.0004)


def relative_error(values: np.ndarray, kind: str) -> float:
    found = dequantise(quantise(values, kind), kind).reshape(values.shape)
    return float(np.sqrt(np.square(found - values).mean() / np.square(values).mean()))


@pytest.mark.parametrize(("kind", "most"), [("Q4_K", 0.078), ("Q6_K", 0.021)])
@pytest.mark.parametrize("scale", [0.005, 0.02, 30.0])
def test_k_quants_round_well_and_the_gguf_package_reads_them(kind: str, most: float, scale: float) -> None:
    values = (np.random.default_rng(4).standard_normal((32, 512)) * scale).astype(np.float32)
    values[3] += 2 * scale
    data = quantise(values, kind)
    assert len(data) == values.size // 256 * KINDS[kind].block_bytes
    assert_same_bits(dequantise(data, kind), peer_dequantise(data, kind))
    assert relative_error(values, kind) < most * (1.1 if scale < 0.01 else 1.0), "fp16 steps are coarse where values are small"


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_k_quants_of_odd_blocks(kind: str) -> None:
    """Zeros, one value alone, all equal, all positive, all negative, an outlier: nothing is made up and nothing overflows."""
    values = np.zeros((7, 256), dtype=np.float32)
    values[1, 17] = 3.0
    values[2] = 2.5
    values[3] = np.linspace(1, 2, 256)
    values[4] = np.linspace(-2, -1, 256)
    values[5] = np.linspace(-1, 1, 256)
    values[5, 100] = 900.0
    values[6] = -1e-30
    found = dequantise(quantise(values, kind), kind).reshape(values.shape)
    assert np.isfinite(found).all()
    assert not found[0].any()
    largest = np.abs(values).max(axis=-1, keepdims=True)
    assert (np.abs(found - values) <= largest / {"Q4_K": 10, "Q6_K": 25}[kind] + 1e-6).all()


def test_k_quants_find_again_what_they_hold() -> None:
    """Levels are fixed points: what was read from a Q6_K block is stored without loss."""
    values = (np.random.default_rng(5).standard_normal((16, 256))).astype(np.float32)
    once = dequantise(quantise(values, "Q6_K"), "Q6_K")
    twice = dequantise(quantise(once.reshape(16, 256), "Q6_K"), "Q6_K")
    assert np.abs(once - twice).max() < 0.02 * np.abs(once).max()
