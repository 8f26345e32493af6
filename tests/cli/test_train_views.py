"""`herd train` without training: estimates of a dry run, a look at the data, the page of a run, and the code of a run that was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from herd_command import HerdCommand  # pyright: ignore[reportMissingImports]

from herd.train.preemption import PreemptedError

QUICK = (
    *("model.hidden_size=32", "model.intermediate_size=64", "model.num_hidden_layers=2", "model.head_dim=16", "sample_prompts="),
    *("pretrain.num_steps=3", "pretrain.warmup_steps=1", "pretrain.batch_size=4", "pretrain.micro_batch_size=2", "pretrain.log_every=1"),
    *("pretrain.sequence_length=64", "pretrain.sources.own.num_items=60", "tokenizer.sources.own.num_items=400", "heldout_bytes=1500"),
    *("sft.num_steps=2", "sft.warmup_steps=1", "sft.sources.own.num_items=60", "sft.batch_size=2", "sft.micro_batch_size=2"),
)


def test_a_dry_run_tells_steps_tokens_and_time_of_each_stage(herd: HerdCommand) -> None:
    result = herd("train", "llama-405b", "--dry-run")
    notes = [line for line in result.out.splitlines() if line.startswith("# ")]
    assert (
        notes[0].startswith("# pretrain: 1,053,244 steps, 14,799,995,928,576 tokens, 3.74e+25 FLOP, ")
        and "years" in notes[0]
        and "GiB on one device" in notes[0]
    )
    assert len(notes) == 8
    stages = herd("train", "tiny", "--dry-run", "--json").json["stages"]
    assert [(stage["name"], stage["num_steps"], stage["num_tokens"]) for stage in stages] == [
        ("pretrain", 200, 409600),
        ("sft", 100, 204800),
    ]
    assert all(stage["seconds"] > 0 and "(assumed)" in stage["basis"] for stage in stages)


def test_a_look_at_the_data_marks_what_counts_and_trains_nothing(herd: HerdCommand, tmp_path: Path) -> None:
    result = herd("train", "tiny", *QUICK, "--inspect", "--output", str(tmp_path / "run"))
    assert result.code == 0
    assert "what counts in the loss is between ⟦ and ⟧" in result.out
    for title in ("pretrain / stories: ", "pretrain / own: ", "sft / own: "):
        assert title in result.out
    tuned = result.out.partition("sft / own: ")[2]
    assert "<|start_header_id|>user" in tuned and "<|eot_id|>⟧" in tuned and "⟦" not in tuned.partition("user")[0]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["data", "tokenizer"]
    views = herd("train", "tiny", *QUICK, "--inspect", "--json", "--output", str(tmp_path / "run")).json
    assert [(view["stage"], view["source"]) for view in views] == [("pretrain", "stories"), ("pretrain", "own"), ("sft", "own")]
    assert views[2]["share_counted"] < views[1]["share_counted"] <= views[1]["share_filled"] <= 1


def test_answers_that_never_end_are_refused_before_any_step(herd: HerdCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from herd.text.prompt import PromptFormat

    real = PromptFormat.encode_with_mask

    def endless(self: PromptFormat, tokenizer: Any, messages: Any, **rest: Any) -> tuple[list[int], list[bool]]:
        ids, counts = real(self, tokenizer, messages, **rest)
        return ids, [count and token not in tokenizer.stop_ids for token, count in zip(ids, counts, strict=True)]

    monkeypatch.setattr(PromptFormat, "encode_with_mask", endless)
    for command in (("--inspect",), ()):
        message, hint = herd("train", "tiny", *QUICK, *command, "--output", str(tmp_path / f"run{len(command)}")).refusal(1)
        assert "no answer of source 'own' ends with a stop token" in message and hint
    assert not (tmp_path / "run0" / "sft").exists()


def test_a_run_has_a_page_and_its_figures(herd: HerdCommand, tmp_path: Path) -> None:
    run = tmp_path / "run"
    alone = (*(override for override in QUICK if not override.startswith("sft.")), "sft=none")
    assert herd("train", "tiny", *alone, "--output", str(run)).code == 0
    written = herd("train", "report", str(run))
    assert (written.code, written.out) == (0, "") and f"wrote {run / 'report.html'}" in written.err
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "PUE 1.1" in page and "held-out bits per byte" in page and "name = &quot;tiny&quot;" in page
    assert "Predicted and measured" in page and "40% (assumed)" in page
    answer = herd("train", "report", str(run), "--json", "--output", str(tmp_path / "other.html")).json
    pairs = {row["what"]: row for row in answer["stages"][0]["beside"]}
    assert list(pairs) == ["peak_bytes", "tokens_per_s", "step_s", "seconds", "energy_kwh", "carbon_kg"]
    assert all(row["planned"] > 0 and row["measured"] > 0 for row in pairs.values())
    said = json.loads((run / "prediction.json").read_text())["stages"][0]
    assert pairs["seconds"]["planned"] == said["seconds"] and said["num_steps"] == 3
    assert answer["page"] == str(tmp_path / "other.html") and answer["stages"][0]["num_steps"] == 3
    # Once a run has a speed, a dry run of its recipe rests on that.
    notes = herd("train", "tiny", *QUICK, "--dry-run", "--output", str(run)).out.splitlines()
    assert "tokens/s, as measured in" in notes[0] and "(assumed)" in notes[1]
    assert herd("train", "tiny", *alone, "--output", str(run)).code == 0, "a run that is done is done again at once"


@pytest.mark.parametrize(
    ("arguments", "code", "words"), [((), 2, "the folder of one run"), (("a", "b"), 2, "here 2"), (("nowhere",), 3, "no training log")]
)
def test_a_report_of_nothing_is_refused(herd: HerdCommand, arguments: tuple[str, ...], code: int, words: str) -> None:
    message, hint = herd("train", "report", *arguments).refusal(code)
    assert words in message and hint


@pytest.mark.parametrize("recipe", ["sft", "dpo", "reward"])
def test_a_post_training_recipe_is_inspected_before_it_runs(herd: HerdCommand, tmp_path: Path, tiny_folder: Path, recipe: str) -> None:
    record = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho."}]}
    if recipe != "sft":
        record = {"prompt": "Hi", "chosen": "Ho.", "rejected": "Ha."}  # type: ignore[dict-item]
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(record)}\n" * 3, encoding="utf-8")
    words = ("train", recipe, f"model={tiny_folder}", "heldback_one_in=0", "--inspect", "--data", "data.jsonl")
    result = herd(*words)
    assert (result.code, result.err) == (0, "") and "train / data: 1 rows" in result.out and "⟦Ho.<|eot_id|>⟧" in result.out
    view = herd(*words, "--json").json[0]
    assert view["num_rows"] == 1 and 0 < view["share_counted"] < view["share_filled"] < 1
    assert not (tmp_path / "runs" / recipe / "train").exists()


def test_a_run_that_a_signal_stopped_leaves_with_75(herd: HerdCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise PreemptedError("stopped after step 5 of 12", hint="run the same command again")

    monkeypatch.setattr("herd.recipes.pipeline.run_recipe", stopped)
    message, hint = herd("train", "tiny").refusal(75)
    assert "stopped after step 5" in message and "again" in hint
