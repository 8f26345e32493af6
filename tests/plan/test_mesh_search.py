"""The search: what it finds fits and is the fastest of all that there are, and it says what the others lose by."""

from __future__ import annotations

from dataclasses import replace

import pytest

from herd.base.errors import ConfigError, DoesNotFitError
from herd.model.presets import preset
from herd.plan.assumptions import default_assumptions
from herd.plan.hardware import find_device
from herd.plan.memory import fullest_bytes, train_memory
from herd.plan.mesh import RECOMPUTE, Batch, Mesh
from herd.plan.search import best_meshes, divisors, meshes, mildest, why_slower
from herd.plan.step_time import step_time
from herd.plan.train import train_plan

H100 = find_device("h100-80gb")
SUPPOSED = default_assumptions(H100)


def test_divisors_are_all_and_in_order() -> None:
    assert divisors(1) == [1] and divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36] and divisors(13) == [1, 13]


@pytest.mark.parametrize(("name", "count", "tokens"), [("llama-3.1-8b", 8, 2**18), ("llama-3.1-70b", 32, 2**17)])
def test_nothing_that_fits_is_faster_than_what_is_found(name: str, count: int, tokens: int) -> None:
    config, batch = preset(name), Batch(tokens=tokens)
    best = best_meshes(name.removeprefix("llama-3.1-"), H100, count, batch=batch)[0].plan
    assert best.fits and best.mesh.size == count
    tried = 0
    for mesh, load in meshes(config, H100, count, batch):
        for policy in RECOMPUTE:
            candidate = replace(load, recompute=policy)
            full = max(rank.total for rank in train_memory(config, mesh, candidate, SUPPOSED))
            assert fullest_bytes(config, mesh, candidate, SUPPOSED) == full
            if full <= H100.memory_bytes:
                tried += 1
                assert step_time(config, mesh, candidate, H100, SUPPOSED).total >= best.step.total - 1e-4
    assert tried > 50


def test_the_list_is_in_order_and_says_why() -> None:
    found = best_meshes("70b", H100, 64, batch=Batch(tokens=2**20), top=6)
    times = [one.plan.step.total for one in found]
    assert times == sorted(times) and all(one.plan.fits and one.plan.mesh.size == 64 for one in found)
    assert "held up by matrix products" in found[0].why
    for one in found[1:]:
        assert "slower: " in one.why and " s more of " in one.why
        assert f"{one.plan.step.total / times[0] - 1:.1%} slower" in one.why
    splits = {(one.plan.mesh.tp, one.plan.mesh.cp, one.plan.mesh.pp, one.plan.mesh.dp) for one in found}
    assert len(splits) == len(found)


def test_sizes_that_are_given_are_kept() -> None:
    fixed = {"tp": 8, "cp": 1, "pp": 16, "virtual_stages": 8, "zero": 2, "micro_batch": 1}
    found = best_meshes("405b", H100, 16_384, fixed=fixed, recompute="elementwise")
    assert [str(one.plan.mesh) for one in found] == ["TP 8, CP 1, PP 16 x 8, DP 128, ZeRO-2"]
    assert found[0].plan.batch.recompute == "elementwise"


def test_the_mildest_recomputation_that_fits_is_taken() -> None:
    config, mesh = preset("llama-3.1-405b"), Mesh(tp=8, pp=16, dp=64, virtual_stages=8)
    load = mildest(config, mesh, Batch(), H100, SUPPOSED)
    assert load is not None and load.recompute == "elementwise"
    assert mildest(config, Mesh(tp=8), Batch(), H100, SUPPOSED) is None


def test_what_does_not_fit_at_all_is_refused_with_the_closest() -> None:
    with pytest.raises(
        DoesNotFitError, match=r"llama-3.1-405b does not fit 8 x h100-80gb of 80 GB: .* lacks least, and needs \d+\.\d GB a device"
    ):
        best_meshes("405b", H100, 8)


@pytest.mark.parametrize(("count", "message"), [(0, "must be at least 1"), (4099, "no mesh of 4,099 devices")])
def test_numbers_of_devices_that_cannot_be_are_refused(count: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        best_meshes("8b", H100, count)
    with pytest.raises(ConfigError, match="more than the 24,576"):
        best_meshes("8b", "meta-24k-roce", 32_768)


def test_a_number_that_does_not_come_out_even_is_told_one_that_does() -> None:
    with pytest.raises(ConfigError, match="no mesh of 24,000 devices makes even batches of 16,777,216 tokens") as caught:
        best_meshes("405b", H100, 24_000)
    assert str(caught.value.hint).startswith("16,384 devices do; or choose a batch")


def test_chunks_that_are_given_are_kept() -> None:
    found = best_meshes("8b", H100, 8, batch=Batch(tokens=2**20), fixed={"virtual_stages": 2}, top=20)
    assert found and all(one.plan.mesh.virtual_stages == 2 and one.plan.mesh.pp > 1 for one in found)


def test_two_of_the_same_speed_are_as_fast() -> None:
    plan = train_plan("8b", H100, mesh=Mesh(dp=8, zero=3), batch=Batch(tokens=2**20))
    assert why_slower(plan, plan) == "as fast"
    pipe = train_plan("8b", H100, mesh=Mesh(pp=8), batch=Batch(tokens=2**20))
    assert "more of the pipeline bubble" in why_slower(plan, pipe)
