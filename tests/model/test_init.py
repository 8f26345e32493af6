"""Initial weights: a function of the seed and the parameter's name, and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from herd.model.config import ModelConfig
from herd.model.init import initialise, parameter_generator
from herd.model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16
)


def weights(config: ModelConfig = CONFIG, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return initialise(Transformer(config), seed=seed, dtype=dtype).state_dict()


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, again, other = weights(), weights(), weights(seed=1)
    assert first.keys() == CONFIG.parameter_shapes().keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not any(torch.equal(tensor, other[name]) for name, tensor in first.items() if not name.endswith("norm.weight"))


def test_no_two_matrices_are_alike() -> None:
    heads = [tuple(tensor.flatten()[:8].tolist()) for name, tensor in weights().items() if not name.endswith("norm.weight")]
    assert len(set(heads)) == len(heads)


def test_a_model_built_on_meta_gets_the_same_weights() -> None:
    with torch.device("meta"):
        model = Transformer(CONFIG)
    filled = initialise(model, seed=0).state_dict()
    assert all(tensor.device.type == "cpu" for tensor in filled.values())
    assert all(torch.equal(tensor, filled[name]) for name, tensor in weights().items())


def test_weights_do_not_depend_on_the_order_of_construction() -> None:
    class Backwards(Transformer):
        def named_parameters(
            self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
        ) -> Iterator[tuple[str, nn.Parameter]]:
            return reversed(list(super().named_parameters(prefix, recurse, remove_duplicate)))

    backwards = initialise(Backwards(CONFIG), seed=0).state_dict()
    assert all(torch.equal(tensor, backwards[name]) for name, tensor in weights().items())


def test_weights_that_two_models_share_by_name_are_equal() -> None:
    small, tied = weights(replace(CONFIG, num_hidden_layers=2)), weights(replace(CONFIG, tie_word_embeddings=True))
    whole = weights()
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"):
        assert torch.equal(small[name], whole[name])
        assert torch.equal(tied[name], whole[name])
    # Writers to the residual stream differ by their depth scale alone.
    name = "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(small[name] / math.sqrt(2), whole[name], rtol=1e-6, atol=0.0)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    model = Transformer(CONFIG)
    state = torch.get_rng_state()
    initialise(model, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "model.layers.3.mlp.gate_proj.weight"])
def test_matrices_have_the_configured_standard_deviation_cut_at_three(name: str) -> None:
    tensor = weights()[name]
    assert float(tensor.std()) == pytest.approx(0.02, rel=0.05)
    assert float(tensor.mean()) == pytest.approx(0.0, abs=0.001)
    assert float(tensor.abs().max()) <= 0.06


@pytest.mark.parametrize("name", ["self_attn.o_proj", "mlp.down_proj"])
def test_residual_writers_are_scaled_by_depth(name: str) -> None:
    tensor = weights()[f"model.layers.2.{name}.weight"]
    assert float(tensor.std()) == pytest.approx(0.02 / math.sqrt(8), rel=0.05)


def test_norms_begin_at_one() -> None:
    norms = {name: tensor for name, tensor in weights().items() if name.endswith("norm.weight")}
    assert len(norms) == 2 * CONFIG.num_hidden_layers + 1
    assert all(bool((tensor == 1.0).all()) for tensor in norms.values())


def test_bfloat16_weights_are_the_rounded_float32_ones() -> None:
    narrow = weights(dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in narrow.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor.bfloat16(), narrow[name]) for name, tensor in weights().items())


def test_a_generator_is_a_function_of_seed_and_name() -> None:
    def draw(seed: int, name: str) -> float:
        return float(torch.rand(1, generator=parameter_generator(seed, name)))

    assert draw(3, "a") == draw(3, "a")
    assert len({draw(3, "a"), draw(4, "a"), draw(3, "b"), draw(13, "a"), draw(1, "3/a")}) == 5


def test_the_seeds_of_parameters_never_change() -> None:
    """Pinned, so that a run can be repeated with a later herd."""
    assert parameter_generator(0, "model.embed_tokens.weight").initial_seed() == 5669377478142347175
