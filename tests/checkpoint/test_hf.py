"""Hugging Face's layout: config forms, shards and index, and agreement with transformers and the safetensors library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from herd.base.errors import CheckpointError, ConfigError
from herd.checkpoint.hf import HfSource, write_hf
from herd.checkpoint.hf_config import SpecialIds, config_from_json, config_to_json, generation_config_to_json
from herd.checkpoint.load import ModelSource, load_model, save_model
from herd.checkpoint.safetensors_file import SafetensorsFile, write_safetensors
from herd.model.config import ModelConfig, RopeScaling
from herd.model.init import initialise
from herd.model.presets import PRESETS
from herd.model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=512,
    rope_scaling=RopeScaling(original_max_position_embeddings=64),
)
TIED = ModelConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    tie_word_embeddings=True,
)
TOKENS = torch.arange(40)[None] * 3 % 128


def tiny(config: ModelConfig = CONFIG, dtype: torch.dtype = torch.float32) -> Transformer:
    with torch.device("meta"):
        model = Transformer(config)
    return initialise(model, seed=5, dtype=dtype)


def old_form(**changes: Any) -> dict[str, Any]:
    """A config.json as transformers 4 wrote it."""
    data = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    }
    return data | changes


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_config_json(name: str) -> None:
    text = json.dumps(config_to_json(PRESETS[name], torch.bfloat16))
    assert config_from_json(json.loads(text), "config.json") == PRESETS[name]


def test_both_rope_forms_are_read() -> None:
    data = old_form()
    new = {key: value for key, value in data.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {"rope_theta": 500000.0, **data["rope_scaling"]}
    assert config_from_json(data, "old") == config_from_json(new, "new") == CONFIG


def test_missing_head_dim_and_kv_heads_follow_from_the_heads() -> None:
    data = old_form()
    del data["num_key_value_heads"]
    config = config_from_json(data, "config.json")
    assert (config.head_dim, config.num_key_value_heads, config.tie_word_embeddings) == (8, 4, False)


def test_old_type_key_and_default_rope_are_read() -> None:
    scaling = {**old_form()["rope_scaling"], "type": "llama3"}
    del scaling["rope_type"]
    assert config_from_json(old_form(rope_scaling=scaling), "config.json") == CONFIG
    assert config_from_json(old_form(rope_scaling=None), "config.json").rope_scaling is None
    assert config_from_json(old_form(rope_scaling={"rope_type": "default"}), "config.json").rope_scaling is None


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"architectures": ["LlamaForCausalM"]}, ConfigError, "LlamaForCausalM"),
    ({"model_type": "mistral"}, ConfigError, "mistral"),
    ({"architectures": None, "model_type": None}, ConfigError, "no architecture"),
    ({"attention_bias": True}, ConfigError, "attention_bias"),
    ({"mlp_bias": True}, ConfigError, "mlp_bias"),
    ({"mlp_bias": "no"}, ConfigError, "'no'"),
    ({"hidden_act": "gelu"}, ConfigError, "gelu"),
    ({"pretraining_tp": 2}, ConfigError, "pretraining_tp"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ConfigError, "yarn"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ConfigError, "low_freq_factor"),
    ({"rope_scaling": "llama3"}, ConfigError, "object"),
    ({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}, ConfigError, "rope_theta"),
    ({"max_position_embeddings": None}, ConfigError, "max_position_embeddings"),
    ({"hidden_size": 33}, ConfigError, "33"),
    ({"hidden_size": "32"}, ConfigError, "'32'"),
    ({"hidden_size": 2**60}, ConfigError, "hidden_size"),
    ({"num_hidden_layers": True}, ConfigError, "True"),
    ({"num_attention_heads": 0}, ConfigError, "num_attention_heads"),
    ({"rope_theta": 10**400}, ConfigError, "rope_theta"),
    ({"rms_norm_eps": "1e-5"}, ConfigError, "rms_norm_eps"),
    ({"quantization_config": {"quant_method": "fbgemm_fp8"}}, CheckpointError, "fbgemm_fp8"),
]


@pytest.mark.parametrize(("changes", "error", "fragment"), REFUSED, ids=[case[2] for case in REFUSED])
def test_a_config_that_herd_cannot_honour_is_refused_by_name(changes: dict[str, Any], error: type[Exception], fragment: str) -> None:
    with pytest.raises(error, match=fragment) as caught:
        config_from_json(old_form(**changes), "config.json")
    assert getattr(caught.value, "hint", None)


def test_the_nearest_architecture_is_offered() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_json(old_form(architectures=["LlamaForCausalM"]), "config.json")
    assert caught.value.hint == "did you mean 'LlamaForCausalLM'?"


def test_special_ids_reach_both_files() -> None:
    ids = SpecialIds(bos=128000, eos=(128001, 128008, 128009), pad=128004)
    for data in (config_to_json(CONFIG, torch.bfloat16, ids), generation_config_to_json(ids)):
        assert (data["bos_token_id"], data["eos_token_id"], data["pad_token_id"]) == (128000, [128001, 128008, 128009], 128004)
    assert config_to_json(CONFIG, torch.bfloat16)["eos_token_id"] is None
    sampling = generation_config_to_json(SpecialIds(eos=(0,)))
    assert sampling == {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_model_comes_back_bit_for_bit_in_shards(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny(dtype=dtype)
    write_hf(ModelSource(model), tmp_path, shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2 and {file.name for file in files} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == CONFIG.num_parameters * dtype.itemsize
    with HfSource(tmp_path) as source:
        assert source.config == CONFIG
        assert source.tensors["model.norm.weight"].stored == {4: "F32"}.get(dtype.itemsize, "F16" if dtype == torch.float16 else "BF16")
        for name, parameter in model.named_parameters():
            assert torch.equal(source.read(name), parameter) and torch.equal(source.map(name), parameter)


def test_a_tensor_over_the_limit_has_a_file_of_its_own(tmp_path: Path) -> None:
    write_hf(ModelSource(tiny()), tmp_path, shard_bytes=1)
    assert len(list(tmp_path.glob("model-*.safetensors"))) == len(CONFIG.parameter_shapes())
    load_model(tmp_path)


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_transformers_reads_what_herd_writes(tmp_path: Path, config: ModelConfig) -> None:
    model = tiny(config)
    save_model(model, tmp_path / "model")
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert isinstance(theirs.config, LlamaConfig) and theirs.config.tie_word_embeddings == config.tie_word_embeddings
    tokens = TOKENS % config.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def test_herd_reads_what_transformers_writes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={**rope, "original_max_position_embeddings": 64},
    )
    theirs = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path)(TOKENS), theirs(TOKENS).logits, atol=1e-5, rtol=1e-5)


def rewrite(folder: Path, change: dict[str, Tensor]) -> None:
    """Add or replace tensors in a one-file checkpoint."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(tensors | change, folder / "model.safetensors", metadata={"format": "pt"})


