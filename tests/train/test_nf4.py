"""NF4 against its published table and its own definition, and the layer that unpacks it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_run import small_model  # pyright: ignore[reportMissingImports]

from herd.model.linear import Linear
from herd.train.adapters.config import LoraConfig
from herd.train.adapters.inject import adapted_layers, inject, merged_copy
from herd.train.adapters.layer import AdaptedLinear
from herd.train.adapters.nf4 import BLOCK, LEVELS, SECOND_BLOCK, dequantise, normal_levels, quantise


def test_the_table_is_the_published_one_and_that_of_the_normal_distribution() -> None:
    assert len(LEVELS) == 16 and LEVELS[7] == 0 and sorted(LEVELS) == list(LEVELS)
    np.testing.assert_allclose(normal_levels().numpy(), LEVELS, atol=2e-6)


def test_a_weight_costs_as_many_bits_as_the_paper_says() -> None:
    stored = quantise(torch.randn(1024, 1024))
    assert stored.size_bytes * 8 / 2**20 == pytest.approx(4 + 8 / BLOCK + 32 / (BLOCK * SECOND_BLOCK), abs=1e-4)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**31), st.sampled_from([1e-6, 0.02, 1.0, 300.0]))
def test_every_weight_comes_back_as_the_nearest_level_of_its_block(rows: int, columns: int, seed: int, scale: float) -> None:
    weight = scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    stored = quantise(weight)
    found = dequantise(stored)
    assert found.shape == weight.shape and bool(torch.isfinite(found).all())
    flat = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    back = torch.nn.functional.pad(found.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    for block, again in zip(flat, back, strict=True):
        largest = float(block.abs().max())
        # 0.152 is half the widest gap between levels; the blocks' scales are themselves rounded to 8 bits, of the spread between blocks.
        spread = float((flat.abs().amax(1) - flat.abs().amax(1).mean()).abs().max())
        assert float((block - again).abs().max()) <= 0.152 * largest + 0.14 * spread + 1e-6 * largest


def test_quantising_what_was_quantised_changes_next_to_nothing() -> None:
    once = dequantise(quantise(torch.randn(64, 256)))
    torch.testing.assert_close(dequantise(quantise(once)), once, rtol=0.08, atol=0.02)


def test_the_error_is_that_of_four_bits() -> None:
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    error = (dequantise(quantise(weight)) - weight).square().mean().sqrt()
    assert 0.08 < float(error) < 0.1  # relative to a standard deviation of one
    uniform = (weight / weight.abs().max() * 7).round() / 7 * weight.abs().max()
    assert float(error) < float((uniform - weight).square().mean().sqrt()) / 2


def test_the_layer_gives_outputs_and_gradients_of_the_unpacked_matrix() -> None:
    base = Linear(48, 40)
    layer = AdaptedLinear(base, LoraConfig(rank=3, nf4=True))
    x = torch.randn(2, 5, 48, requires_grad=True)
    upstream = torch.randn(2, 5, 40)
    (layer(x) * upstream).sum().backward()
    plain = x.detach().clone().requires_grad_()
    weight = dequantise(quantise(base.weight))
    torch.testing.assert_close(layer.base_weight(), weight)
    expected = plain @ (weight + layer.config.scale * layer.lora_B.weight @ layer.lora_A.weight).detach().t()
    torch.testing.assert_close(layer(x), expected)
    (expected * upstream).sum().backward()
    torch.testing.assert_close(x.grad, plain.grad)


def test_the_graph_does_not_keep_the_unpacked_matrix() -> None:
    layer = AdaptedLinear(Linear(256, 512), LoraConfig(rank=2, nf4=True))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part.numel() * part.element_size()) or part, lambda part: part):
        layer(torch.randn(3, 256, requires_grad=True))
    assert kept and max(kept) <= 256 * 512 // 2


def test_a_change_of_dtype_leaves_the_codes_alone() -> None:
    model = inject(small_model(), LoraConfig(rank=2, nf4=True))
    before = {name: layer.base_weight() for name, layer in adapted_layers(model)}
    model.to(torch.bfloat16)
    assert all(torch.equal(layer.base_weight(), before[name]) for name, layer in adapted_layers(model))
    assert merged_copy(model).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert bool(torch.isfinite(model(torch.tensor([[1, 2, 3]]))).all())
