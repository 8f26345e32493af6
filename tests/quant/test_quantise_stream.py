"""Whole quantisations of a small model: what is written is what was computed, killed runs end with the same bytes, the engine runs it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herd.base.errors import CheckpointError, DoesNotFitError, UsageError
from herd.checkpoint.hf import HfSource
from herd.checkpoint.load import load_model
from herd.checkpoint.open import open_checkpoint
from herd.checkpoint.quant_hf import QuantHfSource
from herd.checkpoint.quant_parts import encode
from herd.checkpoint.safetensors_file import SafetensorsFile
from herd.checkpoint.verify import verify
from herd.model.quant_linear import quantised_matrices
from herd.quant.quality import compare
from herd.quant.rotate import RotatedSource
from herd.quant.run import as_sequences, quantise_checkpoint
from herd.quant.schemes import Settings, schemes_for, size_of
from herd.quant.stream import work_folder

EVERY = [
    Settings(scheme="fp8"),
    Settings(scheme="fp8-meta"),
    Settings(scheme="int8"),
    Settings(scheme="int8", method="gptq", head=True),
    Settings(scheme="w8a8"),
    Settings(scheme="w8a8", method="smooth"),
    Settings(scheme="int4", group=32),
    Settings(scheme="int4", group=64, symmetric=False),
    Settings(scheme="int4", group=32, method="gptq"),
    Settings(scheme="int4", group=32, method="gptq", act_order=False, symmetric=False),
    Settings(scheme="int4", group=32, method="awq"),
    Settings(scheme="int4", group=32, rotate=True),
    Settings(scheme="auto", group=64, budget_bits=5.0),
]


def label(settings: Settings) -> str:
    return f"{settings.scheme}-{settings.method}-{settings.group}{'-rotate' * settings.rotate}"


@pytest.mark.parametrize("wanted", EVERY, ids=label)
def test_every_scheme_is_written_and_read_back(wanted: Settings, model_folder: Path, tokens_BT: Tensor, tmp_path: Path) -> None:
    target = tmp_path / "out"
    written = quantise_checkpoint(model_folder, target, wanted, tokens_BT=tokens_BT)
    assert not work_folder(target).exists()
    assert verify(target).ok
    with open_checkpoint(target) as source:
        assert isinstance(source, QuantHfSource)
        assert {name.removesuffix(".weight") for name in source.quantised} == set(written.schemes)
        assert sum(info.size_bytes for info in source.tensors.values()) == written.size.total_bytes
        assert {name.removesuffix(".weight"): replace(scheme) for name, scheme in source.quantised.items()} == written.schemes
        file = SafetensorsFile(target / "model.safetensors")
        for name, scheme in source.quantised.items():
            for part, tensor in encode(source.read_quantised(name), scheme).items():
                stored = file.read(f"{name.removesuffix('.weight')}.{part}")
                assert torch.equal(stored.view(torch.uint8), tensor.contiguous().view(torch.uint8)), (
                    f"{name} {part} comes back byte for byte"
                )
        file.close()
    model = load_model(target, dtype="float32")
    assert set(quantised_matrices(model)) == set(written.schemes)
    figures = compare(load_model(model_folder, dtype="float32"), model, tokens_BT[:2])
    limit = 0.12 if "4" not in wanted.scheme and wanted.scheme != "auto" else 0.6
    assert figures.mean_kl < limit
    assert len(figures.drift) == 4
    record = json.loads((target / "quantize.json").read_text())
    assert [row["name"] for row in record["matrices"]] == list(written.schemes)
    if wanted.scheme == "auto":
        assert written.size.bits_per_weight <= 5.0
        assert set(record["sensitivity"]) >= set(written.schemes)


def test_rotating_and_folding_change_no_answer(model_folder: Path, tokens_BT: Tensor) -> None:
    from herd.checkpoint.load import model_from_source

    base = load_model(model_folder, dtype="float32")
    with open_checkpoint(model_folder) as source:
        rotated = model_from_source(RotatedSource(source, seed=1), torch.float32, torch.device("cpu"))
    with torch.no_grad():
        assert torch.allclose(rotated(tokens_BT[:2]), base(tokens_BT[:2]), atol=2e-3)


def test_folding_changes_no_answer(model_folder: Path, tokens_BT: Tensor) -> None:
    from herd.quant.calibration import BlockRunner, load_block
    from herd.quant.folding import fold
    from herd.quant.schemes import int4_scheme

    with open_checkpoint(model_folder) as source:
        config, prefix = source.config, "model.layers.1."
        tensors = {name.removeprefix(prefix): source.read(name).float() for name in config.parameter_shapes() if name.startswith(prefix)}
    runner, hidden = BlockRunner(config, 48), torch.randn(2, 48, 64)
    before = runner(load_block(config, tensors), hidden)
    inputs = runner.observe(load_block(config, tensors), hidden)
    names = [name.removesuffix(".weight") for name in tensors if name.endswith("proj.weight")]
    shares = fold(tensors, inputs, dict.fromkeys(names, int4_scheme(32)), config, method="awq", dtype=torch.bfloat16)
    assert any(share > 0 for share in shares.values()), "something was moved"
    assert torch.allclose(runner(load_block(config, tensors), hidden), before, atol=1e-3, rtol=1e-3)


class Killed(BaseException):
    """Stands for the end of the process."""


@settings(max_examples=4, deadline=None)
@given(layer=st.integers(0, 4), wanted=st.sampled_from([EVERY[6], EVERY[8], EVERY[10], EVERY[12]]))
def test_a_run_killed_at_any_layer_ends_with_the_same_bytes(
    layer: int, wanted: Settings, model_folder: Path, tokens_BT: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("killed")
    quantise_checkpoint(model_folder, folder / "whole", wanted, tokens_BT=tokens_BT)

    def kill(done: int, total: int, name: str) -> None:
        if total == 5 and done == layer:
            raise Killed

    with pytest.raises(Killed):
        quantise_checkpoint(model_folder, folder / "cut", wanted, tokens_BT=tokens_BT, progress=kill)
    assert not (folder / "cut").exists()
    written = quantise_checkpoint(model_folder, folder / "cut", wanted, tokens_BT=tokens_BT)
    assert written.resumed == layer
    for path in sorted((folder / "whole").iterdir()):
        assert path.read_bytes() == (folder / "cut" / path.name).read_bytes(), path.name
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_run_of_other_settings_begins_anew(model_folder: Path, tokens_BT: Tensor, tmp_path: Path) -> None:
    def kill(done: int, total: int, name: str) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        quantise_checkpoint(model_folder, tmp_path / "out", EVERY[6], progress=kill)
    assert quantise_checkpoint(model_folder, tmp_path / "out", EVERY[2]).resumed == 0


@pytest.mark.parametrize(("settings", "in_c"), [(Settings(scheme="fp8"), True), (Settings(scheme="int4", group=8), False)])
def test_the_engine_runs_what_c_has_no_kernel_for_by_torch(model_folder: Path, tmp_path: Path, settings: Settings, in_c: bool) -> None:
    from herd.engine.build import build_engine
    from herd.engine.memory import EngineConfig
    from herd.engine.torch_runner import TorchRunner
    from herd.kernels import dispatch

    quantise_checkpoint(model_folder, tmp_path / "out", settings)
    model = load_model(tmp_path / "out")
    engine = build_engine(model, EngineConfig(context=64, num_blocks=8))
    try:
        native = dispatch.native(model.device, model.dtype) is not None
        assert isinstance(engine.stepper.runner, TorchRunner) is not (in_c and native)
    finally:
        engine.close()


def test_a_quantised_model_is_not_saved_with_its_matrices_missing(model_folder: Path, tmp_path: Path) -> None:
    from herd.checkpoint.load import save_model

    quantise_checkpoint(model_folder, tmp_path / "out", Settings(scheme="fp8-meta"))
    with pytest.raises(UsageError, match="the model has 6 quantised matrices"):
        save_model(load_model(tmp_path / "out"), tmp_path / "again")


def test_shards_and_index(model_folder: Path, tmp_path: Path) -> None:
    from herd.checkpoint.hf import main_dtype
    from herd.quant.stream import Stream

    wanted = Settings(scheme="int4", group=32)
    with open_checkpoint(model_folder) as source:
        schemes = schemes_for(source.config, wanted)
        stream = Stream(source, tmp_path / "out", wanted, schemes, dtype=main_dtype(source))
        stream.run(shard_bytes=60_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert verify(tmp_path / "out").ok


def test_published_sizes_from_the_config_alone() -> None:
    from herd.model.presets import preset

    config = preset("llama-3.1-405b")
    size = size_of(config, schemes_for(config, Settings(scheme="fp8-meta")))
    assert size.total_bytes == pytest.approx(487.2e9, rel=0.0005)
    assert size.num_quantised == 324_538_466_304
    everything = size_of(config, schemes_for(config, Settings(scheme="fp8", head=True)))
    assert everything.total_bytes == pytest.approx(408e9, rel=0.005)
    assert size_of(config, {}).total_bytes == pytest.approx(811.71e9, rel=0.0001)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "int5"}, "there is no scheme 'int5'"),
        ({"scheme": "fp8", "method": "gptq"}, "the scheme fp8 has no method 'gptq'"),
        ({"scheme": "int4", "group": 7}, "a group of 7 inputs"),
        ({"scheme": "int8", "budget_bits": 4.5}, "a budget is for the scheme auto"),
        ({"scheme": "fp8-meta", "rotate": True}, "Meta's recipe has no rotation"),
        ({"scheme": "auto", "head": True}, "leaves the head as it is"),
    ],
)
def test_settings_that_do_not_go_together(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(**change)


def test_refusals(model_folder: Path, tokens_BT: Tensor, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs text to calibrate on"):
        quantise_checkpoint(model_folder, tmp_path / "a", EVERY[8])
    with pytest.raises(UsageError, match="no whole groups of 48"):
        quantise_checkpoint(model_folder, tmp_path / "a", Settings(scheme="int4", group=48))
    with pytest.raises(DoesNotFitError, match="the smallest schemes take"):
        quantise_checkpoint(model_folder, tmp_path / "a", Settings(scheme="auto", group=32, budget_bits=3.0), tokens_BT=tokens_BT)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match="exists and is not empty"):
        quantise_checkpoint(model_folder, tmp_path / "full", EVERY[2])
    with pytest.raises(UsageError, match="the text has 3 tokens"):
        as_sequences([1, 2, 3], num=1, length=8)


def test_a_model_with_a_hole_is_refused(model_folder: Path, tmp_path: Path) -> None:
    from herd.checkpoint.load import save_model

    model = load_model(model_folder)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 5] = float("nan")
    save_model(model, tmp_path / "broken")
    with pytest.raises(CheckpointError, match=r"model.layers.2.mlp.up_proj.weight holds 1 value that are NaN"):
        quantise_checkpoint(tmp_path / "broken", tmp_path / "out", Settings(scheme="int8"))


def test_a_plain_reader_refuses_a_quantised_folder(model_folder: Path, tmp_path: Path) -> None:
    quantise_checkpoint(model_folder, tmp_path / "out", Settings(scheme="int8"))
    with pytest.raises(CheckpointError, match=r"are quantised \(compressed-tensors\)"):
        HfSource(tmp_path / "out")
