"""The trace of a rank that is not there: its peak memory against real runs, its collectives against the closed forms, the 405B's ranks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mesh_cases import (  # pyright: ignore[reportMissingImports]
    MEMORY_RUNS,
    measured_in_one_process,
    memory_config,
    memory_stage,
    mesh_config,
    mesh_stage,
)
from mesh_group import run_cases  # pyright: ignore[reportMissingImports]

from herd.base.errors import HerdError
from herd.kernels import dispatch
from herd.plan.hardware import find_device
from herd.recipes.llama import llama_405b
from herd.recipes.simulate import ranks_to_trace
from herd.train.parallel.beside import RankReport, beside
from herd.train.parallel.config import ParallelConfig
from herd.train.parallel.memory_tracker import MemoryTracker
from herd.train.parallel.simulate import simulate_rank

FULL = bool(os.environ.get("HERD_TEST_FULL"))


@pytest.mark.slow
def test_predicted_peak_memory_is_within_five_per_cent_of_the_measured_one(tmp_path: Path) -> None:
    """Measured is the CPU allocator's own record of a real step; predicted is the trace of tensors without values."""
    cases = [{"name": name, "run": "memory", "arguments": {"name": name}} for name in MEMORY_RUNS if name != "single"]
    two = run_cases(tmp_path, 2, cases)
    for name, (mesh, changes) in MEMORY_RUNS.items():
        for rank, measured in enumerate([{"single": measured_in_one_process()}] if name == "single" else two):
            predicted = simulate_rank(memory_config(), ParallelConfig(**mesh), memory_stage(changes), rank, device="cpu")
            assert predicted.parameters + predicted.optimizer == measured[name]["static"], name
            assert predicted.peak == pytest.approx(measured[name]["peak"], rel=0.05), (name, rank)


