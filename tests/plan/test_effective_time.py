"""Failures: the closed form against a simulation, the best interval against all others, and the report's own run."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import ConfigError
from herd.model.presets import preset
from herd.plan.failures import Reliability, best_interval_s, effective_time, save_s, wall_factor
from herd.plan.hardware import find_device


def simulated_factor(interval: float, save: float, restart: float, mean: float, rounds: int) -> float:
    """Wall clock over work of many intervals; failures strike work, saves and restarts alike."""
    draw = random.Random(7)
    clock, until_failure = 0.0, draw.expovariate(1 / mean)

    def survives(seconds: float) -> bool:
        nonlocal clock, until_failure
        if seconds < until_failure:
            until_failure -= seconds
            clock += seconds
            return True
        clock += until_failure
        until_failure = draw.expovariate(1 / mean)
        return False

    for _ in range(rounds):
        while not survives(interval + save):
            while not survives(restart):
                pass
    return clock / (interval * rounds)


@pytest.mark.parametrize(
    ("interval", "save", "restart", "mean"), [(220.0, 2.4, 600.0, 10_000.0), (900.0, 60.0, 300.0, 3600.0), (50.0, 5.0, 10.0, 400.0)]
)
def test_the_closed_form_is_what_a_simulation_of_failures_gives(interval: float, save: float, restart: float, mean: float) -> None:
    assert wall_factor(interval, save_s=save, restart_s=restart, mean_s=mean) == pytest.approx(
        simulated_factor(interval, save, restart, mean, 60_000), rel=0.01
    )


@given(save=st.floats(0.5, 300.0), mean=st.floats(1000.0, 1e6))
def test_no_other_interval_is_better_by_more_than_a_thousandth(save: float, mean: float) -> None:
    best = best_interval_s(save, mean)
    least = wall_factor(best, save_s=save, restart_s=60.0, mean_s=mean)
    for step in range(-30, 31):
        assert wall_factor(best * 1.1**step, save_s=save, restart_s=60.0, mean_s=mean) >= least * 0.999
    assert best == pytest.approx(math.sqrt(2 * save * mean), rel=0.5)


def test_saves_that_take_longer_than_machines_last_are_made_once_in_a_while() -> None:
    assert best_interval_s(5000.0, 1000.0) == 1000.0


def test_the_reports_run_is_effective_for_over_nine_tenths() -> None:
    device = find_device("meta-24k-roce")
    save = save_s(preset("llama-3.1-405b"), device, 16_384, "bf16")
    assert save == pytest.approx(12 * 405_853_388_800 / 2e12)
    found = effective_time(16_384, save)
    assert found.interruption_hours == pytest.approx(3.1, abs=0.05)
    assert found.share > 0.9
    assert found.share + found.saving + found.lost + found.restarting == pytest.approx(1.0)
    assert found.interval_s == pytest.approx(found.young_s, rel=0.02)


def test_one_device_is_hardly_ever_interrupted() -> None:
    alone = effective_time(1, 1.0)
    assert alone.interruption_hours > 50_000 and alone.share > 0.999


def test_quicker_restarts_and_storage_give_more() -> None:
    slow, usual, quick = (effective_time(16_384, 2.4, Reliability(restart_s=seconds)).share for seconds in (3600.0, 600.0, 60.0))
    assert slow < usual < quick < 1
    assert effective_time(16_384, 60.0).share < usual
    assert effective_time(16_384, 2.4, Reliability(planned_device_hours=math.inf)).share > usual


@pytest.mark.parametrize(("change", "message"), [({"device_hours": 0.0}, "device_hours is 0"), ({"restart_s": -1.0}, "restart_s is -1")])
def test_a_reliability_that_cannot_be_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Reliability(**change)
    with pytest.raises(ConfigError, match="a save takes 0"):
        effective_time(8, 0.0)
    with pytest.raises(ConfigError, match=r"every 10,012 s, restarts of 1,000,000 s and saves of 2 s never end"):
        effective_time(16_384, 2.4, Reliability(restart_s=1e6))
