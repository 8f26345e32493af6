"""What Llama's report and cards print is what the planner computes, within tolerances that stand here, and by one set of assumptions."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from herd.plan.assumptions import Assumptions
from herd.plan.mesh import Mesh
from herd.plan.published import HOURS_405B, TABLE_4, Comparison, comparisons, compute_days, table_plan
from herd.plan.train import Measured, train_plan, with_run

ALL = comparisons()


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.what)
def test_every_figure_is_within_its_tolerance(one: Comparison) -> None:
    assert one.agrees, f"{one.published} is published, {one.ours} computed"


def test_tolerances_are_the_agreed_ones() -> None:
    found = {one.what: one.tolerance for one in ALL}
    assert all(tolerance == 0.1 for what, tolerance in found.items() if "TFLOPs a GPU" in what)
    assert all(
        tolerance == 0
        for what, tolerance in found.items()
        if "tokens a batch" in what or "llama-2" in what or what.endswith("cache of a token")
    )
    assert found["llama-3.1: 405B, 30,840,000 h"] == 0.0005 and found["llama-3.1: all three"] == 0.0015
    assert max(found.values()) == 0.1 and len(ALL) >= 35


def test_a_figure_that_is_off_is_seen() -> None:
    off = Comparison(group="", what="", unit="", published=100.0, ours=111.0, tolerance=0.1)
    assert not off.agrees and off.difference == pytest.approx(0.11) and not off.to_dict()["agrees"]
    assert not replace(off, ours=100.01, tolerance=0.0).agrees and replace(off, ours=110.0).agrees


@pytest.mark.parametrize("row", TABLE_4, ids=lambda row: f"{row.devices}-{row.sequence}")
def test_a_row_of_the_table_has_16m_tokens_the_gpus_and_the_throughput(row: object) -> None:
    plan = table_plan(row)  # type: ignore[arg-type]
    assert plan.batch.tokens == 16_777_216 and plan.mesh.size == row.devices  # type: ignore[attr-defined]
    assert plan.num_micro_batches == row.batch_per_replica  # type: ignore[attr-defined]
    assert plan.tflops == pytest.approx(row.tflops, rel=0.1)  # type: ignore[attr-defined]
    assert plan.assumptions == Assumptions(), "no row has assumptions of its own"
    assert plan.fits and plan.batch.recompute == "elementwise"


@pytest.mark.parametrize("name", ["matmul", "attention", "link", "network", "memory"])
@pytest.mark.parametrize("factor", [0.96, 1.04])
def test_the_rows_do_not_hang_on_the_last_digit_of_an_assumption(name: str, factor: float) -> None:
    supposed = replace(Assumptions(), **{name: getattr(Assumptions(), name) * factor})
    for row in TABLE_4:
        plan = table_plan(row)
        moved = train_plan("405b", plan.device, mesh=plan.mesh, batch=plan.batch, assumptions=supposed)
        assert moved.tflops == pytest.approx(row.tflops, rel=0.1)


def test_15_6_trillion_tokens_take_72_days_of_compute_and_78_of_wall_time() -> None:
    plan = table_plan(TABLE_4[1])
    assert compute_days(plan.config) == pytest.approx(72.3, abs=0.05)
    assert pytest.approx(78.4, abs=0.05) == HOURS_405B / 16_384 / 24
    run = with_run(plan, 14.8e12).run
    assert run is not None and run.effective.share > 0.9 and run.effective.interruption_hours == pytest.approx(3.1, abs=0.05)
    long = with_run(table_plan(TABLE_4[2]), 0.8e12).run
    assert long is not None
    # By the planner's own TFLOPs instead of the published ones.
    assert (run.wall_s + long.wall_s) / 86_400 == pytest.approx(78.4, rel=0.06)
    assert run.account.device_hours + long.account.device_hours == pytest.approx(HOURS_405B, rel=0.06)
    assert run.num_steps == -(-14_800_000_000_000 // 16_777_216)
    assert run.num_interruptions == pytest.approx(run.wall_s / run.effective.mean_s)


def test_a_plan_is_json_and_needs_no_torch() -> None:
    code = (
        "import sys, json, herd.plan as p; json.dumps(p.train_plan('8b', 'h200', tokens=1e9).to_dict()); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_plan_of_a_step_alone_has_no_run() -> None:
    plan = train_plan("8b", "h200", mesh=Mesh(dp=8, zero=3))
    assert plan.run is None and plan.to_dict()["run"] is None
    assert plan.to_dict()["mesh"]["devices"] == 8 and plan.to_dict()["bound"] == "products"


def test_a_plan_stands_beside_what_a_run_measured() -> None:
    plan = train_plan("8b", "h200", mesh=Mesh(dp=8, zero=3))
    rows = {one.what: one for one in plan.beside(Measured(tokens_per_s=plan.tokens_per_s / 2, peak_bytes=plan.fullest.total))}
    assert set(rows) == {"tokens_per_s", "tflops_per_device", "peak_bytes"}
    assert rows["tokens_per_s"].difference == pytest.approx(1.0) == rows["tflops_per_device"].difference
    assert rows["peak_bytes"].difference == 0.0 and plan.beside(Measured()) == ()
