"""The mean of models: uniform, weighted, of several dtypes and formats, and what has no mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import CheckpointError, UsageError
from herd.checkpoint.average import average_models, shares
from herd.checkpoint.convert import convert
from herd.checkpoint.load import load_model, save_model
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.text.tokenizer import Tokenizer, load_tokenizer
from tiny_model import tiny_config, tiny_tokenizer  # noqa: F401  # pyright: ignore[reportMissingImports]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> list[Path]:  # noqa: F811
    folder = tmp_path_factory.mktemp("three")
    for seed in range(3):
        with torch.device("meta"):
            model = Transformer(tiny_config(tiny_tokenizer.vocab_size))
        save_model(initialise(model, seed=seed), folder / str(seed), tokenizer=tiny_tokenizer)
    return [folder / str(seed) for seed in range(3)]


@pytest.mark.parametrize("weights", [None, [2.0, 1.0, 1.0], [1.0, 0.0, 0.0], [3.0, -1.0, 1.0]])
def test_every_weight_is_the_weighted_mean(three: list[Path], tmp_path: Path, weights: list[float] | None) -> None:
    seen: list[int] = []
    count = average_models(three, tmp_path / "mean", weights=weights, progress=lambda done, _: seen.append(done))
    models = [load_model(path).state_dict() for path in three]
    mean = load_model(tmp_path / "mean").state_dict()
    parts = weights or [1.0, 1.0, 1.0]
    for name, value in mean.items():
        expected = sum(part * model[name].double() for part, model in zip(parts, models, strict=True)) / sum(parts)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    assert count == len(mean) == len(seen) == seen[-1]
    if weights == [1.0, 0.0, 0.0]:
        assert all(torch.equal(value, models[0][name]) for name, value in mean.items())


def test_the_folder_is_whole_and_of_the_dtype_asked_for(three: list[Path], tmp_path: Path) -> None:
    average_models(three[:2], tmp_path / "mean", dtype="bfloat16")
    assert load_model(tmp_path / "mean").dtype == torch.bfloat16
    assert load_tokenizer(tmp_path / "mean").vocab_size == load_tokenizer(three[0]).vocab_size
    for name in ("config.json", "generation_config.json"):
        assert '"eos_token_id"' in (tmp_path / "mean" / name).read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="not empty"):
        average_models(three[:2], tmp_path / "mean")
    average_models(three[:2], tmp_path / "mean", overwrite=True)
    assert load_model(tmp_path / "mean").dtype == torch.float32


def test_models_may_be_of_different_formats_and_contexts(three: list[Path], tmp_path: Path) -> None:
    convert(three[1], tmp_path / "one.gguf", to="gguf", quantisation="F32")
    average_models([three[0], tmp_path / "one.gguf"], tmp_path / "mean")
    expected = (load_model(three[0]).head_weight + load_model(three[1]).head_weight) / 2
    torch.testing.assert_close(load_model(tmp_path / "mean").head_weight, expected)
    longer = Transformer(replace(load_model(three[0]).config, max_position_embeddings=4096))
    save_model(initialise(longer, seed=9), tmp_path / "longer")
    average_models([three[0], tmp_path / "longer"], tmp_path / "other")


def test_what_has_no_mean_is_refused(three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 model"):
        average_models(three[:1], tmp_path / "mean")
    with pytest.raises(UsageError, match="3 models and 2 weights"):
        average_models(three, tmp_path / "mean", weights=[1.0, 2.0])
    other = Transformer(replace(load_model(three[0]).config, num_hidden_layers=1))
    save_model(initialise(other, seed=9), tmp_path / "other")
    with pytest.raises(CheckpointError, match="num_hidden_layers 2 and 1"):
        average_models([three[0], tmp_path / "other"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6))
def test_shares_sum_to_one_or_are_refused(weights: list[float]) -> None:
    try:
        found = shares(len(weights), weights)
    except UsageError as error:
        assert error.hint and not sum(weights) > 1e-9
        return
    assert sum(found) == pytest.approx(1, rel=1e-6)
