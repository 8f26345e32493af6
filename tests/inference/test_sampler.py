"""Drawing tokens: the distribution that comes out, what each limit keeps, ties, and the counter that makes seeds replay."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herd.base.errors import CheckpointError
from herd.inference.params import SamplingParams
from herd.inference.sampler import probabilities, sample, uniform

ALL = SamplingParams(temperature=1.0, top_p=1.0)


def logits_of(probs: list[float]) -> Tensor:
    return torch.tensor(probs, dtype=torch.float64).log().float()


def kept(probs: Tensor) -> list[int]:
    return torch.nonzero(probs).flatten().tolist()


def chi_square(params: SamplingParams, logits: Tensor, draws: int = 4000) -> tuple[float, int]:
    """The statistic of `draws` draws at one seed, and its degrees of freedom."""
    expected = probabilities(logits, params)
    counts = torch.zeros_like(expected)
    for position in range(draws):
        counts[sample(logits, params, seed=11, position=position)] += 1
    inside = expected > 0
    assert counts[~inside].sum() == 0
    terms = (counts[inside] - draws * expected[inside]) ** 2 / (draws * expected[inside])
    return float(terms.sum()), int(inside.sum()) - 1


@pytest.mark.parametrize(
    "params",
    [
        ALL,
        SamplingParams(temperature=0.5, top_p=1.0),
        SamplingParams(temperature=2.0, top_p=0.8),
        SamplingParams(temperature=1.0, top_p=1.0, top_k=3),
        SamplingParams(temperature=1.0, top_p=1.0, min_p=0.3),
        SamplingParams(temperature=0.8, top_p=0.9, top_k=5, min_p=0.05),
    ],
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    logits = torch.tensor([1.0, 0.2, 2.0, -1.0, 0.5, 1.5, -0.3, 0.9])
    statistic, freedom = chi_square(params, logits)
    # Mean and deviation of chi-square are k and sqrt(2k): five deviations up is one run in a million, and the seed is fixed.
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_temperature_divides_the_logits() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    got = probabilities(logits, SamplingParams(temperature=0.5, top_p=1.0))
    assert torch.allclose(got, torch.softmax(logits.double() / 0.5, -1))


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-3, 100.0])
def test_no_temperature_overflows(temperature: float) -> None:
    probs = probabilities(torch.tensor([5.0, -3.0, 30.0]), SamplingParams(temperature=temperature, top_p=1.0))
    assert torch.isfinite(probs).all() and probs.sum() == pytest.approx(1.0) and int(probs.argmax()) == 2


def test_top_p_keeps_a_token_while_the_mass_before_it_is_at_most_p() -> None:
    logits = logits_of([0.5, 0.25, 0.125, 0.125])
    # Before the third token lies a mass of 0.75: kept at 0.75 exactly, dropped just below.
    assert kept(probabilities(logits, SamplingParams(temperature=1.0, top_p=0.7501))) == [0, 1, 2]
    assert kept(probabilities(logits, SamplingParams(temperature=1.0, top_p=0.7499))) == [0, 1]
    assert kept(probabilities(logits, SamplingParams(temperature=1.0, top_p=0.01))) == [0]


def test_top_k_keeps_exactly_k_and_the_lowest_ids_among_equals() -> None:
    probs = probabilities(torch.zeros(6), SamplingParams(temperature=1.0, top_p=1.0, top_k=2))
    assert kept(probs) == [0, 1] and probs[0] == 0.5
    assert len(kept(probabilities(torch.zeros(6), SamplingParams(temperature=1.0, top_p=1.0, top_k=99)))) == 6


def test_min_p_drops_what_is_below_its_share_of_the_likeliest() -> None:
    logits = logits_of([0.5, 0.3, 0.14, 0.06])
    assert kept(probabilities(logits, SamplingParams(temperature=1.0, top_p=1.0, min_p=0.25))) == [0, 1, 2]
    assert kept(probabilities(logits, SamplingParams(temperature=1.0, top_p=1.0, min_p=1.0))) == [0]


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    assert sample(torch.tensor([0.0, 3.0, 3.0, 1.0]), SamplingParams(temperature=0.0), seed=1, position=0) == 1


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    logits = torch.zeros(1000)
    first = [sample(logits, ALL, seed=3, position=position) for position in range(20)]
    backwards = [sample(logits, ALL, seed=3, position=position) for position in reversed(range(20))]
    assert first == backwards[::-1]
    assert first != [sample(logits, ALL, seed=4, position=position) for position in range(20)]


def test_the_uniform_numbers_are_uniform_and_differ() -> None:
    numbers = [uniform(seed, position) for seed in range(50) for position in range(40)]
    assert len(set(numbers)) == len(numbers)
    assert all(0.0 <= number < 1.0 for number in numbers)
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.03)


@settings(deadline=None, max_examples=150)
@given(
    scores=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12),
    temperature=st.floats(0.05, 5),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 13),
    min_p=st.floats(0, 1),
    seed=st.integers(),
)
def test_what_is_drawn_was_never_ruled_out(
    scores: list[float], temperature: float, top_p: float, top_k: int, min_p: float, seed: int
) -> None:
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    logits = torch.tensor(scores)
    probs = probabilities(logits, params)
    assert probs.sum() == pytest.approx(1.0)
    assert probs[int(logits.argmax())] > 0
    assert len(kept(probs)) <= (top_k or len(scores))
    assert probs[sample(logits, params, seed=seed, position=0)] > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_no_numbers_are_refused(temperature: float) -> None:
    with pytest.raises(CheckpointError, match="not finite") as caught:
        sample(torch.tensor([0.0, float("nan")]), SamplingParams(temperature=temperature), seed=0, position=7)
    assert "7" in caught.value.message and "verify" in str(caught.value.hint)
