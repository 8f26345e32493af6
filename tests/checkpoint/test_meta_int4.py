"""Meta's 4-bit releases of Llama 3.2, from files made here by their definition: numbers, adapters, the rotation, and damage by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herd.base.errors import CheckpointError, ConfigError
from herd.checkpoint.hf import main_dtype
from herd.checkpoint.load import load_model
from herd.checkpoint.meta import MetaSource
from herd.checkpoint.meta_int4 import SCHEME, hadamard_rows
from herd.checkpoint.meta_layout import as_pairs
from herd.checkpoint.verify import verify

DIM, FFN, LAYERS, HEADS, KV, VOCAB, GROUP, RANK = 32, 64, 2, 4, 2, 48, 16, 3
WIDTHS = {
    **dict.fromkeys(("attention.wq", "attention.wo"), (DIM, DIM)),
    **dict.fromkeys(("attention.wk", "attention.wv"), (DIM // 2, DIM)),
    **dict.fromkeys(("feed_forward.w1", "feed_forward.w3"), (FFN, DIM)),
    "feed_forward.w2": (DIM, FFN),
}
State = dict[str, Tensor]


def params(**quant: Any) -> dict[str, Any]:
    found = {"dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV, "vocab_size": VOCAB, "ffn_dim": FFN, "multiple_of": 1}
    return {**found, "norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True, **quant}


def spinquant() -> dict[str, Any]:
    return params(quantization_args={"scheme": SCHEME, "group_size": GROUP, "spinquant": True})


def qlora() -> dict[str, Any]:
    return params(quantization_args={"scheme": SCHEME, "group_size": GROUP}, lora_args={"rank": RANK, "scale": 2.0})


def state(*, lora: bool) -> State:
    generator = torch.Generator().manual_seed(0)

    def codes(n: int, k: int, most: int) -> Tensor:
        return torch.randint(-most, most, (n, k), generator=generator, dtype=torch.int8)

    found: State = {"norm.weight": torch.ones(DIM, dtype=torch.bfloat16)}
    for name in ("tok_embeddings", "output"):
        found[f"{name}.weight"] = codes(VOCAB, DIM, 127)
        found[f"{name}.scales"] = torch.rand(VOCAB, 1, generator=generator) / 100
    for layer in range(LAYERS):
        for norm in ("attention_norm", "ffn_norm"):
            found[f"layers.{layer}.{norm}.weight"] = torch.rand(DIM, generator=generator).bfloat16()
        for name, (n, k) in WIDTHS.items():
            key = f"layers.{layer}.{name}"
            found[f"{key}.weight"] = codes(n, k, 8)
            found[f"{key}.scales"] = torch.rand(n, k // GROUP, generator=generator) / 50
            if lora:
                found[f"{key}.zeros"] = torch.zeros(n, k // GROUP)
                found[f"{key}.adaptor.A.weight"] = torch.randn(RANK, k, generator=generator).bfloat16()
                found[f"{key}.adaptor.B.weight"] = torch.randn(n, RANK, generator=generator).bfloat16()
    return found


def written(folder: Path, said: dict[str, Any], tensors: State) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(said))
    torch.save(tensors, folder / "consolidated.00.pth")
    return folder


def numbers(tensors: State, key: str) -> Tensor:
    """(code - zero) x scale, element by element."""
    weight, scales = tensors[f"{key}.weight"], tensors[f"{key}.scales"]
    out = torch.empty(weight.shape)
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            out[row, column] = float(weight[row, column]) * float(scales[row, column // GROUP])
    return out


def test_qlora_is_codes_and_adapters(tmp_path: Path) -> None:
    tensors = state(lora=True)
    with MetaSource(written(tmp_path / "m", qlora(), tensors)) as source:
        key = "layers.1.feed_forward.w1"
        added = tensors[f"{key}.adaptor.B.weight"].float() @ tensors[f"{key}.adaptor.A.weight"].float()
        assert torch.allclose(source.read("model.layers.1.mlp.gate_proj.weight"), numbers(tensors, key) + 2.0 * added, atol=1e-5)
        key = "layers.0.attention.wq"
        whole = numbers(tensors, key) + 2.0 * (tensors[f"{key}.adaptor.B.weight"].float() @ tensors[f"{key}.adaptor.A.weight"].float())
        stored = as_pairs(source.read("model.layers.0.self_attn.q_proj.weight"), HEADS).reshape(DIM, DIM)
        assert torch.allclose(stored, whole, atol=1e-5), "rows of q are in Hugging Face's order"
        assert torch.equal(source.read("lm_head.weight"), tensors["output.weight"].float() * tensors["output.scales"])
        assert main_dtype(source) == torch.bfloat16 and not source.config.tie_word_embeddings
        assert source.tensors["lm_head.weight"].stored == "I8"


def test_spinquant_computes_what_the_rotated_form_computes(tmp_path: Path) -> None:
    """Down meets H x at run time in Meta's form; here H is in the matrix."""
    tensors = state(lora=False)
    folder = written(tmp_path / "m", spinquant(), tensors)
    assert verify(folder).ok
    model = load_model(folder, dtype="float32")
    x = torch.randn(5, FFN)
    h = torch.ones(1, 1)
    while len(h) < FFN:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    expected = (x @ h.t() / FFN**0.5) @ numbers(tensors, "layers.0.feed_forward.w2").t()
    assert torch.allclose(model.model.layers[0].mlp.down_proj(x), expected, atol=1e-4)
    assert torch.isfinite(model(torch.randint(0, VOCAB, (1, 7)))).all()


