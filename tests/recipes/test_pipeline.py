"""A recipe carried out: a model that loads, a card, a config that runs again, and an interrupted run that is taken up where it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from herd.base.config_io import apply_overrides
from herd.base.errors import CheckpointError, ConfigError, NotFoundError, UsageError
from herd.checkpoint.load import load_model
from herd.inference.llm import LLM
from herd.inference.params import SamplingParams
from herd.recipes import pipeline
from herd.recipes.config import RecipeConfig
from herd.recipes.pipeline import RunResult, run_recipe
from herd.recipes.registry import find_recipe
from herd.text.messages import Message
from herd.text.tokenizer import load_tokenizer
from herd.train import saver as saver_module
from herd.train import trainer as trainer_module

PARTS = ["config.toml", "data", "model", "prediction.json", "pretrain", "sft", "tokenizer"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def log_of(folder: Path) -> list[dict[str, Any]]:
    """A stage's log without the figures that a clock or the machine gives."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in ("tokens_per_s", "machine")} for line in lines]


def states_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/states/*/*.safetensors"))}


def assert_same_run(folder: Path, other: Path) -> None:
    """Two runs left the same weights, moments, logs and tokenizer, byte for byte."""
    assert states_of(folder) == states_of(other) != {}
    assert (folder / "model" / "model.safetensors").read_bytes() == (other / "model" / "model.safetensors").read_bytes()
    assert (folder / "tokenizer" / "tokenizer.model").read_bytes() == (other / "tokenizer" / "tokenizer.model").read_bytes()
    for stage in ("pretrain", "sft"):
        assert log_of(folder / stage) == log_of(other / stage)


def test_a_run_leaves_its_parts_and_nothing_half_written(finished_folder: Path) -> None:
    assert names(finished_folder) == PARTS
    assert list(finished_folder.rglob(".*")) == []
    assert names(finished_folder / "pretrain" / "states") == ["step-00000002", "step-00000004"]
    assert {"config.json", "model.safetensors", "tokenizer.model", "tokenizer.json", "README.md", "training.json"} <= set(
        names(finished_folder / "model")
    )


def test_the_result_reports_what_every_stage_did(finished: RunResult, finished_folder: Path, quick: RecipeConfig) -> None:
    assert finished.model == finished_folder / "model"
    assert [report.name for report in finished.stages] == ["pretrain", "sft"]
    assert quick.sft is not None
    for report, stage in zip(finished.stages, (quick.pretrain, quick.sft), strict=True):
        assert report.num_steps == stage.num_steps == 4
        assert report.num_tokens == stage.num_tokens
        assert 0 < report.num_counted < report.num_tokens
        assert report.seconds > 0
        assert report.epochs.keys() == {source.name for source in stage.sources}
        last = [record["heldout"] for record in log_of(finished_folder / report.name) if "heldout" in record][-1]
        assert report.bits_per_byte == last and set(last) == {"en"}


def test_the_model_loads_in_herd_and_in_transformers_and_is_the_last_state_in_bfloat16(finished: RunResult, quick: RecipeConfig) -> None:
    model = load_model(finished.model)
    assert model.config == quick.model
    assert model.dtype == torch.bfloat16
    tokenizer = load_tokenizer(finished.model)
    assert tokenizer.vocab_size == quick.model.vocab_size
    ids = torch.tensor([tokenizer.encode("Once upon a time", bos=True)])
    theirs = AutoModelForCausalLM.from_pretrained(finished.model, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(load_model(finished.model, dtype="float32")(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_model_answers(finished: RunResult) -> None:
    output = LLM(finished.model, device="cpu").chat([Message.user("Hello!")], params=SamplingParams(max_tokens=5, seed=1))
    assert 1 <= len(output.token_ids) <= 5


def test_the_card_holds_the_facts_of_this_run(finished: RunResult) -> None:
    text = (finished.model / "README.md").read_text(encoding="utf-8")
    facts = json.loads((finished.model / "training.json").read_text(encoding="utf-8"))
    assert facts["recipe"] == "tiny"
    assert [stage["num_tokens"] for stage in facts["stages"]] == [report.num_tokens for report in finished.stages]
    for title in ("Stages", "Held-out bits per byte", "Data", "Samples", "Licence"):
        assert f"\n## {title}\n" in text
    for report in finished.stages:
        assert f"| {report.name} | {report.num_steps:,} | {report.num_tokens:,} | {report.num_counted:,} |" in text
    assert f"| en | {finished.stages[0].bits_per_byte['en']:.3f} | {finished.stages[1].bits_per_byte['en']:.3f} |" in text
    for fact in ("kWh", "kg CO2eq", "PUE 1.1", "written for herd | Apache-2.0", "**Hello!** (", "**Who are you?** ("):
        assert fact in text


def test_the_saved_config_runs_again_to_the_same_model(finished_folder: Path, quick: RecipeConfig, tmp_path: Path) -> None:
    saved = find_recipe(str(finished_folder / "config.toml"))
    assert saved == quick
    run_recipe(saved, data=None, output=tmp_path / "again")
    assert_same_run(tmp_path / "again", finished_folder)


def test_another_seed_is_another_model(finished_folder: Path, quick: RecipeConfig, tmp_path: Path) -> None:
    run_recipe(dataclasses.replace(quick, seed=quick.seed + 1, sft=None), data=None, output=tmp_path / "other")
    assert log_of(tmp_path / "other" / "pretrain")[0]["loss"] != log_of(finished_folder / "pretrain")[0]["loss"]
    assert names(tmp_path / "other") == [part for part in PARTS if part != "sft"]


class Interrupt(BaseException):
    """An interruption at a chosen moment."""


MOMENTS: dict[str, tuple[Any, str, int]] = {
    "while the tokenizer is trained": (pipeline, "prepare_tokenizer", 1),
    "before held-out text is read": (pipeline, "prepare_heldout", 1),
    "before rows are packed": (pipeline, "prepare_rows", 1),
    "at the first step": (trainer_module, "train_step", 1),
    "within pre-training": (trainer_module, "train_step", 4),
    "at the last save of pre-training": (saver_module, "write_snapshot", 2),
    "between the stages": (pipeline, "prepare_rows", 2),
    "within tuning": (trainer_module, "train_step", 8),
    "at the end of tuning": (saver_module, "write_snapshot", 4),
    "before the model is written": (pipeline, "_export", 1),
    "before the card is written": (pipeline, "write_card", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_interrupted_at_any_part_is_taken_up_and_ends_the_same(
    finished_folder: Path, quick: RecipeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    module, name, call = MOMENTS[moment]
    real, calls = getattr(module, name), 0

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Interrupt
        return real(*args, **kwargs)

    output = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interrupt):
        patch.setattr(module, name, interrupt)
        run_recipe(quick, data=None, output=output)
    assert not (output / "model" / "README.md").exists()
    result = run_recipe(quick, data=None, output=output)
    assert_same_run(output, finished_folder)
    assert [report.num_steps for report in result.stages] == [4, 4]
    assert names(output) == PARTS


def test_a_finished_run_is_not_trained_again(
    finished_folder: Path, quick: RecipeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    first = run_recipe(quick, data=None, output=output)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a step was trained")

    monkeypatch.setattr(trainer_module, "train_step", never)
    again = run_recipe(quick, data=None, output=output)
    assert again == first
    assert_same_run(output, finished_folder)


def test_another_configuration_is_refused_and_changes_nothing(quick: RecipeConfig, tmp_path: Path) -> None:
    output = tmp_path / "run"
    short = dataclasses.replace(quick, sft=None, sample_prompts=())
    run_recipe(short, data=None, output=output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    for override in ("pretrain.lr=1e-5", "seed=5", "pretrain.num_steps=6", "power.watts=20"):
        with pytest.raises(UsageError, match="holds a run of another configuration") as caught:
            run_recipe(apply_overrides(short, [override]), data=None, output=output)
        assert "--restart" in str(caught.value.hint) and "--output" in str(caught.value.hint)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_folder_whose_config_cannot_be_read_is_taken_for_another_run(quick: RecipeConfig, tmp_path: Path) -> None:
    for content in (b"not toml at all", b'name = "\xe9t\xe9"', b"schema_version = 99\n"):
        (tmp_path / "config.toml").write_bytes(content)
        with pytest.raises(UsageError, match="another configuration"):
            run_recipe(quick, data=None, output=tmp_path)
        assert (tmp_path / "config.toml").read_bytes() == content


def test_restart_deletes_the_earlier_run_and_nothing_else(quick: RecipeConfig, tmp_path: Path) -> None:
    output = tmp_path / "run"
    short = dataclasses.replace(quick, sample_prompts=())
    run_recipe(short, data=None, output=output)
    (output / "notes.txt").write_text("mine")
    (output / "kept").mkdir()
    other = apply_overrides(dataclasses.replace(short, sft=None), ["seed=5"])
    run_recipe(other, data=None, output=output, restart=True)
    assert names(output) == sorted(["notes.txt", "kept", *(part for part in PARTS if part != "sft")])
    assert find_recipe(str(output / "config.toml")) == other
    assert (output / "notes.txt").read_text() == "mine"


def test_restart_where_there_is_no_run_deletes_nothing(quick: RecipeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.txt").write_text("not a run's")

    def stop(*_: Any) -> None:
        raise Interrupt

    monkeypatch.setattr(pipeline, "prepare_tokenizer", stop)
    with pytest.raises(Interrupt):
        run_recipe(quick, data=None, output=tmp_path, restart=True)
    assert (tmp_path / "data" / "precious.txt").read_text() == "not a run's"


def test_states_of_another_configuration_are_refused_even_without_a_config_file(quick: RecipeConfig, tmp_path: Path) -> None:
    short = dataclasses.replace(quick, sft=None, sample_prompts=())
    run_recipe(short, data=None, output=tmp_path)
    (tmp_path / "config.toml").unlink()
    with pytest.raises(CheckpointError, match="a run of another configuration"):
        run_recipe(apply_overrides(short, ["pretrain.lr=1e-5"]), data=None, output=tmp_path)


def test_an_output_that_is_a_file_is_refused(quick: RecipeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        run_recipe(quick, data=None, output=tmp_path / "file")


def test_a_recipe_whose_sources_all_weigh_nothing_is_refused(quick: RecipeConfig, tmp_path: Path) -> None:
    nothing = apply_overrides(quick, ["pretrain.sources.stories.weight=0", "pretrain.sources.own.weight=0"])
    with pytest.raises(ConfigError, match="no data source has a positive weight"):
        run_recipe(nothing, data=None, output=tmp_path)


def test_an_annealing_stage_goes_on_from_pre_training_and_tuning_from_it(quick: RecipeConfig, tmp_path: Path) -> None:
    assert quick.sft is not None
    config = dataclasses.replace(
        quick,
        anneal=dataclasses.replace(quick.pretrain, num_steps=2, warmup_steps=0, lr=1e-9),
        sft=dataclasses.replace(quick.sft, num_steps=2),
        sample_prompts=(),
    )
    result = run_recipe(config, data=None, output=tmp_path)
    assert [report.name for report in result.stages] == ["pretrain", "anneal", "sft"]
    # At a rate of next to nothing annealing leaves the weights, and so the scores, as pre-training left them.
    assert result.stages[1].bits_per_byte["en"] == pytest.approx(result.stages[0].bits_per_byte["en"], abs=2e-4)
    assert result.stages[2].bits_per_byte["en"] != pytest.approx(result.stages[1].bits_per_byte["en"], abs=2e-4)
    text = (result.model / "README.md").read_text(encoding="utf-8")
    assert "| language | after pretrain | after anneal | after sft |" in text
    # Stages draw their samples from seeds of their own: the same sources do not come in the same order again.
    first, second = (log_of(tmp_path / stage)[0]["num_counted"] for stage in ("pretrain", "anneal"))
    assert first != second


def test_another_model_is_put_to_the_same_questions(quick: RecipeConfig, finished: RunResult, tmp_path: Path) -> None:
    config = dataclasses.replace(quick, sft=None, sample_prompts=("Hello!",))
    result = run_recipe(config, data=None, output=tmp_path, beside=str(finished.model))
    text = (result.model / "README.md").read_text(encoding="utf-8")
    assert "| | tiny | model |" in text and "| held-out bits per byte, en |" in text and "\nmodel (" in text
    with pytest.raises(NotFoundError, match="nowhere"):
        run_recipe(config, data=None, output=tmp_path / "other", beside="nowhere")
    assert not (tmp_path / "other").exists()
    with pytest.raises(UsageError, match="sft tunes a model: its card tells it before and after"):
        run_recipe(find_recipe("sft"), data=None, output=tmp_path / "tuned", beside="cria")
    with pytest.raises(UsageError, match="reads its data in one process"):
        run_recipe(find_recipe("sft"), data=None, output=tmp_path / "tuned", workers=2)
