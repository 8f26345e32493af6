"""Bytes and calls of a step by dimension: counted by hand on small meshes, and in agreement with the seconds that they take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from herd.model.presets import preset
from herd.plan.mesh import Batch, Mesh
from herd.plan.pipeline import stages
from herd.plan.traffic import Traffic, step_traffic
from herd.plan.train import train_plan

SMALL = preset("llama-3.1-8b")


def traffic(mesh: Mesh, batch: Batch, rank: int = 0) -> dict[str, Traffic]:
    return {row.dimension: row for row in step_traffic(SMALL, mesh, batch, stages(SMALL, mesh)[rank])}


def test_one_device_sends_nothing() -> None:
    assert traffic(Mesh(), Batch(tokens=8192)) == {}


def test_tensor_parallel_calls_are_ten_a_layer_and_two_an_end() -> None:
    batch = Batch(sequence=1024, tokens=4096)
    row = traffic(Mesh(tp=4), batch)["tensor"]
    assert (row.ranks, row.calls) == (4, 4 * (32 * 10 + 4))
    assert row.sent_bytes == row.calls * 1024 * 4096 * 2 * 3 // 4
    assert traffic(Mesh(tp=4), replace(batch, recompute="full"))["tensor"].calls == 4 * (32 * 14 + 4)


def test_context_parallel_gathers_all_keys_and_values_of_the_heads_that_a_rank_has() -> None:
    row = traffic(Mesh(tp=2, cp=4), Batch(sequence=4096, tokens=4096))["context"]
    assert row.calls == 3 * 32 and row.sent_bytes == 96 * (4096 * 2 * 4 * 128 * 2) * 3 // 4


def test_each_chunk_sends_on_and_back_but_for_the_ends() -> None:
    mesh, batch = Mesh(pp=4, virtual_stages=2), Batch(sequence=1024, tokens=8192)
    calls = [traffic(mesh, batch, rank)["pipeline"].calls for rank in range(4)]
    assert calls == [8 * 3, 8 * 4, 8 * 4, 8 * 3]
    assert sum(calls) == 8 * 2 * (4 * 2 - 1), "every boundary between chunks is crossed once forward and once backward"
    assert traffic(mesh, batch, 1)["pipeline"].sent_bytes == 32 * 1024 * 4096 * 2


@pytest.mark.parametrize(
    ("zero", "calls", "bytes_a_parameter"), [(0, 34, 8), (1, 68, 4 + 2), (2, 34 * 5, 4 * 4 + 2), (3, 34 * 12, 4 * 4 + 8 * 2)]
)
def test_what_is_shared_is_reduced_and_gathered(zero: int, calls: int, bytes_a_parameter: int) -> None:
    row = traffic(Mesh(dp=2, zero=zero), Batch(sequence=1024, tokens=8192))["data"]
    assert (row.ranks, row.calls, row.sent_bytes) == (2, calls, SMALL.num_parameters * bytes_a_parameter // 2)


def test_a_pipeline_reduces_once_a_run() -> None:
    mesh, batch = Mesh(pp=4, dp=2, virtual_stages=2), Batch(sequence=1024, tokens=8 * 2 * 1024)
    row = traffic(mesh, batch, 1)["data"]
    assert row.calls == stages(SMALL, mesh)[1].num_layers * (2 + 1)


def test_seconds_are_bytes_over_the_link() -> None:
    plan = train_plan("8b", "h100-80gb", mesh=Mesh(tp=8, zero=0), batch=Batch(tokens=2**16))
    sent = {row.dimension: row for row in plan.traffic(0)}["tensor"]
    hops = sent.calls * 7 * plan.assumptions.link_latency_us * 1e-6
    assert plan.step.tensor == pytest.approx(sent.sent_bytes / (450e9 * plan.assumptions.link) + hops)
    assert plan.to_dict()["traffic"][0]["dimension"] == "tensor"
