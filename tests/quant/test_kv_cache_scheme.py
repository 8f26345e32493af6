"""The scales of an 8-bit cache beside the weights: what they are, what is read, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from herd.base.errors import CheckpointError, HerdError, UsageError
from herd.checkpoint.load import load_model
from herd.checkpoint.open import open_checkpoint
from herd.checkpoint.quant_hf import QuantHfSource
from herd.checkpoint.verify import verify
from herd.model.attention import CausalCore
from herd.quant.run import quantise_checkpoint
from herd.quant.schemes import Settings


class Seen:
    """Keys and values of a model, by layer."""

    def __init__(self) -> None:
        self.largest: dict[tuple[int, str], float] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for name, tensor in (("k_scale", k), ("v_scale", v)):
            self.largest[layer, name] = max(self.largest.get((layer, name), 0.0), float(tensor.abs().max()))
        return CausalCore()(layer, q, k, v)


@pytest.fixture(scope="module")
def folder(model_folder: Path, tokens_BT: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("cache") / "fp8"
    written = quantise_checkpoint(model_folder, target, Settings(scheme="int8", kv_cache="fp8"), tokens_BT=tokens_BT)
    with open_checkpoint(target) as source:
        assert written.size.total_bytes == sum(info.size_bytes for info in source.tensors.values()) + 2 * 4 * 4
    return target


@torch.no_grad()
def test_a_scale_makes_the_largest_number_the_largest_code(folder: Path, tokens_BT: Tensor) -> None:
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["kv_cache_scheme"] == {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
    model, seen = load_model(folder, dtype="float32"), Seen()
    rope = model._rope(torch.arange(tokens_BT.shape[1])[None])  # pyright: ignore[reportPrivateUsage]
    for row in tokens_BT:
        hidden = model.model.embed_tokens(row[None])
        for block in model.model.layers:
            hidden = block(hidden, rope, seen)
    with open_checkpoint(folder) as source:
        assert isinstance(source, QuantHfSource) and source.cache_kind == "fp8"
        scales = source.cache_scales()
    assert len(scales) == 8
    for (layer, name), largest in seen.largest.items():
        assert scales[f"model.layers.{layer}.self_attn.{name}"] * 448 == pytest.approx(largest, rel=1e-3)
    assert verify(folder).ok


def edited(folder: Path, target: Path, change: Any) -> Path:
    shutil.copytree(folder, target)
    data = json.loads((target / "config.json").read_text())
    change(data["quantization_config"])
    (target / "config.json").write_text(json.dumps(data))
    return target


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ({"num_bits": 4, "type": "int"}, "kv_cache_scheme in config.json has 4 bits of type 'int'"),
        ({"num_bits": 8, "type": "float", "strategy": "channel"}, "strategy 'channel'"),
        ({"num_bits": 8, "type": "float", "symmetric": False}, "kv_cache_scheme"),
        ({"num_bits": "many"}, "num_bits"),
    ],
)
def test_caches_that_are_refused(scheme: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    broken = edited(folder, tmp_path / "m", lambda quant: quant.update(kv_cache_scheme=scheme))
    with pytest.raises(HerdError, match=message):
        load_model(broken)


def test_scales_and_config_have_to_agree(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="k_scale"):
        load_model(edited(folder, tmp_path / "a", lambda quant: quant.pop("kv_cache_scheme")))
    quantise_checkpoint(model_folder, tmp_path / "b", Settings(scheme="int8"))
    scheme = {"num_bits": 8, "type": "int"}
    with pytest.raises(CheckpointError, match=r"has no model\.layers\.0\.self_attn\.k_scale, though kv_cache_scheme"):
        load_model(edited(tmp_path / "b", tmp_path / "c", lambda quant: quant.update(kv_cache_scheme=scheme)))
    load_model(edited(tmp_path / "b", tmp_path / "d", lambda quant: quant.update(kv_cache_scheme={**scheme, "dynamic": True})))


def test_a_damaged_scale_is_named(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["model.layers.1.self_attn.v_scale"] = torch.tensor([float("nan")])
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"v_scale is nan, a scale is positive and finite"):
        load_model(tmp_path / "m")


def test_it_needs_text(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs text to calibrate on"):
        quantise_checkpoint(model_folder, tmp_path / "m", Settings(scheme="int8", kv_cache="int8"))
    with pytest.raises(UsageError, match="Meta's recipe says nothing of the cache"):
        Settings(scheme="fp8-meta", kv_cache="fp8")
    with pytest.raises(UsageError, match="there is no cache of 'int4'"):
        Settings(scheme="int8", kv_cache="int4")
