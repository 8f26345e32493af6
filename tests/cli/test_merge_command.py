"""`herd merge` and `herd average` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from herd_command import HerdCommand  # pyright: ignore[reportMissingImports]

from herd.checkpoint.load import load_model
from herd.checkpoint.reward import load_reward_model
from herd.train.adapters.config import LoraConfig
from herd.train.adapters.files import save_adapter
from herd.train.adapters.inject import inject, merged_copy, trained_parameters

CONFIG = LoraConfig(rank=2, dora=True)


@pytest.fixture
def adapter(tiny_folder: Path, tmp_path: Path) -> Path:
    model = inject(load_model(tiny_folder), CONFIG)
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            parameter.fill_(0.05 if "magnitude" not in name else 1.1)
    save_adapter(model, CONFIG, tmp_path / "adapter", base=str(tiny_folder))
    return tmp_path / "adapter"


def test_an_adapter_is_merged_into_the_model_it_names(herd: HerdCommand, adapter: Path, tiny_folder: Path, tmp_path: Path) -> None:
    result = herd("merge", adapter, tmp_path / "merged")
    assert (result.code, result.out) == (0, "") and f"herd chat --model {tmp_path / 'merged'}" in result.err
    from herd.train.adapters.files import load_adapter

    expected = merged_copy(load_adapter(load_model(tiny_folder), adapter))
    found = load_model(tmp_path / "merged")
    assert all(torch.equal(value, found.get_parameter(name)) for name, value in expected.named_parameters())
    assert herd("run", "-m", tmp_path / "merged", "--max-tokens", "3", "Hi").code == 0
    data = herd("merge", adapter, tmp_path / "narrow", "-m", tiny_folder, "--dtype", "bfloat16", "--json").json
    assert data == {"path": str(tmp_path / "narrow"), "model": str(tiny_folder), "rank": 2, "dtype": "bfloat16"}
    assert load_model(tmp_path / "narrow").dtype == torch.bfloat16


def test_an_adapter_of_a_reward_model_gives_a_reward_model(herd: HerdCommand, tiny_folder: Path, tmp_path: Path) -> None:
    model = inject(load_reward_model(tiny_folder), LoraConfig(rank=2))
    assert hasattr(model, "score")
    torch.nn.init.ones_(model.get_parameter("score.weight"))
    save_adapter(model, LoraConfig(rank=2), tmp_path / "adapter", base=str(tiny_folder))
    assert "herd chat" not in herd("merge", tmp_path / "adapter", tmp_path / "reward").err
    assert bool((load_reward_model(tmp_path / "reward").score.weight == 1).all())


def test_merges_that_cannot_be_are_refused(herd: HerdCommand, adapter: Path, tmp_path: Path) -> None:
    assert "adapter_config.json is missing" in herd("merge", tmp_path / "none", tmp_path / "x").refusal(3)[0]
    herd("merge", adapter, tmp_path / "merged")
    message, hint = herd("merge", adapter, tmp_path / "merged").refusal(2)
    assert "not empty" in message and "--overwrite" in hint
    assert herd("merge", adapter, tmp_path / "merged", "--overwrite").code == 0
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    assert "--model" in herd("merge", adapter, tmp_path / "y").refusal(2)[1]


def test_models_are_averaged(herd: HerdCommand, adapter: Path, tiny_folder: Path, tmp_path: Path) -> None:
    herd("merge", adapter, tmp_path / "merged")
    result = herd("average", tiny_folder, tmp_path / "merged", "-o", tmp_path / "mean", "--weights", "3,1")
    assert (result.code, result.out) == (0, "") and f"0.75 {tiny_folder}" in result.err
    one, other, mean = (load_model(path).head_weight for path in (tiny_folder, tmp_path / "merged", tmp_path / "mean"))
    torch.testing.assert_close(mean, 0.75 * one + 0.25 * other)
    data = herd("average", tiny_folder, tiny_folder, "-o", tmp_path / "same", "--json").json
    assert data["num_tensors"] == len(load_model(tiny_folder).state_dict()) and data["path"] == str(tmp_path / "same")


def test_averages_that_cannot_be_are_refused(herd: HerdCommand, tiny_folder: Path, tmp_path: Path) -> None:
    assert "no numbers" in herd("average", tiny_folder, tiny_folder, "-o", tmp_path / "x", "--weights", "a,b").refusal(2)[0]
    assert "1 model" in herd("average", tiny_folder, "-o", tmp_path / "x").refusal(2)[0]
    assert "2 models and 3 weights" in herd("average", tiny_folder, tiny_folder, "-o", tmp_path / "x", "--weights", "1,1,1").refusal(2)[0]
