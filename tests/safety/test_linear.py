"""Fitting and measuring: logistic regression finds what there is to find, a byte a weight is enough, figures are as their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.safety.features import rows_of
from herd.safety.figures import average_precision, measure, threshold_at_fpr
from herd.safety.linear import FitConfig, fit, quantise, sigmoid

SIZE = 2**12
GOOD = [
    f"the {animal} grazes on the {place}" for animal in ("llama", "cow", "goat", "sheep", "horse") for place in ("plain", "hill", "meadow")
]
BAD = [
    f"steal the {thing} from the {place}" for thing in ("wallet", "car", "phone", "ring", "bike") for place in ("shop", "house", "office")
]


def test_a_model_tells_two_kinds_apart_also_on_new_texts() -> None:
    labels = np.array([0.0] * len(GOOD) + [1.0] * len(BAD))
    model = fit(rows_of([*GOOD, *BAD], SIZE), labels, np.ones(len(labels)), SIZE)
    found = model.probabilities(rows_of(["the donkey grazes on the pasture", "steal the watch from the store"], SIZE))
    assert found[0] < 0.35 and found[1] > 0.65
    assert model.weights.dtype == np.int8


def test_training_is_the_same_every_time_and_importance_counts() -> None:
    rows = rows_of(["a b c", "a b c", "d e f"], SIZE)
    labels = np.array([1.0, 0.0, 0.0])
    first, second = (fit(rows, labels, np.array([9.0, 1.0, 1.0]), SIZE, FitConfig(num_steps=20)) for _ in range(2))
    assert np.array_equal(first.weights, second.weights) and first.bias == second.bias
    heavy = first.probabilities(rows)[0]
    light = fit(rows, labels, np.array([1.0, 9.0, 1.0]), SIZE, FitConfig(num_steps=20)).probabilities(rows)[0]
    assert heavy > 0.5 > light


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=50), st.floats(-2, 2))
def test_a_byte_a_weight_is_within_half_a_step(values: list[float], bias: float) -> None:
    weights = np.array(values)
    model = quantise(weights, bias)
    inside = np.abs(weights) <= 127.5 * model.scale
    assert np.all(np.abs(model.weights * model.scale - weights)[inside] <= 0.51 * model.scale)
    assert model.bias == bias


def test_the_sigmoid_does_not_overflow() -> None:
    np.testing.assert_allclose(sigmoid(np.array([-1e4, 0.0, 1e4])), [0.0, 0.5, 1.0])


def test_figures_by_hand() -> None:
    scores, positive = np.array([0.9, 0.8, 0.4, 0.3, 0.2]), np.array([True, False, True, False, False])
    found = measure(scores, positive, 0.5)
    assert (found.precision, found.recall, found.f1, found.fpr) == (0.5, 0.5, 0.5, pytest.approx(1 / 3))
    assert found.auprc == pytest.approx((1 + 2 / 3) / 2)
    assert (found.num_positive, found.num_negative) == (2, 3)
    none = measure(scores, np.zeros(5, dtype=bool), 0.5)
    assert (none.f1, none.recall, none.auprc, none.fpr) == (None, None, None, 0.4)


def test_equal_scores_are_one_step() -> None:
    assert average_precision(np.array([0.5, 0.5, 0.5, 0.5]), np.array([True, False, False, True])) == 0.5


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0, 0.9))
def test_a_threshold_keeps_to_its_false_positives_and_is_the_lowest(scores: list[float], fpr: float) -> None:
    benign = np.array(scores)
    threshold = threshold_at_fpr(benign, fpr)
    if threshold < 1.0:
        assert (benign >= threshold).mean() <= fpr + 1e-12
        below = benign[benign < threshold]
        assert len(below) == 0 or (benign >= below.max()).mean() > fpr