def test_stored_rotary_buffers_and_a_stored_tied_head_are_ignored(tmp_path: Path) -> None:
    model = tiny(TIED)
    write_hf(ModelSource(model), tmp_path)
    rewrite(tmp_path, {"lm_head.weight": model.head_weight.detach().clone(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    with HfSource(tmp_path) as source:
        assert list(source.tensors) and set(source.tensors) == set(TIED.parameter_shapes())


def test_a_stored_head_that_differs_from_its_embedding_is_refused(tmp_path: Path) -> None:
    model = tiny(TIED)
    write_hf(ModelSource(model), tmp_path)
    rewrite(tmp_path, {"lm_head.weight": model.head_weight.detach() + 1})
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        HfSource(tmp_path)


def test_writing_to_a_mapped_tensor_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    write_hf(ModelSource(tiny()), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with HfSource(tmp_path) as source:
        mapped = source.map("model.norm.weight")
    mapped.add_(1)
    assert mapped[0] == 2 and (tmp_path / "model.safetensors").read_bytes() == before


def test_the_safetensors_library_agrees(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "empty": torch.empty(0, 4), "scalar": torch.tensor(3.0)}
    write_safetensors(tmp_path / "ours", [(k, tuple(v.shape), v.dtype) for k, v in tensors.items()], iter(tensors.values()))
    theirs = safetensors.torch.load_file(tmp_path / "ours")
    safetensors.torch.save_file(tensors, tmp_path / "theirs")
    ours = SafetensorsFile(tmp_path / "theirs")
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor) and torch.equal(ours.read(name), tensor) and torch.equal(ours.map(name), tensor)
    ours.close()


def test_a_misaligned_tensor_is_read_all_the_same(tmp_path: Path) -> None:
    tensors = {"odd": torch.ones(3, dtype=torch.uint8), "floats": torch.randn(6)}
    write_safetensors(tmp_path / "file", [(k, tuple(v.shape), v.dtype) for k, v in tensors.items()], iter(tensors.values()))
    file = SafetensorsFile(tmp_path / "file")
    assert torch.equal(file.map("floats"), tensors["floats"])
    file.close()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_to_a_file_raises_anything_but_a_checkpoint_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    write_safetensors(path, [("a", (2, 3), torch.float32), ("b", (4,), torch.bfloat16)], [torch.zeros(2, 3), torch.zeros(4).bfloat16()])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        file = SafetensorsFile(path)
    except CheckpointError as error:
        assert error.hint
        return
    for name in file.entries:
        file.read(name)
    file.close()