@settings(max_examples=20, deadline=None)
@given(power=st.integers(0, 7), seed=st.integers(0, 1000))
def test_the_rotation_undoes_itself(power: int, seed: int) -> None:
    weight = torch.randn(3, 2**power, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(hadamard_rows(hadamard_rows(weight)), weight, atol=1e-5)
    assert torch.allclose(hadamard_rows(weight).square().sum(), weight.square().sum(), rtol=1e-4)


KEY = "layers.0.feed_forward.w2"


def changed(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[State], None]:
    def change(tensors: State) -> None:
        tensors[name] = value(tensors[name])

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.__delitem__(f"{KEY}.scales"), "there is no layers.0.feed_forward.w2.scales"),
        (
            changed(f"{KEY}.scales", lambda scales: scales[:, :1].clone()),
            r"w2\.scales is torch.float32 \[32, 1\], it must be of floats \[32, 4\]",
        ),
        (changed(f"{KEY}.scales", lambda scales: scales * float("nan")), r"w2\.scales holds numbers that are NaN"),
        (changed(f"{KEY}.weight", lambda codes: codes + 9), r"w2\.weight holds codes outside -8 to 7"),
        (
            lambda tensors: tensors.__delitem__("layers.1.attention.wk.adaptor.B.weight"),
            "there is no layers.1.attention.wk.adaptor.B.weight",
        ),
        (lambda tensors: tensors.update({"norm.scales": torch.ones(1)}), "norm.scales belongs to no quantised matrix"),
        (changed("output.scales", lambda scales: scales[:3].clone()), r"output\.scales is torch.float32 \[3, 1\]"),
    ],
    ids=["no scales", "other groups", "nan", "codes", "no adapter", "left over", "head"],
)
def test_damage_is_named(damage: Callable[[State], None], message: str, tmp_path: Path) -> None:
    tensors = state(lora=True)
    damage(tensors)
    with pytest.raises(CheckpointError, match=message):
        MetaSource(written(tmp_path / "m", qlora(), tensors))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (params(quantization_args={"scheme": "int3", "group_size": 32}), "names the scheme 'int3'"),
        (params(quantization_args={"scheme": SCHEME, "group_size": 0}), "group_size 0 and LoRA rank 0"),
        (params(lora_args={"rank": 4, "scale": 1.0}), "lora_args without quantization_args"),
    ],
)
def test_configs_that_are_refused(said: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        MetaSource(written(tmp_path / "m", said, state(lora=False)))


def test_groups_and_rotations_that_do_not_fit(tmp_path: Path) -> None:
    tensors = state(lora=False)
    odd = params(quantization_args={"scheme": SCHEME, "group_size": 24})
    with pytest.raises(CheckpointError, match="which are no whole groups of 24"):
        MetaSource(written(tmp_path / "a", odd, tensors))
    codes = params(quantization_args={"scheme": SCHEME, "group_size": GROUP})
    plain = {key: tensor for key, tensor in tensors.items() if not key.endswith(".scales")}
    with pytest.raises(CheckpointError, match=r"there is no tok_embeddings\.scales"):
        MetaSource(written(tmp_path / "b", codes, plain))
    with pytest.raises(CheckpointError, match=r"is stored as torch\.int8"):
        MetaSource(written(tmp_path / "c", params(), plain))
