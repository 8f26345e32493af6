"""Recipes that read token folders of `herd data tokenize`: rows on disk, the tokenizer taken as it is, the run resumable."""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from herd.base.errors import ConfigError
from herd.data.tokenise import TokeniseConfig, tokenise
from herd.recipes import pipeline
from herd.recipes.config import RecipeConfig
from herd.recipes.inspect import inspect_recipe
from herd.recipes.pipeline import run_recipe
from herd.recipes.prepare import token_folder
from herd.train.config import SourceConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, finished_folder: Path) -> Path:
    """A data folder with the stories as tokens of the finished run's tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    text = (files("herd.recipes") / "data" / "tiny.txt").read_text(encoding="utf-8")
    stories = [part.strip() for part in text.split("\n---\n")][:60]
    (folder / "stories.jsonl").write_text("".join(json.dumps({"text": story}) + "\n" for story in stories), encoding="utf-8")
    tokenise([str(folder / "stories.jsonl")], folder / "tokens", TokeniseConfig(tokenizer=str(finished_folder / "tokenizer")))
    return folder


def from_tokens(quick: RecipeConfig, tokenizer: Path, **source: Any) -> RecipeConfig:
    tokens = SourceConfig(**({"name": "tokens", "path": "tokens", "weight": 3.0} | source))
    pretrain = dataclasses.replace(quick.pretrain, sources=(tokens, *quick.pretrain.sources))
    training = dataclasses.replace(quick.tokenizer, sources=(), path=str(tokenizer))
    return dataclasses.replace(quick, tokenizer=training, pretrain=pretrain, sft=None, sample_prompts=())


def records_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("machine", "tokens_per_s")} for line in lines]


def test_a_run_reads_token_folders_and_text_side_by_side_and_is_taken_up(
    quick: RecipeConfig, finished_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = from_tokens(quick, finished_folder / "tokenizer")
    result = run_recipe(config, data=data, output=tmp_path / "whole")
    records = records_of(tmp_path / "whole" / "pretrain")
    assert any("loss/tokens" in record for record in records) and any("heldout" in record for record in records)
    assert result.stages[0].epochs["tokens"] > 0  # type: ignore[union-attr]
    ours, theirs = ((folder / "tokenizer" / "tokenizer.model").read_bytes() for folder in (tmp_path / "whole", finished_folder))
    assert ours == theirs, "the tokenizer is taken as it is"

    class Interrupt(BaseException):
        pass

    def interrupt(*_: Any, **__: Any) -> None:
        raise Interrupt

    with monkeypatch.context() as patch, pytest.raises(Interrupt):
        patch.setattr(pipeline, "_export", interrupt)
        run_recipe(config, data=data, output=tmp_path / "parts")
    again = run_recipe(config, data=data, output=tmp_path / "parts")
    assert (again.model / "model.safetensors").read_bytes() == (result.model / "model.safetensors").read_bytes()
    assert records_of(tmp_path / "parts" / "pretrain") == records


def test_only_a_folder_with_an_index_is_one_of_tokens(data: Path) -> None:
    assert token_folder(SourceConfig(name="a", path="tokens"), data) == data / "tokens"
    for path in ("stories.jsonl", "own:drills", "package:tiny.txt", "nowhere"):
        assert token_folder(SourceConfig(name="a", path=path), data) is None


def test_tokens_of_another_tokenizer_are_refused(quick: RecipeConfig, data: Path, tmp_path: Path) -> None:
    config = from_tokens(quick, tmp_path)
    other = dataclasses.replace(config, seed=5, tokenizer=dataclasses.replace(quick.tokenizer, sources=quick.tokenizer.sources[1:]))
    with pytest.raises(ConfigError, match="the tokens of source 'tokens' are another tokenizer's") as caught:
        run_recipe(other, data=data, output=tmp_path / "run")
    assert "tokenizer.path" in str(caught.value.hint)


def test_a_tokenizer_of_another_size_is_refused(quick: RecipeConfig, finished_folder: Path, data: Path, tmp_path: Path) -> None:
    config = from_tokens(quick, finished_folder / "tokenizer")
    wrong = dataclasses.replace(
        config,
        tokenizer=dataclasses.replace(config.tokenizer, vocab_size=2000),
        model=dataclasses.replace(config.model, vocab_size=2256),
    )
    with pytest.raises(ConfigError, match="has 1280 tokens, the model 2256 rows") as caught:
        run_recipe(wrong, data=data, output=tmp_path / "run")
    assert "model.vocab_size=1280" in str(caught.value.hint)


def test_an_inspection_of_tokens_reads_some_rows(quick: RecipeConfig, finished_folder: Path, data: Path, tmp_path: Path) -> None:
    views = inspect_recipe(from_tokens(quick, finished_folder / "tokenizer"), data=data, output=tmp_path, colour=False)
    assert [view.source for view in views] == ["tokens", "stories", "own"]
    assert views[0].num_rows > 5 and 0.8 < views[0].share_filled <= 1 and "⟦" in views[0].sample
    assert (tmp_path / "data" / "tokens.packed").is_dir(), "the packing is planned in the run's folder, not in the data's"
