"""The model card: what a run read, did, cost and scored, from its reports alone, with every source's licence and no chosen sample."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from herd.base.config_io import to_dict
from herd.base.errors import FormatError
from herd.checkpoint.load import load_model
from herd.data.curate.report import CurateReport
from herd.inference.output import Output
from herd.inference.port import FinishReason, Timings, Usage
from herd.model.transformer import Transformer
from herd.recipes.abilities import Abilities
from herd.recipes.card import UNKNOWN, Beside, StageReport, write_card
from herd.recipes.config import PowerConfig, RecipeConfig
from herd.recipes.pipeline import RunResult
from herd.text.messages import Message
from herd.text.tokenizer import Tokenizer, load_tokenizer
from herd.train.config import SourceConfig

REPORTS = (
    StageReport(
        name="pretrain",
        num_steps=2400,
        num_tokens=9_830_400,
        num_counted=9_123_456,
        seconds=5400.0,
        bits_per_byte={"en": 1.23456, "th": 0.75},
        epochs={"stories": 12.256, "own": 0.5},
        machine="x86_64, 2 threads, torch 2.13.0",
    ),
    StageReport(
        name="sft",
        num_steps=480,
        num_tokens=1_966_080,
        num_counted=456_789,
        seconds=1800.0,
        bits_per_byte={"en": 1.5},
        epochs={"own": 3.0},
        machine="another machine",
    ),
)
POWER = PowerConfig(hardware="two cores of a server", watts=12.0, pue=1.1, grid_kg_per_kwh=0.39)


@pytest.fixture(scope="module")
def model(finished: RunResult) -> Transformer:
    return load_model(finished.model)


@pytest.fixture(scope="module")
def tokenizer(finished: RunResult) -> Tokenizer:
    return load_tokenizer(finished.model)


@pytest.fixture(scope="module")
def config(quick: RecipeConfig) -> RecipeConfig:
    return replace(quick, power=POWER)


def card(config: RecipeConfig, model: Transformer, tokenizer: Tokenizer, folder: Path) -> tuple[str, dict[str, Any]]:
    """The card's text and the figures beside it."""
    write_card(config, REPORTS, model, tokenizer, folder)
    return (folder / "README.md").read_text(encoding="utf-8"), json.loads((folder / "training.json").read_text(encoding="utf-8"))