@pytest.mark.parametrize(
    "op", ["kernels.fused.rms_norm", "kernels.fused.swiglu", "kernels.fused.rotate", "train.attention.blockwise_attention"]
)
def test_a_trace_for_a_gpu_takes_none_of_the_cpus_kernels(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError(f"{op} is a CPU's")

    monkeypatch.setattr(f"herd.{op}", refuse)
    found = simulate_rank(memory_config(), ParallelConfig(), memory_stage({"compute_dtype": "bfloat16"}), 0)
    assert found.peak > found.parameters
    if dispatch.choice().library is None and "fused" in op:
        pytest.skip(f"no C kernels here: {dispatch.choice().why}")
    with pytest.raises(AssertionError, match="is a CPU's"):
        simulate_rank(memory_config(), ParallelConfig(), memory_stage({"compute_dtype": "bfloat16"}), 0, device="cpu")


def test_collectives_are_those_of_the_closed_forms() -> None:
    """Data parallel and pipeline messages agree; tensor parallel ones differ, since DTensor keeps what the planner gathers again."""
    parallel = ParallelConfig(dp_shard=2, pp=2, virtual_stages=2)
    model, stage = mesh_config(layers=4), mesh_stage()
    for rank in (0, 2):
        report = beside(simulate_rank(model, parallel, stage, rank), model, parallel, stage, find_device("h100-80gb"))
        rows = {row.what: (row.traced, row.planned) for row in report.rows}
        for name in ("parameters of the rank", "masters and moments", "pipeline: calls", "pipeline: sent", "data: calls", "data: sent"):
            traced, planned = rows[name]
            assert traced == pytest.approx(planned, rel=0.01), (rank, name)
        assert report.fits
        assert report.to_dict()["beside"]


def test_a_rank_of_sixteen_thousand_is_traced_with_little_memory() -> None:
    """The 405B's mesh with layers of a small model: 16,384 ranks, each of which can be asked for."""
    config = replace(mesh_config(layers=30), num_attention_heads=8, num_key_value_heads=8, head_dim=4)
    parallel = ParallelConfig(tp=8, pp=16, dp_shard=128, virtual_stages=2)
    stage = mesh_stage(batch_size=2048, micro_batch_size=1, recompute="full")
    found = simulate_rank(config, parallel, stage, 16_383)
    assert found.place == {"tp": 7, "cp": 0, "pp": 15, "dp_shard": 127, "dp_replicate": 0}
    assert found.chunks == ("15: 1 layers", "31: 0 layers, head")
    assert found.num_micro_batches == 16
    assert {row.dimension: row.ranks for row in found.collectives} == {"tensor": 8, "pipeline": 16, "data": 128}


PUBLISHED = {
    "8,192 GPUs": (ParallelConfig(tp=8, pp=16, dp_shard=64, virtual_stages=8), "pretrain"),
    "16,384 GPUs": (ParallelConfig(tp=8, pp=16, dp_shard=128, virtual_stages=8), "pretrain"),
    "16,384 GPUs, 128K": (ParallelConfig(tp=8, cp=16, pp=16, dp_shard=8, virtual_stages=8), "long-131072"),
}
"""The meshes of the report's table."""


def _traced(name: str, rank: int, *, recompute: str, depth: int = 126) -> RankReport:
    """A rank of a published mesh, and its plan; `depth` layers of the 405B, one chunk a rank where they are fewer."""
    recipe, (parallel, stage_name) = llama_405b(), PUBLISHED[name]
    stage = replace(dict(recipe.stages())[stage_name], ramp=(), recompute=recompute)
    assert stage.batch_size * stage.sequence_length == 16_777_216
    config = replace(recipe.model_at(stage_name), num_hidden_layers=depth)
    if depth < 126:
        parallel = replace(parallel, virtual_stages=1)
    return beside(simulate_rank(config, parallel, stage, rank), config, parallel, stage, find_device("h100-80gb"))


def _agree(report: RankReport, *names: str) -> None:
    rows = {row.what: (row.traced, row.planned) for row in report.rows}
    for name in names:
        traced, planned = rows[name]
        assert planned and traced == pytest.approx(planned, rel=0.01), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_layer_of_the_405b_on_each_published_mesh_is_what_the_closed_forms_say(name: str) -> None:
    """One layer of the real size a pipeline rank, where the run had eight: an eighth of the time, and every dimension at its size."""
    mesh = PUBLISHED[name][0]
    # Keys and values gathered again, rather than kept, are what the planner counts.
    report = _traced(name, 5 * 8 * mesh.cp, recompute="selective" if mesh.cp > 1 else "none", depth=14)
    found = report.simulation
    assert found.place["pp"] == 5 and found.chunks == ("5: 1 layers",)
    assert found.num_parameters == pytest.approx(405_853_388_800 / 126 / 8 / (mesh.dp * mesh.cp), rel=0.02)
    _agree(report, "parameters of the rank", "masters and moments", "pipeline: calls", "pipeline: sent", "data: calls", "data: sent")
    if mesh.cp > 1:
        _agree(report, "context: calls", "context: sent")
    assert report.fits


@pytest.mark.skipif(not FULL, reason="HERD_TEST_FULL=1 traces whole ranks of the 405B: its memory by recomputation, on each published mesh")
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_the_405bs_first_and_last_ranks_fit_eighty_gigabytes_when_enough_is_computed_again(name: str, recompute: str) -> None:
    """On 8,192 a rank has thirty-two micro-batches instead of sixteen, and only all again fits."""
    enough = ("full",) if name == "8,192 GPUs" else ("selective", "full")
    ranks = [_traced(name, rank, recompute=recompute) for rank in (0, 8 * 15 * PUBLISHED[name][0].cp)]
    assert all(report.fits for report in ranks) is (recompute in enough), [report.simulation.peak for report in ranks]
    for report in ranks:
        _agree(report, "parameters of the rank", "pipeline: calls")
        # Torch's interleaved schedule holds three chunks' parameters and gathers others again, which the planner does not count.
        calls = {row.kind: row.calls for row in report.simulation.collectives if row.dimension == "data"}
        assert calls["scatter"] == 8 and 8 <= calls["gather"] <= report.simulation.num_micro_batches
        if PUBLISHED[name][0].cp > 1 and recompute == "selective":
            _agree(report, "context: calls", "context: sent")


@pytest.mark.parametrize(("wanted", "ranks"), [("all", [0, 4]), ("7", [7])])
def test_ranks_to_trace(wanted: str, ranks: list[int]) -> None:
    assert ranks_to_trace(ParallelConfig(pp=2, tp=2, cp=2), wanted) == ranks


@pytest.mark.parametrize(("wanted", "message"), [("8", "rank 8 is none of the mesh's 8"), ("first", "takes a rank or `all`")])
def test_ranks_that_are_not_there(wanted: str, message: str) -> None:
    with pytest.raises(HerdError, match=message):
        ranks_to_trace(ParallelConfig(pp=2, tp=2, cp=2), wanted)


def test_the_tracker_counts_storages_once_and_forgets_what_is_freed() -> None:
    tracker = MemoryTracker()
    held = torch.zeros(1000)
    tracker.add([held, held.view(10, 100)])
    assert tracker.live == 4000
    with tracker:
        more = held + 1
        view = more[:10]
        del more
        assert tracker.live == 8000
        del view
        assert tracker.live == 4000
        held.untyped_storage().resize_(0)
    assert (tracker.live, tracker.peak) == (0, 8000)
