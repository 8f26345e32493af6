"""Rotary frequencies against golden numbers, and the rotation's own laws."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from herd.model.config import ModelConfig, RopeScaling
from herd.model.rope import apply_rope, rope_frequencies, rope_table

BASE = ModelConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=128
)


def config(head_dim: int, factor: float | None) -> ModelConfig:
    return replace(BASE, head_dim=head_dim, rope_scaling=None if factor is None else RopeScaling(factor=factor))


@pytest.mark.parametrize(
    ("head_dim", "factor", "golden"),
    [
        (
            128,
            8.0,
            {
                0: 1.0,
                1: 8.146172339e-1,
                28: 3.211445995e-3,
                29: 2.166570764e-3,
                34: 1.785078128e-4,
                35: 9.556212354e-5,
                63: 3.068925989e-7,
            },
        ),
        (64, 32.0, {0: 1.0, 15: 1.290547928e-3, 17: 9.708287803e-5, 31: 9.418306725e-8}),
        (128, 32.0, {0: 1.0, 29: 2.118406997e-3, 35: 2.389053088e-5, 63: 7.672314972e-8}),
    ],
)
def test_scaled_frequencies_are_the_golden_ones(head_dim: int, factor: float, golden: dict[int, float]) -> None:
    frequencies = rope_frequencies(config(head_dim, factor))
    assert frequencies.dtype == torch.float32
    for index, expected in golden.items():
        assert float(frequencies[index]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("head_dim", "factor", "unchanged", "blended", "divided"), [(128, 8.0, 29, 6, 29), (64, 32.0, 15, 3, 14), (128, 32.0, 29, 6, 29)]
)
def test_frequencies_are_kept_blended_or_divided(head_dim: int, factor: float, unchanged: int, blended: int, divided: int) -> None:
    plain, scaled = rope_frequencies(config(head_dim, None)), rope_frequencies(config(head_dim, factor))
    ratio = plain / scaled
    assert int((plain == scaled).sum()) == unchanged
    assert int((scaled == plain / factor).sum()) == divided
    between = (ratio > 1.0 + 1e-6) & (ratio < factor * (1 - 1e-6))
    assert int(between.sum()) == blended
    assert between.nonzero().flatten().tolist() == list(range(unchanged, unchanged + blended))


def test_factor_one_changes_nothing() -> None:
    torch.testing.assert_close(rope_frequencies(config(128, 1.0)), rope_frequencies(config(128, None)), rtol=1e-6, atol=0.0)


def test_plain_frequencies_are_powers_of_theta() -> None:
    expected = torch.tensor([500000.0 ** (-2 * i / 64) for i in range(32)])
    torch.testing.assert_close(rope_frequencies(config(64, None)), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("factor", [None, 8.0, 32.0])
def test_the_table_equals_that_of_transformers_up_to_the_last_position(head_dim: int, factor: float | None) -> None:
    ours = config(head_dim, factor)
    parameters: dict[str, float | str | int] = {"rope_type": "default", "rope_theta": ours.rope_theta}
    if factor is not None:
        parameters |= {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        parameters |= {"original_max_position_embeddings": 8192}
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(hidden_size=32, num_attention_heads=1, head_dim=head_dim, max_position_embeddings=131072, rope_parameters=parameters)
    )
    positions = torch.tensor([[0, 1, 8191, 8192, 65535, 131071]])
    cos, sin = rope_table(positions, rope_frequencies(ours))
    cos_theirs, sin_theirs = theirs(torch.zeros(1), positions)
    torch.testing.assert_close(cos[:, :, 0], cos_theirs, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(sin[:, :, 0], sin_theirs, rtol=0.0, atol=1e-6)


def test_the_angle_of_the_last_position_is_right_to_float32() -> None:
    frequencies = rope_frequencies(config(128, 8.0))
    cos, _ = rope_table(torch.tensor([[131071]]), frequencies)
    exact = torch.tensor([math.cos(float(torch.tensor(131071.0) * f)) for f in frequencies])
    torch.testing.assert_close(cos[0, 0, 0, :64], exact, rtol=0.0, atol=1e-6)


def rotate(x: torch.Tensor, position: int) -> torch.Tensor:
    table = rope_table(torch.tensor([[position]]), rope_frequencies(config(x.shape[-1], 8.0)))
    return apply_rope(x[None, None, None, :], *table)[0, 0, 0]


def test_position_zero_rotates_nothing() -> None:
    x = torch.randn(128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotate(x, 0), x)


def test_component_i_pairs_with_i_plus_half() -> None:
    x = torch.zeros(64)
    x[3] = 1.0
    turned = rotate(x, 5)
    angle = 5 * float(rope_frequencies(config(64, 8.0))[3])
    assert turned.nonzero().flatten().tolist() == [3, 35]
    assert float(turned[3]) == pytest.approx(math.cos(angle), abs=1e-6)
    assert float(turned[35]) == pytest.approx(math.sin(angle), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(query=st.integers(0, 2000), key=st.integers(0, 2000), shift=st.integers(0, 5000), seed=st.integers(0, 99))
def test_scores_depend_on_the_distance_alone(query: int, key: int, shift: int, seed: int) -> None:
    q, k = torch.randn(2, 64, generator=torch.Generator().manual_seed(seed))
    here = rotate(q, query) @ rotate(k, key)
    there = rotate(q, query + shift) @ rotate(k, key + shift)
    torch.testing.assert_close(here, there, rtol=0.0, atol=0.03)
    torch.testing.assert_close(rotate(q, query).norm(), q.norm(), rtol=1e-5, atol=0.0)


def test_the_rotation_is_computed_in_float32_and_returned_in_the_input_dtype() -> None:
    x = torch.randn(1, 4, 2, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    table = rope_table(torch.tensor([[0, 1, 8192, 131071]]), rope_frequencies(config(64, 32.0)))
    turned = apply_rope(x, *table)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, apply_rope(x.float(), *table).bfloat16())


def test_one_row_of_positions_serves_a_whole_batch() -> None:
    x = torch.randn(3, 4, 2, 64, generator=torch.Generator().manual_seed(2))
    one = rope_table(torch.arange(4)[None], rope_frequencies(config(64, None)))
    many = rope_table(torch.arange(4).expand(3, 4), rope_frequencies(config(64, None)))
    assert torch.equal(apply_rope(x, *one), apply_rope(x, *many))
