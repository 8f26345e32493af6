"""`herd train` on the command line: recipes, overrides, what it hands to the pipeline and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from herd_command import HerdCommand  # pyright: ignore[reportMissingImports]

from herd.base.config_io import from_toml, to_toml
from herd.recipes.card import StageReport
from herd.recipes.config import RecipeConfig
from herd.recipes.pipeline import RunResult
from herd.recipes.registry import RECIPES, find_recipe, read_config


@pytest.fixture
def carried_out(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `herd train` asks the pipeline for; nothing is trained."""
    seen: dict[str, Any] = {}

    def run_recipe(config: RecipeConfig, **rest: Any) -> RunResult:
        seen.update(config=config, **rest)
        report = StageReport(
            name="pretrain",
            num_steps=3,
            num_tokens=300,
            num_counted=250,
            seconds=1.5,
            bits_per_byte={"en": 2.5},
            epochs={"stories": 0.5},
            machine="a machine",
        )
        return RunResult(model=rest["output"] / "model", stages=(report,))

    monkeypatch.setattr("herd.recipes.pipeline.run_recipe", run_recipe)
    return seen


def test_without_a_recipe_the_recipes_are_listed(herd: HerdCommand) -> None:
    listed = herd("train", "--json").json
    assert set(listed) == set(RECIPES) and all(text.endswith(".") for text in listed.values())
    plain = herd("train")
    assert [line.split()[0] for line in plain.out.splitlines()] == ["recipe", *RECIPES] and "--dry-run" in plain.err


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_dry_run_prints_a_config_that_reads_back_to_the_recipe(herd: HerdCommand, tmp_path: Path, name: str) -> None:
    result = herd("train", name, "--dry-run")
    assert (result.code, result.err) == (0, "") and read_config(result.out) == find_recipe(name)
    assert list(tmp_path.iterdir()) == []


def test_a_post_training_recipe_takes_a_file_and_a_model(
    herd: HerdCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path
) -> None:
    (tmp_path / "chats.jsonl").write_text('{"prompt": "Hi", "completion": "The herd."}\n' * 8, encoding="utf-8")
    quick = ("epochs=0", "train.num_steps=2", "train.warmup_steps=0", "heldback_one_in=0", "sample_prompts=")
    result = herd("train", "sft", f"model={tiny_folder}", *quick, "--data", "chats.jsonl", "--json")
    assert result.code == 0 and "⟦The herd.<|eot_id|>⟧" in result.err
    assert result.json["model"] == "runs/sft/model" and result.json["stages"][0]["num_records"] == 8
    assert "done: herd chat --model runs/sft/model" in herd("train", "sft", f"model={tiny_folder}", *quick, "--data", "chats.jsonl").err
    assert herd("run", "-m", "runs/sft/model", "--max-tokens", "2", "Hi").code == 0
    message, hint = herd("train", "dpo", f"model={tiny_folder}", "--data", "chats.jsonl").refusal(1)
    assert "chats.jsonl, record 1" in message and "chosen and rejected" in hint


def test_overrides_change_single_values(herd: HerdCommand) -> None:
    config = from_toml(RecipeConfig, herd("train", "tiny", "pretrain.lr=3e-4", "pretrain.num_steps=100", "seed=9", "--dry-run").out)
    assert (config.pretrain.lr, config.pretrain.num_steps, config.seed) == (3e-4, 100, 9)
    assert config.sft == find_recipe("tiny").sft


@pytest.mark.parametrize(
    ("override", "code", "fragment", "advice"),
    [
        ("pretrain.learning_rate=1", 2, "unknown key 'pretrain.learning_rate'", ""),
        ("pretrian.lr=1", 2, "unknown key 'pretrian.lr'", "did you mean 'pretrain'?"),
        ("pretrain.lr=fast", 2, "pretrain.lr='fast'", "float"),
        ("pretrain.num_steps", 2, "is not an override", "pretrain.lr=3e-4"),
        ("pretrain.num_steps=0", 1, "num_steps is 0", "positive"),
        ("pretrain.lr=nan", 1, "lr is nan", ""),
        ("model.vocab_size=7", 1, "7 rows", "model.vocab_size"),
    ],
)
def test_an_override_that_cannot_be_is_refused(herd: HerdCommand, override: str, code: int, fragment: str, advice: str) -> None:
    message, hint = herd("train", "tiny", override, "--dry-run").refusal(code)
    assert fragment in message and advice in hint


