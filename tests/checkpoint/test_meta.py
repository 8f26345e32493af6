"""Meta's layout: published sizes, any degree of sharding and back, repeated KV heads, params.json, and the same logits."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaForCausalLM

from herd.base.errors import ConfigError, UsageError
from herd.checkpoint.load import ModelSource, load_model, save_model
from herd.checkpoint.meta import MetaSource, meta_shard_bytes, meta_shard_shapes, write_meta
from herd.checkpoint.meta_layout import as_pairs, rows_to_meta
from herd.checkpoint.meta_params import find_ffn_rule, params_from_json, params_to_json
from herd.model.config import ModelConfig, RopeScaling, ffn_dim
from herd.model.init import initialise
from herd.model.presets import PRESETS, preset
from herd.model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=4,
    rope_scaling=RopeScaling(),
)
TIED = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    tie_word_embeddings=True,
)
TOKENS = torch.arange(60)[None] * 7 % 128


def tiny(config: ModelConfig = CONFIG, dtype: torch.dtype = torch.float32) -> Transformer:
    with torch.device("meta"):
        model = Transformer(config)
    return initialise(model, seed=3, dtype=dtype)


@pytest.mark.parametrize(
    ("name", "shards", "fp8", "exact", "published"),
    [
        ("llama-3.1-405b", 8, False, 101_470_601_216, 101_470_976_045),
        ("llama-3.1-405b", 16, False, 51_267_928_064, 51_268_302_389),
        ("llama-3.1-405b", 8, True, 60_903_292_928, 60_903_742_309),
    ],
)
def test_shard_sizes_are_the_published_ones(name: str, shards: int, fp8: bool, exact: int, published: int) -> None:
    config = preset(name)
    table = meta_shard_shapes(config, shards, fp8)
    summed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in table.values())
    assert meta_shard_bytes(config, shards, fp8=fp8) == summed == exact
    assert 0 <= published - exact < 500_000


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shards", [1, 2, 8, 16])
@pytest.mark.parametrize("fp8", [False, True])
def test_the_closed_form_is_the_sum_of_the_shapes(name: str, shards: int, fp8: bool) -> None:
    config = preset(name)
    try:
        table = meta_shard_shapes(config, shards, fp8)
    except UsageError:
        with pytest.raises(UsageError):
            meta_shard_bytes(config, shards, fp8=fp8)
        return
    assert meta_shard_bytes(config, shards, fp8=fp8) == sum(math.prod(shape) * dtype.itemsize for shape, dtype in table.values())


def test_half_rows_and_adjacent_rows_hold_the_same_pairs() -> None:
    heads, head_dim = 3, 8
    weight = torch.arange(heads * head_dim)[:, None].float()
    meta = rows_to_meta(weight, heads)
    for head in range(heads):
        for pair in range(head_dim // 2):
            row = head * head_dim
            assert meta[row + 2 * pair] == weight[row + pair] and meta[row + 2 * pair + 1] == weight[row + head_dim // 2 + pair]
    back = torch.empty_like(weight)
    as_pairs(back, heads).copy_(meta.view(heads, head_dim // 2, 2, 1))
    assert torch.equal(back, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shards", [1, 2, 4, 8, 16])
def test_every_degree_of_sharding_comes_back_bit_for_bit(tmp_path: Path, shards: int, dtype: torch.dtype) -> None:
    model = tiny(dtype=dtype)
    write_meta(ModelSource(model), tmp_path, shards=shards)
    assert len(list(tmp_path.glob("consolidated.*.pth"))) == shards
    with MetaSource(tmp_path) as source:
        assert source.config == CONFIG
        assert list(source.tensors) == list(CONFIG.parameter_shapes())
        for name, parameter in model.named_parameters():
            assert torch.equal(source.read(name), parameter), name


def test_shards_hold_what_the_table_says_and_little_else(tmp_path: Path) -> None:
    write_meta(ModelSource(tiny(dtype=torch.bfloat16)), tmp_path, shards=4)
    shard = torch.load(tmp_path / "consolidated.02.pth", weights_only=True)
    assert {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in shard.items()} == meta_shard_shapes(CONFIG, 4)
    assert (tmp_path / "consolidated.02.pth").stat().st_size - meta_shard_bytes(CONFIG, 4) < 20_000


def test_over_as_many_shards_as_kv_heads_each_head_is_stored_twice(tmp_path: Path) -> None:
    model = tiny()
    write_meta(ModelSource(model), tmp_path, shards=16)
    assert json.loads((tmp_path / "params.json").read_text())["n_kv_heads"] == 16
    shards = [torch.load(tmp_path / f"consolidated.{rank:02d}.pth", weights_only=True) for rank in range(16)]
    values = model.get_parameter("model.layers.0.self_attn.v_proj.weight")
    for rank, shard in enumerate(shards):
        assert torch.equal(shard["layers.0.attention.wv.weight"], values[rank // 2 * 4 : rank // 2 * 4 + 4])


def test_heads_that_are_no_copies_stay(tmp_path: Path) -> None:
    config = ModelConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=8
    )
    model = tiny(config)
    with torch.no_grad():
        keys = model.get_parameter("model.layers.0.self_attn.k_proj.weight")
        keys[8:16] = keys[0:8]
        keys[24:32] = keys[16:24]
    write_meta(ModelSource(model), tmp_path, shards=4)
    with MetaSource(tmp_path) as source:
        assert source.config.num_key_value_heads == 4
        assert torch.equal(
            source.read("model.layers.0.self_attn.k_proj.weight"), model.get_parameter("model.layers.0.self_attn.k_proj.weight")
        )


@pytest.mark.parametrize("shards", [1, 16])
def test_a_model_loaded_from_metas_files_has_transformers_logits(tmp_path: Path, shards: int) -> None:
    model = tiny()
    save_model(model, tmp_path / "hf")
    (tmp_path / "meta").mkdir()
    write_meta(ModelSource(model), tmp_path / "meta", shards=shards)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "meta")(TOKENS), theirs(TOKENS).logits, atol=1e-5, rtol=1e-5)


def test_metas_own_formula_gives_the_same_scores() -> None:
    """Rotating adjacent components as complex numbers equals rotating halves after the rows are reordered."""
    torch.manual_seed(0)
    heads, head_dim, dim, position = 2, 8, 16, 5
    query, key, x, y = torch.randn(heads * head_dim, dim), torch.randn(heads * head_dim, dim), torch.randn(dim), torch.randn(dim)
    angles = position * 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)

    def halves(weight: Tensor, value: Tensor) -> Tensor:
        first, second = (weight @ value).view(heads, 2, head_dim // 2).unbind(1)
        return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)

    def adjacent(weight: Tensor, value: Tensor) -> Tensor:
        pairs = torch.view_as_complex((rows_to_meta(weight, heads) @ value).view(heads, head_dim // 2, 2).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones(head_dim // 2), angles)).flatten(1)

    still = (key @ y).view(heads, head_dim)
    still_meta = (rows_to_meta(key, heads) @ y).view(heads, head_dim)
    torch.testing.assert_close((halves(query, x) * still).sum(-1), (adjacent(query, x) * still_meta).sum(-1))


def test_a_tied_head_is_stored_once_under_both_keys(tmp_path: Path) -> None:
    model = tiny(TIED, torch.bfloat16)
    write_meta(ModelSource(model), tmp_path, shards=2)
    assert "output.weight" in torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    assert (tmp_path / "consolidated.00.pth").stat().st_size - meta_shard_bytes(TIED, 2) < 20_000
    with MetaSource(tmp_path) as source:
        assert source.config == TIED and "lm_head.weight" not in source.tensors


def test_files_without_an_output_matrix_are_tied(tmp_path: Path) -> None:
    write_meta(ModelSource(tiny(TIED)), tmp_path)
    shard = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    del shard["output.weight"]
    torch.save(shard | {"rope.freqs": torch.ones(4)}, tmp_path / "consolidated.00.pth")
    with MetaSource(tmp_path) as source:
        assert source.config.tie_word_embeddings and set(source.tensors) == set(TIED.parameter_shapes())


def test_separate_equal_matrices_are_tied_only_if_the_params_say_so(tmp_path: Path) -> None:
    write_meta(ModelSource(tiny(TIED)), tmp_path)
    shard = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    shard["output.weight"] = shard["tok_embeddings.weight"].clone()
    torch.save(shard, tmp_path / "consolidated.00.pth")
    assert not MetaSource(tmp_path).config.tie_word_embeddings
    params = json.loads((tmp_path / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps(params | {"tie_word_embeddings": True}))
    assert MetaSource(tmp_path).config.tie_word_embeddings


def test_params_may_be_nested_and_leave_the_vocabulary_to_the_tensors(tmp_path: Path) -> None:
    write_meta(ModelSource(tiny()), tmp_path, shards=2)
    params = json.loads((tmp_path / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps({"model": params | {"vocab_size": -1}, "seed": 1}))
    with MetaSource(tmp_path) as source:
        assert source.config == CONFIG


def test_files_below_original_are_found(tmp_path: Path) -> None:
    (tmp_path / "original").mkdir()
    write_meta(ModelSource(tiny()), tmp_path / "original")
    assert load_model(tmp_path).config == CONFIG


def test_the_checklist_has_the_md5_sum_of_every_file(tmp_path: Path) -> None:
    write_meta(ModelSource(tiny()), tmp_path, shards=2)
    lines = (tmp_path / "checklist.chk").read_text().splitlines()
    assert {line.split("  ")[1] for line in lines} == {"params.json", "consolidated.00.pth", "consolidated.01.pth"}
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.md5((tmp_path / name).read_bytes(), usedforsecurity=False).hexdigest() == digest


@pytest.mark.parametrize("name", PRESETS)
def test_params_json_gives_every_preset_back(name: str) -> None:
    config = preset(name)
    params = params_from_json(json.loads(json.dumps(params_to_json(config, stored_kv_heads=config.num_key_value_heads))))
    back = params.to_config(vocab_size=params.vocab_size, num_kv_heads=params.num_kv_heads, tied=config.tie_word_embeddings)
    assert back == config


def test_published_models_have_published_params_and_no_keys_of_ours() -> None:
    params = params_to_json(preset("llama-3.1-405b"), stored_kv_heads=8)
    assert params == {
        "dim": 16384,
        "n_layers": 126,
        "n_heads": 128,
        "n_kv_heads": 8,
        "vocab_size": 128256,
        "ffn_dim_multiplier": 1.2,
        "multiple_of": 4096,
        "norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "use_scaled_rope": True,
    }


@given(dim=st.integers(1, 40_000), width=st.integers(1, 200_000))
def test_the_ffn_rule_is_found_for_any_width(dim: int, width: int) -> None:
    assert ffn_dim(dim, *find_ffn_rule(dim, width)) == width


@pytest.mark.parametrize(
    ("config", "shards", "fragment"),
    [
        (CONFIG, 0, "0 shards"),
        (CONFIG, 3, "vocab_size 128"),
        (CONFIG, 64, "intermediate_size 96"),
        (CONFIG, 32, "num_attention_heads 16"),
    ],
)
def test_impossible_shards_are_refused_with_the_numbers(tmp_path: Path, config: ModelConfig, shards: int, fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment) as caught:
        write_meta(ModelSource(tiny(config)), tmp_path, shards=shards)
    assert caught.value.hint and not list(tmp_path.iterdir())


def test_models_that_metas_format_cannot_say_are_refused(tmp_path: Path) -> None:
    wide = ModelConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16
    )
    with pytest.raises(UsageError, match="head_dim 16"):
        write_meta(ModelSource(tiny(wide)), tmp_path)
    with pytest.raises(UsageError, match="original_max_position_embeddings=64"):
        params_to_json(
            ModelConfig(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                rope_scaling=RopeScaling(original_max_position_embeddings=64),
            ),
            stored_kv_heads=2,
        )
    with pytest.raises(ConfigError, match="image encoder"):
        params_from_json({"dim": 64, "n_heads": 4, "vision_chunk_size": 448})
