"""Drawing tokens: the distribution that comes out, what each limit keeps, ties, penalties, and the counter that makes seeds replay."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import CheckpointError
from herd.engine.params import TokenParams
from herd.engine.sampler import Floats, Scores, Seen, bent, best_ids, distribution, logprobs, sample, uniform


def params(**values: Any) -> TokenParams:
    return TokenParams(max_tokens=10, **values)


def scores_of(probs: list[float]) -> Scores:
    return np.log(np.array(probs)).astype(np.float32)


def full(scores: Scores, chosen: TokenParams) -> Floats:
    """The distribution over the whole vocabulary."""
    ids, probs = distribution(scores, chosen)
    whole = np.zeros(scores.size)
    whole[ids] = probs
    return whole


def kept(scores: Scores, chosen: TokenParams) -> list[int]:
    return np.flatnonzero(full(scores, chosen)).tolist()


def by_the_book(scores: Scores, chosen: TokenParams) -> Floats:
    """Temperature, top-k, top-p and min-p with every token sorted at each limit, in the field's words."""
    probs = np.exp((scores.astype(np.float64) - scores.max()) / chosen.temperature)
    probs /= probs.sum()

    def limit(keep: np.ndarray) -> None:
        probs[~keep] = 0.0
        probs[:] = probs / probs.sum()

    order = sorted(range(probs.size), key=lambda token: (-probs[token], token))
    if chosen.top_k:
        limit(np.isin(np.arange(probs.size), order[: chosen.top_k]))
    if chosen.top_p < 1.0:
        before, inside = 0.0, []
        for token in sorted(range(probs.size), key=lambda token: (-probs[token], token)):
            if before <= chosen.top_p and probs[token] > 0:
                inside.append(token)
            before += probs[token]
        limit(np.isin(np.arange(probs.size), inside))
    if chosen.min_p:
        limit(probs >= chosen.min_p * probs.max())
    return probs


@pytest.mark.parametrize(
    "chosen",
    [
        params(),
        params(temperature=0.5),
        params(temperature=2.0, top_p=0.8),
        params(top_k=3),
        params(min_p=0.3),
        params(typical_p=0.6),
        params(temperature=0.8, top_p=0.9, top_k=5, min_p=0.05),
    ],
)
def test_draws_follow_the_distribution(chosen: TokenParams) -> None:
    scores = np.array([1.0, 0.2, 2.0, -1.0, 0.5, 1.5, -0.3, 0.9], dtype=np.float32)
    expected, counts = full(scores, chosen), np.zeros(8)
    for position in range(4000):
        counts[sample(scores, chosen, position=position)] += 1
    inside = expected > 0
    assert counts[~inside].sum() == 0
    statistic = float(((counts[inside] - 4000 * expected[inside]) ** 2 / (4000 * expected[inside])).sum())
    # Mean and deviation of chi-square are k and sqrt(2k): five deviations up is one run in a million, and the seed is fixed.
    assert statistic < inside.sum() - 1 + 5 * math.sqrt(2 * max(1, int(inside.sum()) - 1))


# Steps of a quarter and limits that no sum of such shares meets: where a sum lies within rounding of a limit, either side would be right.
@settings(deadline=None, max_examples=400)
@given(
    scores=st.lists(st.integers(-48, 48).map(lambda quarters: quarters / 4), min_size=1, max_size=30),
    temperature=st.sampled_from((0.3, 0.7, 1.0, 1.9)),
    top_p=st.integers(1, 997).map(lambda share: share / 997),
    top_k=st.integers(0, 12),
    min_p=st.integers(0, 990).map(lambda share: share / 991),
)
def test_the_limits_are_those_of_the_book(scores: list[float], temperature: float, top_p: float, top_k: int, min_p: float) -> None:
    row = np.array(scores, dtype=np.float32)
    chosen = params(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    assert full(row, chosen) == pytest.approx(by_the_book(row, chosen), abs=1e-9)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-3, 100.0])
def test_no_temperature_overflows(temperature: float) -> None:
    probs = full(np.array([5.0, -3.0, 30.0], dtype=np.float32), params(temperature=temperature))
    assert np.isfinite(probs).all() and probs.sum() == pytest.approx(1.0) and probs.argmax() == 2


def test_top_p_keeps_a_token_while_the_mass_before_it_is_at_most_p() -> None:
    scores = scores_of([0.5, 0.25, 0.125, 0.125])
    assert kept(scores, params(top_p=0.7501)) == [0, 1, 2]
    assert kept(scores, params(top_p=0.7499)) == [0, 1]
    assert kept(scores, params(top_p=0.01)) == [0]


def test_top_k_keeps_exactly_k_and_the_lowest_ids_among_equals() -> None:
    zeros = np.zeros(6, dtype=np.float32)
    assert kept(zeros, params(top_k=2)) == [0, 1]
    assert kept(zeros, params(top_k=99)) == list(range(6))