def test_a_run_goes_into_a_folder_of_the_recipes_name(herd: HerdCommand, carried_out: dict[str, Any]) -> None:
    result = herd("train", "tiny", "pretrain.num_steps=30")
    assert (result.code, result.out) == (0, "") and "done: herd chat --model runs/tiny/model" in result.err
    assert carried_out["output"] == Path("runs/tiny") and carried_out["data"] is None and carried_out["restart"] is False
    assert carried_out["config"].pretrain.num_steps == 30


def test_output_data_threads_and_restart_are_handed_on(
    herd: HerdCommand, carried_out: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    assert herd("train", "tiny", "-o", tmp_path / "run", "--data", tmp_path, "--threads", "2", "--restart").code == 0
    assert carried_out["output"] == tmp_path / "run" and carried_out["data"] == tmp_path and carried_out["restart"] is True
    assert threads == [2]


def test_the_data_folder_may_be_a_setting(herd: HerdCommand, carried_out: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_DATA", "elsewhere")
    assert herd("train", "tiny").code == 0 and carried_out["data"] == Path("elsewhere")
    assert herd("train", "tiny", "--data", "here").code == 0 and carried_out["data"] == Path("here")


def test_the_result_is_reported_as_json(herd: HerdCommand, carried_out: dict[str, Any]) -> None:
    data = herd("train", "tiny", "--json").json
    assert list(data) == ["model", "stages"] and data["model"] == "runs/tiny/model"
    assert data["stages"][0] == {
        "name": "pretrain",
        "num_steps": 3,
        "num_tokens": 300,
        "num_counted": 250,
        "seconds": 1.5,
        "bits_per_byte": {"en": 2.5},
        "epochs": {"stories": 0.5},
        "machine": "a machine",
        "energy_j": 0.0,
        "energy_method": "nameplate",
    }


def test_the_config_of_an_earlier_run_is_a_recipe(herd: HerdCommand, carried_out: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(to_toml(find_recipe("tiny")))
    assert herd("train", tmp_path / "config.toml", "seed=4").code == 0
    assert carried_out["config"].seed == 4 and carried_out["output"] == Path("runs/tiny")


@pytest.mark.parametrize("name", ["../outside", "/outside", "..", "", "a/b", "a\\b", "a\x00b"])
def test_a_config_whose_name_leads_out_of_runs_needs_an_output(
    herd: HerdCommand, carried_out: dict[str, Any], tmp_path: Path, name: str
) -> None:
    (tmp_path / "config.toml").write_text(to_toml(find_recipe("tiny")).replace('name = "tiny"', f"name = {_quoted(name)}", 1))
    message, hint = herd("train", tmp_path / "config.toml").refusal(1)
    assert repr(name) in message and "--output" in hint and carried_out == {}
    assert herd("train", tmp_path / "config.toml", "-o", tmp_path / "run").code == 0


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace("\x00", "\\u0000") + '"'


def test_an_interrupted_run_says_how_to_go_on(herd: HerdCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("herd.recipes.pipeline.run_recipe", interrupted)
    result = herd("train", "tiny", "-o", "there")
    assert (result.code, result.out) == (130, "") and "the same command goes on from the last state saved in there" in result.err


def test_what_is_no_recipe_and_no_config_is_refused(herd: HerdCommand, tmp_path: Path) -> None:
    assert herd("train", "big").refusal(3)[0] == "no recipe is named 'big'"
    assert "no config file at" in herd("train", tmp_path / "none.toml").refusal(3)[0]
