"""Every published parameter count, by closed form and by the built module; what a config refuses."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from herd.base.errors import ConfigError, NotFoundError
from herd.model.config import ModelConfig, RopeScaling, ffn_dim
from herd.model.presets import PRESETS, preset
from herd.model.transformer import Transformer

# total, without embedding and output, a layer, its attention, its ffn
COUNTS = {
    "llama-3.1-8b": (8_030_261_248, 6_979_588_096, 218_112_000, 41_943_040, 176_160_768),
    "llama-3.1-70b": (70_553_706_496, 68_452_360_192, 855_654_400, 150_994_944, 704_643_072),
    "llama-3.1-405b": (405_853_388_800, 401_650_696_192, 3_187_703_808, 570_425_344, 2_617_245_696),
    "llama-3.2-1b": (1_235_814_400, 973_146_112, 60_821_504, 10_485_760, 50_331_648),
    "llama-3.2-3b": (3_212_749_824, 2_818_747_392, 100_669_440, 25_165_824, 75_497_472),
}
SAME_SHAPE = {
    "llama-3-8b": "llama-3.1-8b",
    "llama-3-70b": "llama-3.1-70b",
    "llama-guard-3-8b": "llama-3.1-8b",
    "llama-guard-3-1b": "llama-3.2-1b",
}
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def meta_model(config: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


@pytest.mark.parametrize("name", COUNTS)
def test_presets_have_the_published_parameter_counts(name: str) -> None:
    config = preset(name)
    total, without_embedding, layer, attention, ffn = COUNTS[name]
    assert config.num_parameters == total
    assert config.num_parameters_without_embedding == without_embedding
    assert config.num_parameters_layer == layer
    assert config.num_parameters_attention == attention
    assert config.num_parameters_ffn == ffn
    assert config.num_parameters_embedding == total - without_embedding


@pytest.mark.parametrize(("name", "twin"), SAME_SHAPE.items())
def test_presets_of_one_shape_have_one_count(name: str, twin: str) -> None:
    assert preset(name).num_parameters == preset(twin).num_parameters == COUNTS[twin][0]


def test_every_llama_preset_is_counted_here() -> None:
    assert {name for name in PRESETS if name.startswith("llama")} == {*COUNTS, *SAME_SHAPE}


@pytest.mark.parametrize("name", PRESETS)
def test_the_built_module_has_the_shapes_and_the_count_of_its_config(name: str) -> None:
    config = preset(name)
    model = meta_model(config)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert shapes == config.parameter_shapes()
    assert sum(parameter.numel() for parameter in model.parameters()) == config.num_parameters
    assert sum(math.prod(shape) for shape in shapes.values()) == config.num_parameters


def test_building_405b_on_meta_allocates_nothing() -> None:
    model = meta_model(preset("llama-3.1-405b"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not list(model.buffers())
    assert model.device.type == "meta"
    assert sum(parameter.numel() for parameter in model.parameters()) == 405_853_388_800


@pytest.mark.parametrize(
    ("name", "layers", "heads", "kv_heads", "head_dim", "ffn", "factor"),
    [
        ("llama-3-8b", 32, 32, 8, 128, 14336, None),
        ("llama-3.1-8b", 32, 32, 8, 128, 14336, 8),
        ("llama-3.1-70b", 80, 64, 8, 128, 28672, 8),
        ("llama-3.1-405b", 126, 128, 8, 128, 53248, 8),
        ("llama-3.2-1b", 16, 32, 8, 64, 8192, 32),
        ("llama-3.2-3b", 28, 24, 8, 128, 8192, 32),
    ],
)
def test_presets_have_the_published_shapes(
    name: str, layers: int, heads: int, kv_heads: int, head_dim: int, ffn: int, factor: int | None
) -> None:
    config = preset(name)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (layers, heads, kv_heads)
    assert (config.head_dim, config.intermediate_size, config.vocab_size) == (head_dim, ffn, 128256)
    assert (config.rope_theta, config.rms_norm_eps) == (500000.0, 1e-5)
    assert (config.rope_scaling and config.rope_scaling.factor) == factor
    assert config.max_position_embeddings == (8192 if factor is None else 131072)
    assert config.tie_word_embeddings == name.startswith("llama-3.2")


@pytest.mark.parametrize(
    ("dim", "multiplier", "multiple_of", "expected"),
    [(4096, 1.3, 1024, 14336), (8192, 1.3, 4096, 28672), (16384, 1.2, 4096, 53248), (2048, 1.5, 256, 8192), (3072, 1.0, 256, 8192)],
)
def test_the_ffn_rule_gives_the_published_widths(dim: int, multiplier: float, multiple_of: int, expected: int) -> None:
    assert ffn_dim(dim, multiplier, multiple_of) == expected


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(NotFoundError, match=r"llama-3\.1-8B") as caught:
        preset("llama-3.1-8B")
    assert caught.value.hint == "did you mean 'llama-3.1-8b'?"


def test_tying_takes_the_output_matrix_away() -> None:
    tied, untied = ModelConfig(**TINY, tie_word_embeddings=True), ModelConfig(**TINY)
    assert untied.num_parameters - tied.num_parameters == 64 * 32
    assert "lm_head.weight" not in meta_model(tied).state_dict()
    assert meta_model(tied).head_weight is not None
    assert "lm_head.weight" in meta_model(untied).state_dict()


def test_flops_and_cache_bytes_follow_their_formulas() -> None:
    config = preset("llama-3.1-8b")
    matrices = 32 * (41_943_040 + 176_160_768) + 128256 * 4096
    assert config.forward_flops_per_token(0) == 2 * matrices
    assert config.forward_flops_per_token(1000) - config.forward_flops_per_token(0) == 4 * 32 * 4096 * 1000
    assert config.training_flops_per_token(8192) == 6 * matrices + 6 * 32 * 4096 * 8192
    assert config.kv_bytes_per_token() == 131_072
    assert preset("llama-3.1-405b").kv_bytes_per_token() == 516_096


def test_another_context_changes_nothing_else() -> None:
    config = ModelConfig(**TINY)
    longer = config.with_context(999)
    assert longer.max_position_embeddings == 999
    assert longer == dataclasses.replace(config, max_position_embeddings=999)


def test_a_config_is_frozen_and_keyword_only() -> None:
    config = ModelConfig(**TINY)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.vocab_size = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        ModelConfig(64, 32)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"hidden_size": -32}, "hidden_size is -32"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3 KV heads evenly"),
        ({"num_key_value_heads": 8}, "4 query heads cannot share 8 KV heads evenly"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"rope_theta": 1.0}, "rope_theta is 1.0"),
        ({"rope_theta": math.nan}, "rope_theta is nan"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_numbers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ModelConfig(**(TINY | changes))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 0.5}, "factor is 0.5"),
        ({"factor": math.nan}, "factor is nan"),
        ({"low_freq_factor": 4.0}, "0 < low_freq_factor < high_freq_factor"),
        ({"low_freq_factor": 0.0}, "0 < low_freq_factor < high_freq_factor"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_rope_scalings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        RopeScaling(**changes)
    assert caught.value.hint