def test_typical_sampling_keeps_what_surprises_as_expected_not_the_likeliest() -> None:
    # The entropy is 1.08 nats: 0.35 (1.05) is nearest, then 0.4 (0.92), then 0.25 (1.39).
    scores = scores_of([0.4, 0.35, 0.25])
    assert kept(scores, params(typical_p=0.2)) == [1]
    assert kept(scores, params(typical_p=0.5)) == [0, 1]
    assert kept(scores, params(typical_p=1.0)) == [0, 1, 2]


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    assert sample(np.array([0.0, 3.0, 3.0, 1.0], dtype=np.float32), params(temperature=0.0), position=0) == 1


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    scores = np.zeros(1000, dtype=np.float32)
    first = [sample(scores, params(seed=3), position=position) for position in range(20)]
    assert first == [sample(scores, params(seed=3), position=position) for position in reversed(range(20))][::-1]
    assert first != [sample(scores, params(seed=4), position=position) for position in range(20)]


def test_the_uniform_numbers_are_uniform_and_differ() -> None:
    numbers = [uniform(seed, position) for seed in range(50) for position in range(40)]
    assert len(set(numbers)) == len(numbers) and all(0.0 <= number < 1.0 for number in numbers)
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_no_numbers_are_refused(temperature: float) -> None:
    with pytest.raises(CheckpointError, match="token 7 are not finite") as caught:
        sample(np.array([0.0, float("nan")], dtype=np.float32), params(temperature=temperature), position=7)
    assert "verify" in str(caught.value.hint)


def test_penalties_reach_the_tokens_that_were_seen_and_no_others() -> None:
    scores = np.array([2.0, -2.0, 2.0, 2.0, 1.0], dtype=np.float32)
    seen = Seen(frozenset({0, 1}), Counter({2: 3}))
    assert bent(scores, params(repetition_penalty=2.0), seen).tolist() == [1.0, -4.0, 1.0, 2.0, 1.0]
    assert bent(scores, params(presence_penalty=0.5), seen).tolist() == [2.0, -2.0, 1.5, 2.0, 1.0]
    assert bent(scores, params(frequency_penalty=0.5), seen).tolist() == [2.0, -2.0, 0.5, 2.0, 1.0]
    assert scores.tolist() == [2.0, -2.0, 2.0, 2.0, 1.0]


def test_bias_and_bans_decide_what_can_come() -> None:
    scores = np.zeros(5, dtype=np.float32)
    assert sample(scores, params(logit_bias=((3, 9.0),), temperature=0.0), position=0) == 3
    assert sample(scores, params(banned_ids=(0, 1), temperature=0.0), position=0) == 2
    assert sample(scores, params(allowed_ids=(4, 2), temperature=0.0), position=0) == 2
    assert kept(bent(scores, params(allowed_ids=(4, 2), banned_ids=(2,)), None), params()) == [4]


def test_an_end_cannot_come_before_min_tokens() -> None:
    scores = np.array([0.0, 9.0], dtype=np.float32)
    chosen = params(min_tokens=2, stop_ids=frozenset({1}), temperature=0.0)
    assert sample(scores, chosen, Seen(frozenset(), Counter({0: 1})), position=1) == 0
    assert sample(scores, chosen, Seen(frozenset(), Counter({0: 2})), position=2) == 1


def test_log_probabilities_are_of_the_raw_scores_and_sorted_with_ties_by_id() -> None:
    scores = np.log(np.array([0.1, 0.4, 0.1, 0.4], dtype=np.float64)).astype(np.float32)
    found = logprobs(scores, 2, 3)
    assert found.token_id == 2 and found.logprob == pytest.approx(math.log(0.1), abs=1e-6)
    assert [token_id for token_id, _ in found.top] == [1, 3, 0]
    assert logprobs(scores, 2, 0).top == ()


def test_top_p_keeps_the_same_of_a_large_vocabulary_however_flat_it_is() -> None:
    rng = np.random.default_rng(4)
    for spread in (0.01, 0.5, 2.0, 8.0):
        scores = (rng.standard_normal(9000) * spread).round(1).astype(np.float32)
        for top_p in (1e-6, 0.5, 0.9, 0.999999):
            ids, probs = distribution(scores, params())
            order = np.lexsort((ids, -probs))
            before = np.cumsum(probs[order]) - probs[order]
            assert kept(scores, params(top_p=top_p)) == sorted(order[before <= top_p].tolist())


def test_the_best_ids_of_a_batch_are_those_of_its_rows() -> None:
    nothing, nan = float("-inf"), float("nan")
    rows = [[1.0, 3.0, 3.0], [nothing, nothing, -5.0], [0.0, nan, 9.0], [nothing] * 3, [0.0, float("inf"), 1.0]]
    scores = np.array(rows, dtype=np.float32)
    assert best_ids(scores) == [1, 2, -1, -1, -1]
    greedy = params(temperature=0.0)
    assert [sample(row, greedy, position=0, best=best) for row, best in zip(scores[:2], [1, 2], strict=True)] == [1, 2]
    with pytest.raises(CheckpointError):
        sample(scores[2], greedy, position=0, best=-1)
