"""A recipe whose context grows: needles as text, lengths in turn, the gate, and the run taken up where it was interrupted."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from herd.base.errors import ConfigError, GateError
from herd.checkpoint.load import load_model
from herd.model.config import RopeScaling
from herd.recipes import pipeline
from herd.recipes.config import RecipeConfig
from herd.recipes.needle_text import hay_sentences, make_needles, needle_records
from herd.recipes.pipeline import run_recipe
from herd.recipes.sources import read_source
from herd.text.tokenizer import Tokenizer, load_tokenizer
from herd.train.config import SourceConfig
from herd.train.context_config import LongContextConfig


@pytest.fixture(scope="module")
def tokenizer(finished_folder: Path) -> Tokenizer:
    return load_tokenizer(finished_folder / "model")


def test_needle_records_hold_each_fact_once_before_its_question() -> None:
    records = list(needle_records(3, 40, num_bytes=2000))
    assert records == list(needle_records(3, 40, num_bytes=2000)) != list(needle_records(4, 40, num_bytes=2000))
    depths, counts = [], []
    for record in records:
        text = record["text"]
        hay, *questions = text.split(" Remember: ")
        counts.append(len(questions))
        for question in questions:
            found = re.fullmatch(r"the secret number of [A-Z][A-Za-z ]+ is [1-9]\d{3}\.", question)
            assert found is not None and hay.count(question.removeprefix("the")) == 1
            depths.append(hay.index(question.removeprefix("the")) / len(hay))
        assert len(set(questions)) == len(questions)
        assert 1900 < len(text.encode()) < 2700
    assert min(depths) < 0.1 and max(depths) > 0.8
    assert min(counts) == 1 and max(counts) == 6
    (one,) = needle_records(3, 1, num_bytes=300)
    assert one["text"].count("Remember:") == 1


def test_a_source_of_needles_has_the_length_and_number_asked_for() -> None:
    source = SourceConfig(name="n", path="own:needles", num_items=7, document_bytes=20_000)
    records = list(read_source(source, None, seed=1))
    assert len(records) == 7 and all(19_900 < len(record["text"]) < 20_700 for record in records)
    with pytest.raises(ConfigError, match="has document_bytes -1"):
        SourceConfig(name="n", path="own:needles", document_bytes=-1)


@pytest.mark.parametrize("length", [128, 1000, 5000])
def test_needles_for_the_check_have_the_models_length(tokenizer: Tokenizer, length: int) -> None:
    needles = make_needles(tokenizer, count=5, length=length, seed=2)
    assert needles == make_needles(tokenizer, count=5, length=length, seed=2)
    assert [needle.depth for needle in needles] == [0.0, 0.25, 0.5, 0.75, 1.0]
    for needle in needles:
        assert len(needle.ids) == length
        text = tokenizer.decode(list(needle.ids))
        answer = tokenizer.decode(list(needle.ids[needle.answer_start :])).strip()
        assert answer.isdecimal() and text.count(answer) >= 2
    assert len(hay_sentences()) > 500


def longer(quick: RecipeConfig, **changes: Any) -> RecipeConfig:
    stage = dataclasses.replace(
        quick.pretrain,
        num_steps=4,
        warmup_steps=0,
        lr=1e-5,
        decay="constant",
        eval_every=2,
        continue_optimizer=True,
        sources=(*quick.pretrain.sources, SourceConfig(name="needles", path="own:needles", num_items=20, document_bytes=400)),
    )
    fields = {"stage": stage, "lengths": (128, 256), "needle_pass": 0.0, "num_needles": 3, "recovery": 0.05}
    scaling = RopeScaling(factor=8.0, original_max_position_embeddings=64)
    model = dataclasses.replace(quick.model, max_position_embeddings=64)
    context = LongContextConfig(**({**fields, "rope_scaling": scaling} | changes))
    return dataclasses.replace(quick, model=model, long_context=context, sft=None, sample_prompts=())


def records_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("machine", "tokens_per_s")} for line in lines]


def test_a_context_grows_step_by_step_and_the_model_that_comes_out_has_it(quick: RecipeConfig, tmp_path: Path) -> None:
    config = longer(quick)
    result = run_recipe(config, data=None, output=tmp_path / "whole")
    assert [(report.name, report.num_steps) for report in result.stages] == [("pretrain", 4), ("long-128", 2), ("long-256", 2)]
    model = load_model(result.model)
    assert model.config.max_position_embeddings == 256 and model.config.rope_scaling == config.final_model.rope_scaling
    needles = [record["needles"] for record in records_of(tmp_path / "whole" / "long-256") if "needles" in record]
    assert len(needles) == 1 and set(needles[0]) == {"256"}
    assert "| context | 256 tokens |" in (result.model / "README.md").read_text()

    class Interrupt(BaseException):
        pass

    # Interrupted before the second length, and taken up, the run is the same.
    real, calls = pipeline.make_needles, []

    def interrupt(*args: Any, **rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise Interrupt
        return real(*args, **rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupt):
        patch.setattr(pipeline, "make_needles", interrupt)
        run_recipe(config, data=None, output=tmp_path / "parts")
    again = run_recipe(config, data=None, output=tmp_path / "parts")
    assert (again.model / "model.safetensors").read_bytes() == (result.model / "model.safetensors").read_bytes()
    for name in ("pretrain", "long-128", "long-256"):
        assert records_of(tmp_path / "parts" / name) == records_of(tmp_path / "whole" / name)


def test_a_context_that_is_not_learned_ends_with_a_failed_gate_each_time(quick: RecipeConfig, tmp_path: Path) -> None:
    config = longer(quick, needle_pass=1.0)
    for _ in range(2):
        with pytest.raises(GateError, match="the context of 128 tokens is not learned after 4 steps: 0% of 3 needles"):
            run_recipe(config, data=None, output=tmp_path)
    assert not (tmp_path / "model").exists() and not (tmp_path / "long-256").exists()


def test_stages_after_a_long_context_may_have_its_length(quick: RecipeConfig) -> None:
    config = longer(quick)
    anneal = dataclasses.replace(quick.pretrain, sequence_length=256)
    assert [name for name, _ in dataclasses.replace(config, anneal=anneal).stages()] == ["pretrain", "long-128", "long-256", "anneal"]
    with pytest.raises(ConfigError, match=r"anneal\.sequence_length 256 is over the model's context of 64"):
        dataclasses.replace(config, long_context=None, anneal=anneal)