def section(text: str, title: str) -> str:
    """What stands below a heading."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def written(config: RecipeConfig, model: Transformer, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    return card(config, model, tokenizer, tmp_path_factory.mktemp("card"))


def test_energy_and_carbon_are_hours_times_watts_times_pue_and_the_grid(written: tuple[str, dict[str, Any]]) -> None:
    text, facts = written
    # Two hours of 12 W at a PUE of 1.1 are 26.4 Wh.
    assert (facts["hours"], facts["energy_kwh"], facts["carbon_kg_co2eq"]) == (2.0, 0.0264, 0.0103)
    assert "| training time | 2.0 h |" in text
    assert "| energy, by nameplate | 0.0264 kWh: two cores of a server, taken as 12 W, PUE 1.1 |" in text
    assert "| carbon, location-based | 0.0103 kg CO2eq at 0.39 kg/kWh (an assumed average grid) |" in text


def test_energy_that_a_meter_counted_is_told_from_what_the_nameplate_says(
    config: RecipeConfig, model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    metered = replace(REPORTS[0], energy_j=360_000.0, energy_method="nvml")
    config = replace(config, sample_prompts=())
    # 0.1 kWh of a meter, half an hour of 12 W, and the PUE of 1.1 on both.
    write_card(config, (metered, REPORTS[1]), model, tokenizer, tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| energy, measured (nvml) and by nameplate | 0.1166 kWh, PUE 1.1 (assumed) included |" in text
    write_card(config, (metered, replace(metered, name="sft")), model, tokenizer, tmp_path)
    assert "| energy, measured (nvml) | 0.22 kWh, PUE" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_model_that_left_its_recipe_has_its_own_stages_and_history(
    config: RecipeConfig, model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    more = replace(config.pretrain, sources=(SourceConfig(name="own", path="own:dialogues", weight=1.0),))
    again = replace(REPORTS[1], name="again", epochs={"own": 2.5})
    config = replace(config, sample_prompts=())
    stages = [*config.stages(), ("again", more)]
    write_card(config, (*REPORTS, again), model, tokenizer, tmp_path, stages=stages, history="It was tuned twice.")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "often wrong.\n\nIt was tuned twice.\n\n| | |" in text
    assert "| again | 480 |" in section(text, "Stages") and "| language | after pretrain | after sft | after again |" in text
    assert "| own (all) | 100.0 % of again, 2.50 epochs | written for herd | Apache-2.0 |" in section(text, "Data")
    with pytest.raises(ValueError, match="zip"):
        write_card(config, (*REPORTS, again), model, tokenizer, tmp_path)


def test_compute_is_each_stages_tokens_times_the_flops_of_one(written: tuple[str, dict[str, Any]], config: RecipeConfig) -> None:
    assert config.sft is not None and config.sft.sequence_length != config.pretrain.sequence_length
    expected = 9_830_400 * config.model.training_flops_per_token(config.pretrain.sequence_length)
    expected += 1_966_080 * config.model.training_flops_per_token(config.sft.sequence_length)
    text, facts = written
    assert facts["flops"] == float(expected)
    assert f"| compute | {expected:.3g} FLOP" in text


def test_the_model_is_described(written: tuple[str, dict[str, Any]], config: RecipeConfig) -> None:
    text, facts = written
    assert text.startswith("# tiny\n")
    assert facts["num_parameters"] == config.model.num_parameters
    assert f"{config.model.num_parameters:,} parameters" in text
    for row in (
        "| layers, width, ffn | 2, 32, 64 |",
        "| query / KV heads, head dim | 2 / 1, 16 |",
        "| vocabulary | 1,280 (256 special) |",
        "| context | 512 tokens |",
        "| weights | bfloat16, tied embedding |",
        "| trained on | x86_64, 2 threads, torch 2.13.0; then another machine |",
    ):
        assert row in text


def test_the_embedding_is_called_what_it_is(config: RecipeConfig, model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    untied = replace(config, model=replace(config.model, tie_word_embeddings=False), sample_prompts=())
    assert "| weights | bfloat16, untied embedding |" in card(untied, model, tokenizer, tmp_path)[0]


def test_every_stage_has_its_steps_tokens_and_minutes(written: tuple[str, dict[str, Any]]) -> None:
    text, facts = written
    assert "| pretrain | 2,400 | 9,830,400 | 9,123,456 | 90.0 |" in section(text, "Stages")
    assert "| sft | 480 | 1,966,080 | 456,789 | 30.0 |" in section(text, "Stages")
    assert [(stage["name"], stage["num_steps"], stage["num_tokens"], stage["num_counted"]) for stage in facts["stages"]] == [
        ("pretrain", 2400, 9_830_400, 9_123_456),
        ("sft", 480, 1_966_080, 456_789),
    ]
    assert facts["stages"][0]["epochs"] == {"stories": 12.26, "own": 0.5}


def test_held_out_bits_per_byte_stand_by_language_and_stage(written: tuple[str, dict[str, Any]]) -> None:
    table = section(written[0], "Held-out bits per byte")
    assert "| language | after pretrain | after sft |\n|---|---|---|\n| en | 1.235 | 1.500 |\n| th | 0.750 | - |" in table
    assert written[1]["stages"][0]["bits_per_byte"] == {"en": 1.23456, "th": 0.75}


def test_every_source_has_its_share_epochs_origin_and_licence(written: tuple[str, dict[str, Any]]) -> None:
    table = section(written[0], "Data")
    assert "| stories (all) | 83.3 % of pretrain, 12.26 epochs | written for herd | Apache-2.0 |" in table
    assert "| own (en) | 16.7 % of pretrain, 0.50 epochs | written for herd | Apache-2.0 |" in table
    assert "| own (en) | 100.0 % of sft, 3.00 epochs | written for herd | Apache-2.0 |" in table
    assert "released under Apache-2.0" in section(written[0], "Licence")


def test_a_source_that_is_not_on_record_is_named_and_the_weights_licence_left_open(
    config: RecipeConfig, model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    own = SourceConfig(name="stories", path="mine/diary.jsonl.zst", languages=("en", "th"))
    text, _ = card(replace(config, pretrain=replace(config.pretrain, sources=(own,)), sample_prompts=()), model, tokenizer, tmp_path)
    assert f"| stories (en, th) | 100.0 % of pretrain, 12.26 epochs | mine/diary.jsonl.zst | {UNKNOWN} |" in text
    assert "Apache-2.0" not in section(text, "Licence")
    assert "whoever trained them" in section(text, "Licence")


def test_public_sources_are_credited(config: RecipeConfig, model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    public = SourceConfig(name="stories", path="corpus/klexikon_de.jsonl.zst", languages=("de",))
    text, _ = card(replace(config, pretrain=replace(config.pretrain, sources=(public,)), sample_prompts=()), model, tokenizer, tmp_path)
    assert "| Klexikon: dennlinger/klexikon | CC-BY-SA-4.0 |" in section(text, "Data")
    assert "released under Apache-2.0; the data keep the licences named above" in section(text, "Licence")


def test_samples_are_the_recipes_prompts_in_their_order_once_each_and_the_same_every_time(
    config: RecipeConfig, model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prompts = ("Who are you?", "Hello!", "นมัสเต", "Hello!")
    first = section(card(replace(config, sample_prompts=prompts), model, tokenizer, tmp_path)[0], "Samples")
    again = section(card(replace(config, sample_prompts=prompts), model, tokenizer, tmp_path)[0], "Samples")
    assert first == again
    assert "Temperature 0.6, top-p 0.9, seed 0, one try each" in first
    found = re.findall(r"^\*\*(.+)\*\* \((ended its turn|length)\)$", first, re.MULTILINE)
    assert tuple(prompt for prompt, _ in found) == prompts
    answers = [part.split("\n\n", 1)[1].strip() for part in first.split("**")[2::2]]
    assert len(answers) == 4 and answers[1] == answers[3]
    assert all(line.startswith(">") for answer in answers for line in answer.splitlines())


def test_an_empty_answer_is_shown_as_such(
    config: RecipeConfig, model: Transformer, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("herd.recipes.card._samples", lambda *_: [said(""), said("one\n\ntwo", "length")])
    samples = section(card(replace(config, sample_prompts=("Hello!", "Bye!")), model, tokenizer, tmp_path)[0], "Samples")
    assert "**Hello!** (ended its turn)\n\n> (empty)\n" in samples
    assert "**Bye!** (length)\n\n> one\n> \n> two\n" in samples


def said(text: str, reason: FinishReason = "stop") -> Output:
    """An answer."""
    used, took = Usage(prompt_tokens=1, completion_tokens=1), Timings(prefill_s=0.0, decode_s=0.0, tokens_per_s=0.0)
    return Output(text=text, message=Message.assistant(text), token_ids=(), finish_reason=reason, usage=used, timings=took)


ABLE = Abilities(
    bits_per_byte={"de": 2.0, "en": 1.5}, needles={1024: 0.95, 8192: 0.8}, num_needles=20, tools_right=9, calls_right=8, num_calls=10,
    turns_ended=2, num_turns=2,
)  # fmt: skip


def test_another_model_stands_beside_the_new_one(
    config: RecipeConfig, model: Transformer, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([[said("Good day.")], [said("Goo", "length")]])
    monkeypatch.setattr("herd.recipes.card._samples", lambda *_: next(answers))
    other = Abilities(bits_per_byte={"de": 3.0, "en": 2.5}, needles={1024: 0.0}, num_needles=20, num_calls=10, num_turns=2)
    beside = Beside(name="cria", model=model, tokenizer=tokenizer, abilities=other)
    config = replace(config, sample_prompts=("Hello!",))
    write_card(config, REPORTS, model, tokenizer, tmp_path, abilities=ABLE, beside=beside)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert section(text, "What it can do").strip().splitlines()[2:] == [
        "| | tiny | cria |",
        "|---|---|---|",
        "| held-out bits per byte, de | 2.000 | 3.000 |",
        "| held-out bits per byte, en | 1.500 | 2.500 |",
        "| facts found in 1,024 tokens, of 20 | 95% | 0% |",
        "| facts found in 8,192 tokens, of 20 | 80% | no room |",
        "| right tool, of 10 requests kept back | 9 | 0 |",
        "| right tool and arguments | 8 | 0 |",
        "| turns ended, of 2 | 2 | 0 |",
    ]
    assert "**Hello!**\n\ntiny (ended its turn):\n\n> Good day.\n\ncria (length):\n\n> Goo\n" in section(text, "Samples")
    facts = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))
    assert facts["abilities"]["cria"]["needles"] == {"1024": 0.0} and facts["abilities"]["tiny"]["calls_right"] == 8


def test_an_earlier_edition_of_the_same_name_is_told_apart(
    config: RecipeConfig, model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config, beside = replace(config, sample_prompts=()), Beside(name=config.name, model=model, tokenizer=tokenizer, abilities=ABLE)
    write_card(config, REPORTS, model, tokenizer, tmp_path, abilities=ABLE, beside=beside)
    assert "| | tiny | tiny before |" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_curation_is_told_by_its_own_report(config: RecipeConfig, model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config, data = replace(config, sample_prompts=()), tmp_path / "data"
    data.mkdir()
    stages: list[dict[str, Any]] = [{"stage": "read", "dropped": {}}, {"stage": "exact_dedup", "dropped": {"same text": [3, 40]}}]
    report = CurateReport(
        name="clean",
        total={"documents_in": 1200, "bytes_in": 5_000_000, "documents_out": 1000, "bytes_out": 4_000_000},
        stages=tuple(stages), searches={}, before={}, after={}, config={},
    )  # fmt: skip

    def told(report: CurateReport | None) -> str:
        if report is not None:
            (data / "report.json").write_text(json.dumps(to_dict(report)), encoding="utf-8")
        write_card(config, REPORTS, model, tokenizer, tmp_path, data=data)
        return section((tmp_path / "README.md").read_text(encoding="utf-8"), "Data")

    assert "Overlap with public evaluation sets was not checked for this edition." in told(None)
    assert (
        "The text was curated by `herd data curate` (read, exact_dedup): of 1,200 documents (5.0 MB) 1,000 (4.0 MB) were kept.\n"
        "Overlap with public evaluation sets was not checked."
    ) in told(report)
    checked = replace(report, stages=(*stages, {"stage": "decontaminate", "dropped": {"8-grams": [15, 1], "13-gram": [6, 2]}}))
    assert "21 of those left out overlapped with public evaluation sets." in told(checked)
    (data / "report.json").write_text('{"name": 1}', encoding="utf-8")
    with pytest.raises(FormatError, match="is no report of a curation"):
        told(None)
