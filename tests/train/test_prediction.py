"""What a run was expected to take: kept before its first step, never changed, and set beside what it took."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from small_run import small_model, small_stage, whole_run  # pyright: ignore[reportMissingImports]

from herd.base.config_io import apply_overrides
from herd.base.errors import ConfigError
from herd.model.presets import preset
from herd.plan.hardware import Device, catalogue
from herd.plan.train import Batch, Mesh, train_plan
from herd.recipes.config import RecipeConfig
from herd.recipes.estimate import Machine, describe, estimate_stages, estimate_tuning, stage_memory, this_machine
from herd.recipes.registry import find_recipe
from herd.train.adapters.config import LoraConfig
from herd.train.adapters.inject import inject
from herd.train.parallel.config import ParallelConfig
from herd.train.prediction import PREDICTION, StageEstimate, beside_measured, read_prediction, save_prediction
from herd.train.report import summarise, write_report

STAGE = StageEstimate(
    name="pretrain",
    num_steps=100,
    num_tokens=50_000,
    flops=1e12,
    memory_bytes=3_000,
    reserve_bytes=1_000,
    seconds=200.0,
    basis="<so>",
    watts=36.0,
)
MEASURED = {"num_steps": 50, "seconds": 80.0, "tokens_per_s": 300.0, "peak_memory_bytes": 2_500, "energy_kwh": 0.001}


def test_each_predicted_figure_stands_beside_the_measured_one() -> None:
    rows = {row.what: row for row in beside_measured(STAGE, **MEASURED, kg_per_kwh=0.5)}  # type: ignore[arg-type]
    assert {name: (row.planned, row.measured) for name, row in rows.items()} == {
        "peak_bytes": (3_000, 2_500),
        "tokens_per_s": (250, 300),
        "step_s": (2.0, 1.6),
        "seconds": (100.0, 80.0),
        "energy_kwh": (0.001, 0.001),
        "carbon_kg": (0.0005, 0.0005),
    }
    assert rows["seconds"].difference == pytest.approx(0.25)


def test_what_one_side_lacks_is_left_out() -> None:
    unmeasured = {**MEASURED, "tokens_per_s": None, "peak_memory_bytes": None, "energy_kwh": 0.0}
    assert [row.what for row in beside_measured(STAGE, **unmeasured, kg_per_kwh=0.5)] == ["step_s", "seconds"]  # type: ignore[arg-type]
    timeless = StageEstimate(name="x", num_steps=1, num_tokens=1, flops=1.0, memory_bytes=7)
    assert [row.what for row in beside_measured(timeless, **MEASURED, kg_per_kwh=0.0)] == ["peak_bytes"]  # type: ignore[arg-type]
    assert beside_measured(STAGE, **{**MEASURED, "num_steps": 0}, kg_per_kwh=0.5)[-1].what == "tokens_per_s"  # type: ignore[arg-type]


def test_the_allocator_of_a_gpu_does_not_see_what_is_no_tensor() -> None:
    from dataclasses import replace

    first = beside_measured(replace(STAGE, on_gpu=True), **MEASURED, kg_per_kwh=0.0)[0]  # type: ignore[arg-type]
    assert (first.what, first.planned) == ("peak_bytes", 2_000)


def test_a_prediction_is_made_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_prediction(tmp_path) == {}
    save_prediction(tmp_path / "run", [STAGE])
    save_prediction(tmp_path / "run", [])
    assert read_prediction(tmp_path / "run") == {"pretrain": STAGE}
    with caplog.at_level(logging.WARNING, logger="herd"):
        for damaged in ("{", "[]", '{"stages": [{"name": "x"}]}', '{"stages": 3}'):
            (tmp_path / "run" / PREDICTION).write_text(damaged)
            caplog.clear()
            assert read_prediction(tmp_path / "run") == {}
            assert "is no prediction" in caplog.text


def test_the_page_shows_both(tmp_path: Path) -> None:
    run = tmp_path / "run"
    whole_run(run / "pretrain")
    save_prediction(run, [STAGE])
    (summary,) = write_report(run, tmp_path / "page.html", pue=1.5, grid_kg_per_kwh=0.4)
    page = (tmp_path / "page.html").read_text()
    assert "<h3>Predicted and measured</h3>" in page and "&lt;so&gt;" in page and "<so>" not in page
    rows = {row.what: row for row in summary.beside}
    # Twelve of the hundred steps were made.
    assert rows["seconds"].planned == pytest.approx(24.0) and rows["seconds"].measured == pytest.approx(summary.seconds)
    assert rows["carbon_kg"].measured == pytest.approx(summary.carbon_kg)
    assert f"<td>{rows['tokens_per_s'].planned:,.0f}</td><td>{rows['tokens_per_s'].measured:,.0f}</td>" in page
    assert summarise(run / "pretrain").beside == ()


def _here(**changes: object) -> Device:
    from dataclasses import replace

    found = replace(catalogue()["h200"], name="here", title="a GPU", measured=True)
    return replace(found, **changes)  # type: ignore[arg-type]


def test_time_is_the_planners_where_this_machine_was_measured() -> None:
    config = apply_overrides(find_recipe("tiny"), ["sft=none"])
    assert isinstance(config, RecipeConfig)
    here = _here()
    (found,) = estimate_stages(config, machine=Machine(peak_flops=1e12, on_gpu=True, here=here))
    batch = Batch(sequence=128, tokens=2048, micro_batch=config.pretrain.micro_batch_size)
    planned = train_plan(config.model, here, mesh=Mesh(zero=0), batch=batch)
    assert found.step_s == pytest.approx(planned.step.total) and found.tokens_per_s == pytest.approx(planned.tokens_per_s)
    assert found.memory_bytes == planned.fullest.total and found.reserve_bytes == planned.fullest.reserve
    assert describe(found).endswith("by the plan of this machine: a GPU") and " kWh at 15 W at " in describe(found)


def test_a_mesh_has_the_memory_of_its_fullest_rank_and_the_speed_of_all() -> None:
    one = apply_overrides(find_recipe("llama-8b"), ["long_context=none", "anneal=none"])
    many = apply_overrides(one, ["parallel.dp_shard=8"])
    assert isinstance(one, RecipeConfig) and isinstance(many, RecipeConfig)
    machines = [Machine(peak_flops=1e15, on_gpu=True, processes=count) for count in (1, 8)]
    first, shared = (estimate_stages(config, machine=place)[0] for config, place in zip((one, many), machines, strict=True))
    states = 16 * one.model.num_parameters  # weights, gradients and two moments; what a rank computes with stays as it is
    assert first.memory_bytes - states < shared.memory_bytes < first.memory_bytes - 0.8 * states
    assert first.seconds == pytest.approx(8 * (shared.seconds or 0)) and shared.watts == 8 * first.watts
    # Processes of one processor share what it has.
    here = _here(kind="cpu")
    assert "by the plan" not in estimate_stages(many, machine=Machine(peak_flops=1e12, here=here))[0].basis


def test_a_mesh_that_a_later_stage_cannot_have_is_refused_beforehand() -> None:
    config = apply_overrides(find_recipe("llama-8b"), ["parallel.dp_shard=8"])
    assert isinstance(config, RecipeConfig)
    with pytest.raises(ConfigError, match="no multiple of 8 replicas x 1 sequences of 98,304"):
        estimate_stages(config)


def test_frozen_weights_need_no_states_and_no_products_of_their_own() -> None:
    stage, machine = small_stage(), Machine(peak_flops=1e12)
    model = small_model()
    whole = estimate_tuning("train", stage, model, machine)
    assert whole.flops == stage.num_tokens * model.config.training_flops_per_token(stage.sequence_length)
    assert 16 * model.config.num_parameters < whole.memory_bytes - whole.reserve_bytes
    inject(model, LoraConfig(rank=1), seed=1)
    some = estimate_tuning("train", stage, model, machine)
    assert 2 / 3 * whole.flops < some.flops < 0.8 * whole.flops
    assert some.memory_bytes < whole.memory_bytes and some.seconds == pytest.approx(some.flops / 4e11)


def test_processes_of_this_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from herd.recipes import estimate

    monkeypatch.setenv("HERD_HOME", str(tmp_path))
    monkeypatch.setattr(estimate, "measured_peak", lambda *_: 1e12)
    monkeypatch.setattr(estimate.os, "cpu_count", lambda: 4 * torch.get_num_threads())
    counts = [this_machine("cpu", torch.float32, ParallelConfig(dp_shard=ranks)).processes for ranks in (1, 2, 16)]
    assert counts == [1, 2, 4]
    assert this_machine("cuda", torch.float32, ParallelConfig(dp_shard=16)).processes == 16


def test_memory_of_a_real_stage_is_the_planners() -> None:
    stage = small_stage()
    config = preset("llama-3.2-1b")
    assert stage_memory(stage, config, on_gpu=True) > stage_memory(stage, config, on_gpu=True, parallel=ParallelConfig(tp=2))


def test_a_kept_prediction_is_plain_json(tmp_path: Path) -> None:
    save_prediction(tmp_path, [STAGE])
    assert json.loads((tmp_path / PREDICTION).read_text())["stages"][0]["basis"] == "<so>"
