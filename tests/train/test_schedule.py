"""The learning rate by step: a straight line up, half a cosine down, and where both begin and end."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.train.schedule import learning_rate


def rates(num_steps: int, warmup_steps: int, *, peak: float = 2.0, final_fraction: float = 0.01) -> list[float]:
    return [
        learning_rate(step, peak=peak, warmup_steps=warmup_steps, num_steps=num_steps, final_fraction=final_fraction)
        for step in range(num_steps)
    ]


def test_warm_up_is_a_straight_line_that_begins_above_zero_and_ends_at_the_peak() -> None:
    assert rates(100, 4)[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert rates(10, 0)[0] == 2.0


def test_the_last_step_is_at_the_final_fraction() -> None:
    for num_steps, warmup_steps in ((100, 4), (10, 0), (3, 1)):
        assert rates(num_steps, warmup_steps, final_fraction=0.05)[-1] == pytest.approx(0.1, rel=1e-12)
    assert rates(100, 4, final_fraction=0.0)[-1] == 0.0
    assert set(rates(10, 0, final_fraction=1.0)) == {2.0}


def test_halfway_down_the_rate_is_the_mean_of_peak_and_end() -> None:
    assert rates(21, 0, final_fraction=0.1)[10] == pytest.approx((2.0 + 0.2) / 2, rel=1e-12)


def test_the_descent_is_half_a_cosine() -> None:
    for step, rate in enumerate(rates(50, 10, final_fraction=0.02)[10:]):
        assert rate == pytest.approx(0.04 + (2.0 - 0.04) * (1 + math.cos(math.pi * step / 39)) / 2, rel=1e-12)


def test_a_run_that_is_all_warm_up_and_a_run_of_one_step_are_fine() -> None:
    assert rates(4, 4) == [0.5, 1.0, 1.5, 2.0]
    assert rates(1, 0) == [2.0]
    assert rates(1, 1) == [2.0]


@settings(deadline=None, max_examples=200)
@given(num_steps=st.integers(1, 300), data=st.data(), final_fraction=st.floats(0, 1))
def test_the_rate_rises_to_the_peak_then_falls_and_never_leaves_its_bounds(
    num_steps: int, data: st.DataObject, final_fraction: float
) -> None:
    warmup_steps = data.draw(st.integers(0, num_steps))
    values = rates(num_steps, warmup_steps, final_fraction=final_fraction)
    assert all(0 <= value <= 2.0 + 1e-12 for value in values)
    up, down = values[:warmup_steps], values[warmup_steps:]
    assert up == sorted(up) and len(set(up)) == len(up) and all(value > 0 for value in up)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(down))
    assert all(value >= 2.0 * final_fraction - 1e-12 for value in down)
