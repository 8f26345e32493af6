"""The encoder against transformers' DeBERTa-v2, its counts, and its checkpoint against files that are wrong."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from herd.base.errors import CheckpointError, ConfigError, ContextOverflowError, HerdError, NotFoundError, UsageError
from herd.checkpoint.encoder import encoder_config_from_json, encoder_config_to_json, load_encoder, save_encoder
from herd.model.encoder import EncoderClassifier, distance_bucket, initialise_encoder, relative_index
from herd.model.encoder_config import EncoderConfig, prompt_guard_86m

TINY = EncoderConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=512,
    max_relative_positions=64,
    position_buckets=16,
    id2label=("BENIGN", "INJECTION", "JAILBREAK"),
    initializer_range=0.2,
)
SHAPES: dict[str, tuple[EncoderConfig, int]] = {
    "short text, every distance exact": (TINY, 8),
    "length over the bucket range": (TINY, 150),
    "the published buckets at 512 tokens": (
        replace(TINY, position_buckets=256, max_relative_positions=512, num_attention_heads=2, hidden_size=24),
        512,
    ),
    "one head, one layer, two classes": (replace(TINY, num_attention_heads=1, num_hidden_layers=1, id2label=("a", "b")), 40),
    "three layers, narrow ffn, head dim 64": (
        replace(TINY, hidden_size=128, num_attention_heads=2, intermediate_size=20, num_hidden_layers=3, layer_norm_eps=1e-5),
        33,
    ),
    "buckets that are not a power of two": (replace(TINY, position_buckets=12, max_relative_positions=50), 100),
    "one token": (TINY, 1),
}


def build(config: EncoderConfig, seed: int = 0) -> EncoderClassifier:
    with torch.device("meta"):
        model = EncoderClassifier(config)
    initialise_encoder(model, seed=seed)
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            if name.endswith(("bias", "LayerNorm.weight")):
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    return model.eval()


def oracle(model: EncoderClassifier) -> DebertaV2ForSequenceClassification:
    raw = encoder_config_to_json(model.config, torch.float32)
    theirs = DebertaV2ForSequenceClassification(DebertaV2Config(**raw)).eval()
    theirs.load_state_dict(model.state_dict())
    return theirs


def tokens(config: EncoderConfig, batch: int, length: int) -> Tensor:
    return torch.randint(0, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_logits_equal_those_of_transformers(name: str) -> None:
    config, length = SHAPES[name]
    model = build(config)
    tokens_BT = tokens(config, 3, length)
    logits = model(tokens_BT)
    assert logits.dtype == torch.float32
    assert relative_error(logits, oracle(model)(tokens_BT).logits) < 1e-4


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_logits_of_padded_rows_equal_those_of_transformers(name: str) -> None:
    config, length = SHAPES[name]
    model = build(config, seed=1)
    tokens_BT = tokens(config, 3, length)
    lengths = torch.tensor([length, max(1, length // 2), 1])
    valid_BT = torch.arange(length) < lengths[:, None]
    theirs = oracle(model)(tokens_BT, attention_mask=valid_BT.long()).logits
    assert relative_error(model(tokens_BT, valid_BT), theirs) < 1e-4


@torch.no_grad()
def test_padding_does_not_change_a_row() -> None:
    model = build(TINY)
    tokens_BT = tokens(TINY, 2, 20)
    valid_BT = torch.arange(20) < torch.tensor([[20], [13]])
    padded = model(tokens_BT, valid_BT)
    torch.testing.assert_close(padded[1:], model(tokens_BT[1:, :13]), rtol=1e-5, atol=1e-6)
    other = torch.where(valid_BT, tokens_BT, 7)
    assert torch.equal(model(other, valid_BT), padded)


def test_prompt_guard_has_its_published_parameter_count() -> None:
    config = prompt_guard_86m()
    with torch.device("meta"):
        model = EncoderClassifier(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert config.num_parameters == sum(parameter.numel() for parameter in model.parameters()) == 278_811_651
    assert config.num_parameters_embedding == 192_768_000
    assert config.num_parameters - config.num_parameters_embedding == 86_043_651


@pytest.mark.parametrize(
    "config", [prompt_guard_86m(), TINY, replace(TINY, num_hidden_layers=1, id2label=("a", "b"))], ids=["guard", "tiny", "one"]
)
def test_parameter_shapes_are_those_of_the_module_and_of_transformers(config: EncoderConfig) -> None:
    with torch.device("meta"):
        ours = EncoderClassifier(config)
        theirs = DebertaV2ForSequenceClassification(DebertaV2Config(**encoder_config_to_json(config, torch.float32)))
    shapes = {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()}
    assert shapes == config.parameter_shapes() == {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert config.num_parameters == sum(math.prod(shape) for shape in shapes.values())


def test_buckets_are_exact_to_half_and_monotonic_to_the_last() -> None:
    config = prompt_guard_86m()
    buckets = [distance_bucket(distance, config) for distance in range(512)]
    assert buckets[:129] == list(range(129))
    assert buckets == sorted(buckets)
    assert buckets[511] == 255
    assert buckets[256] == 192


def test_relative_index_is_antisymmetric_about_the_middle_row() -> None:
    index = relative_index(40, TINY)
    middle = TINY.position_buckets
    assert torch.equal(index - middle, middle - index.T)
    assert index.diagonal().unique().tolist() == [middle]
    far = relative_index(512, TINY)
    assert (int(far.min()), int(far.max())) == (0, 2 * middle - 1)


def test_initial_weights_depend_on_seed_and_name_alone() -> None:
    first = initialise_encoder(EncoderClassifier(TINY), seed=3).state_dict()
    deeper = initialise_encoder(EncoderClassifier(replace(TINY, num_hidden_layers=4)), seed=3).state_dict()
    assert all(torch.equal(tensor, deeper[name]) for name, tensor in first.items())
    other = initialise_encoder(EncoderClassifier(TINY), seed=4).state_dict()
    assert not torch.equal(first["pooler.dense.weight"], other["pooler.dense.weight"])


def test_dropout_acts_in_training_only_and_gradients_reach_every_parameter() -> None:
    model = build(TINY)
    tokens_BT = tokens(TINY, 2, 12)
    with torch.no_grad():
        assert torch.equal(model(tokens_BT), model(tokens_BT))
    model.train()
    logits = model(tokens_BT)
    assert not torch.equal(logits, model(tokens_BT))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    assert all(parameter.grad is not None and bool(parameter.grad.abs().sum() > 0) for parameter in model.parameters())


def test_a_text_over_the_limit_is_refused() -> None:
    with pytest.raises(ContextOverflowError, match="513 tokens is over the encoder's 512"):
        build(TINY)(tokens(TINY, 1, 513))


def test_padding_on_the_left_is_refused() -> None:
    valid_BT = torch.tensor([[True, True], [False, True]])
    with pytest.raises(ConfigError, match="first token, which is padding") as caught:
        build(TINY)(tokens(TINY, 2, 2), valid_BT)
    assert caught.value.hint == "pad on the right"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size 32 cannot be split evenly over 5 heads"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"position_buckets": 15}, "position_buckets is 15"),
        ({"max_relative_positions": 9}, "max_relative_positions is 9"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0"),
        ({"cls_dropout": "much"}, "cls_dropout is 'much'"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps is 0.0"),
        ({"layer_norm_eps": math.nan}, "layer_norm_eps is nan"),
        ({"pad_token_id": 96}, "pad_token_id is 96"),
        ({"id2label": ()}, "id2label is ()"),
        ({"id2label": ("a", "a")}, "must hold distinct names"),
    ],
)
def test_impossible_numbers_are_refused(change: dict[str, Any], message: str) -> None:
    # Past the run-time type check on purpose: config.json can hold anything.
    fields: dict[str, Any] = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(TINY)} | change
    with pytest.raises((ConfigError, TypeError)) as caught:
        EncoderConfig(**fields)
    assert isinstance(caught.value, TypeError) or message in str(caught.value)


# The checkpoint.


@pytest.fixture(name="folder")
def saved(tmp_path: Path) -> Path:
    save_encoder(build(TINY), tmp_path / "guard")
    return tmp_path / "guard"


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    raw = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in raw.items() if value != "absent"}))


def rename(folder: Path, old: str, new: str | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensor = tensors.pop(old)
    save_file(tensors | ({} if new is None else {new: tensor}), folder / "model.safetensors")


def test_saving_and_loading_keeps_every_bit(folder: Path) -> None:
    model, loaded = build(TINY), load_encoder(folder)
    assert loaded.config == TINY
    assert not loaded.training
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_transformers_reads_what_herd_saves(folder: Path) -> None:
    theirs = DebertaV2ForSequenceClassification.from_pretrained(folder).eval()
    assert theirs.config.id2label == {0: "BENIGN", 1: "INJECTION", 2: "JAILBREAK"}
    tokens_BT = tokens(TINY, 2, 30)
    assert relative_error(load_encoder(folder)(tokens_BT), theirs(tokens_BT).logits) < 1e-4


@torch.no_grad()
def test_herd_reads_what_transformers_saves(tmp_path: Path) -> None:
    raw = encoder_config_to_json(replace(TINY, max_relative_positions=512), torch.float32)
    raw["max_relative_positions"] = -1
    theirs = DebertaV2ForSequenceClassification(DebertaV2Config(**raw)).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_encoder(tmp_path)
    assert ours.config.max_relative_positions == 512
    tokens_BT = tokens(TINY, 2, 200)
    assert relative_error(ours(tokens_BT), theirs(tokens_BT).logits) < 1e-4


def test_loading_casts_to_the_dtype_asked_for_and_else_keeps_the_stored_one(tmp_path: Path, folder: Path) -> None:
    half = load_encoder(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half(tokens(TINY, 1, 5)).dtype == torch.float32
    save_encoder(half, tmp_path / "half")
    assert load_encoder(tmp_path / "half").dtype == torch.bfloat16
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_loaded_weights_do_not_follow_later_changes_of_the_file(folder: Path) -> None:
    loaded = load_encoder(folder)
    before = loaded.pooler.dense.weight.clone()
    file = folder / "model.safetensors"
    with file.open("r+b") as handle:
        handle.seek(-4000, 2)
        handle.write(b"\x40" * 4000)
    assert torch.equal(loaded.pooler.dense.weight, before)


def test_saving_over_a_folder_needs_overwrite(folder: Path) -> None:
    with pytest.raises(UsageError, match="exists and is not empty"):
        save_encoder(build(TINY), folder)
    save_encoder(build(TINY, seed=9), folder, overwrite=True)
    assert torch.equal(load_encoder(folder).pooler.dense.weight, build(TINY, seed=9).pooler.dense.weight)


def test_a_dtype_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="float64 cannot be saved"):
        save_encoder(build(TINY).double(), tmp_path / "wide")
    assert not (tmp_path / "wide").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, r"names the architecture \['LlamaForCausalLM'\]"),
        ({"architectures": ["DebertaV2ForMaskedLM"]}, "names the architecture"),
        ({"architectures": "absent"}, "names the architecture None"),
        ({"conv_kernel_size": 3}, "conv_kernel_size 3"),
        ({"pos_att_type": "absent"}, "pos_att_type None"),
        ({"pos_att_type": ["c2p"]}, "pos_att_type"),
        ({"pos_att_type": "p2c|c2p|p2p"}, "pos_att_type"),
        ({"relative_attention": False}, "relative_attention False"),
        ({"relative_attention": "absent"}, "relative_attention False"),
        ({"position_biased_input": True}, "position_biased_input True"),
        ({"share_att_key": "absent"}, "share_att_key False"),
        ({"norm_rel_ebd": "none"}, "norm_rel_ebd 'none'"),
        ({"type_vocab_size": 2}, "type_vocab_size 2"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'"),
        ({"embedding_size": 16}, "embedding_size 16 but hidden_size 32"),
        ({"attention_head_size": 16}, "sets attention_head_size"),
        ({"position_buckets": "absent"}, "lacks position_buckets"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ({"id2label": ["a"]}, "id2label"),
        ({"hidden_size": 64}, "pooler_hidden_size 32 but hidden_size 64"),
        ({"hidden_size": 64, "pooler_hidden_size": 64}, r"has shape \[.*\], its config says"),
        ({"num_hidden_layers": 3}, "has no tensor deberta.encoder.layer.2"),
        ({"num_hidden_layers": 1}, "that its config has no place for"),
        ({"num_hidden_layers": 10**12}, "has 1,000,000,000,000 layers, but"),
        ({"vocab_size": 10**15}, "config says"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_options_and_shapes_that_differ_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_encoder(folder)
    assert caught.value.hint


def test_both_spellings_of_pos_att_type_are_read(folder: Path) -> None:
    edit(folder, pos_att_type="P2C|c2p")
    assert load_encoder(folder).config == TINY


@settings(max_examples=150, deadline=None)
@given(
    key=st.sampled_from(sorted(encoder_config_to_json(TINY, torch.float32))),
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.text(max_size=3), max_size=3),
)
def test_any_value_in_the_config_is_read_or_refused_by_an_error_of_herd(key: str, value: Any) -> None:
    try:
        encoder_config_from_json(encoder_config_to_json(TINY, torch.float32) | {key: value}, "config.json")
    except HerdError as error:
        assert error.hint


@pytest.mark.parametrize(
    "changes",
    [{"num_attention_heads": 5}, {"position_buckets": 7}, {"hidden_dropout_prob": 2.0}, {"layer_norm_eps": "tiny"}, {"vocab_size": 1.5}],
    ids=lambda value: next(iter(value)),
)
def test_impossible_numbers_in_the_file_raise_an_error_of_herd(folder: Path, changes: dict[str, Any]) -> None:
    edit(folder, **changes)
    with pytest.raises(HerdError):
        load_encoder(folder)


def test_a_missing_tensor_is_named_with_the_nearest_one(folder: Path) -> None:
    rename(folder, "pooler.dense.weight", "pooler.dens.weight")
    with pytest.raises(CheckpointError, match=r"pooler\.dense\.weight") as caught:
        load_encoder(folder)
    assert caught.value.hint is not None
    assert "pooler.dens.weight" in caught.value.hint


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    rename(folder, "classifier.bias", None)
    with pytest.raises(CheckpointError, match=r"classifier\.bias"):
        load_encoder(folder)


def test_the_position_ids_of_old_files_are_ignored(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"deberta.embeddings.position_ids": torch.arange(512)[None]}, folder / "model.safetensors")
    assert load_encoder(folder).config == TINY


def test_integer_weights_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"] = torch.zeros(3, dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"classifier\.bias .*I32"):
        load_encoder(folder)


@pytest.mark.parametrize("size", [0, 7, 100, 5000])
def test_a_file_that_is_cut_short_is_refused(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError):
        load_encoder(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"architectures": NaN}', "[" * 100_000])
def test_a_config_that_is_not_an_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError):
        load_encoder(folder)


def test_absent_files_are_not_found(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(NotFoundError):
        load_encoder(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(NotFoundError, match="safetensors"):
        load_encoder(folder)


def test_the_published_config_of_prompt_guard_is_the_preset() -> None:
    published = {
        "architectures": ["DebertaV2ForSequenceClassification"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "id2label": {"0": "BENIGN", "1": "INJECTION", "2": "JAILBREAK"},
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "label2id": {"BENIGN": 0, "INJECTION": 1, "JAILBREAK": 2},
        "layer_norm_eps": 1e-07,
        "max_position_embeddings": 512,
        "max_relative_positions": -1,
        "model_type": "deberta-v2",
        "norm_rel_ebd": "layer_norm",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 0,
        "pooler_dropout": 0,
        "pooler_hidden_act": "gelu",
        "pooler_hidden_size": 768,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "position_buckets": 256,
        "relative_attention": True,
        "share_att_key": True,
        "type_vocab_size": 0,
        "vocab_size": 251000,
    }
    assert encoder_config_from_json(published, "config.json") == prompt_guard_86m()
