"""The order of rows: a pure function of seed and sample number, with the shares that the weights ask for, each source epoch by epoch."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import ConfigError
from herd.data.mixture import Mixture
from herd.data.rows import Rows


def rows_of(count: int, *, mark: int, length: int = 4) -> Rows:
    """Rows that say where they come from: the first token is `mark`, the second the row's number."""
    tokens = np.zeros((count, length), dtype=np.int32)
    tokens[:, 0], tokens[:, 1] = mark, np.arange(count)
    return Rows(tokens=tokens, documents=np.full((count, length), mark, dtype=np.int16), counts=tokens % 2 == 1)


def mixture_of(sizes: list[int], weights: list[float], *, seed: int = 0, num_samples: int = 100) -> Mixture:
    sources = {f"source {number}": rows_of(size, mark=number) for number, size in enumerate(sizes)}
    return Mixture(
        sources, {name: float(weight) for name, weight in zip(sources, weights, strict=True)}, seed=seed, num_samples=num_samples
    )


def picks(mixture: Mixture, first: int = 0, size: int | None = None) -> list[tuple[int, int]]:
    """The (source, row) of some samples."""
    tokens = mixture.batch(first, len(mixture) - first if size is None else size)[0]
    return [(int(mark), int(row)) for mark, row in tokens[:, :2]]


SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=4)


@settings(deadline=None, max_examples=100)
@given(sizes=SIZES, seed=st.integers(0, 2**40), samples=st.integers(1, 60), more=st.integers(0, 100), order=st.randoms())
def test_a_sample_is_a_function_of_seed_and_number_alone(
    sizes: list[int], seed: int, samples: int, more: int, order: random.Random
) -> None:
    weights = [1.0 + number for number in range(len(sizes))]
    expected = picks(mixture_of(sizes, weights, seed=seed, num_samples=samples))
    # Neither what is read before nor how long the run is makes a difference.
    other = mixture_of(sizes, weights, seed=seed, num_samples=samples + more)
    numbers = list(range(samples))
    order.shuffle(numbers)
    assert [picks(other, number, 1)[0] for number in numbers] == [expected[number] for number in numbers]


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, first=st.integers(0, 50), size=st.integers(1, 30))
def test_a_batch_is_its_samples_one_after_another(sizes: list[int], first: int, size: int) -> None:
    mixture = mixture_of(sizes, [1.0] * len(sizes), seed=3)
    whole = mixture.batch(first, size)
    singles = [mixture.batch(first + number, 1) for number in range(size)]
    for part, name in enumerate(("tokens", "documents", "counts")):
        np.testing.assert_array_equal(whole[part], np.concatenate([single[part] for single in singles]), err_msg=name)
    assert [part.dtype for part in whole] == [np.int32, np.int16, np.bool_]


def test_tokens_documents_and_mask_of_a_sample_are_those_of_one_row() -> None:
    mixture = mixture_of([5, 3], [1, 2])
    tokens, documents, counts = mixture.batch(0, 40)
    for number, (source, row) in enumerate(picks(mixture, 0, 40)):
        rows = mixture.rows[source]
        np.testing.assert_array_equal(tokens[number], rows.tokens[row])
        np.testing.assert_array_equal(documents[number], rows.documents[row])
        np.testing.assert_array_equal(counts[number], rows.counts[row])


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, seed=st.integers(0, 1000))
def test_every_row_comes_once_an_epoch(sizes: list[int], seed: int) -> None:
    drawn = picks(mixture_of(sizes, [1.0] * len(sizes), seed=seed))
    for source, size in enumerate(sizes):
        rows = [row for mark, row in drawn if mark == source]
        epochs = [rows[start : start + size] for start in range(0, len(rows), size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs if len(epoch) == size)
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs)


def test_epochs_and_seeds_and_sources_have_orders_of_their_own() -> None:
    drawn = picks(mixture_of([50], [1], seed=1, num_samples=100))
    assert drawn[:50] != drawn[50:]
    assert drawn != picks(mixture_of([50], [1], seed=2, num_samples=100))
    both = picks(mixture_of([50, 50], [1, 1], seed=1, num_samples=300))
    first, second = ([row for mark, row in both if mark == source][:50] for source in (0, 1))
    assert first != second


def test_shares_approach_the_weights() -> None:
    weights = [1.0, 2.0, 0.5, 6.5]
    mixture = mixture_of([3, 5, 7, 11], weights, seed=4, num_samples=40_000)
    counts = np.bincount([source for source, _ in picks(mixture)], minlength=4)
    # Five standard deviations of a binomial share at its widest are 0.0125.
    np.testing.assert_allclose(counts / len(mixture), np.array(weights) / sum(weights), atol=0.0125)
    assert len(mixture) == 40_000


def test_weights_are_relative() -> None:
    assert picks(mixture_of([3, 4], [1, 3])) == picks(mixture_of([3, 4], [100, 300]))


def test_a_source_of_weight_zero_is_never_read_and_may_be_empty() -> None:
    mixture = mixture_of([3, 0, 4], [1, 0, 1])
    assert {source for source, _ in picks(mixture)} == {0, 2}
    assert mixture.names == ["source 0", "source 2"]


def test_epochs_say_how_often_each_source_has_been_read() -> None:
    mixture = mixture_of([4, 10], [1, 1], seed=9, num_samples=60)
    for num_samples in (0, 1, 17, 60):
        drawn = [source for source, _ in picks(mixture)[:num_samples]]
        assert mixture.epochs(num_samples) == {"source 0": drawn.count(0) / 4, "source 1": drawn.count(1) / 10}


def test_no_positive_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match="no data source has a positive weight") as caught:
        mixture_of([3, 4], [0, 0])
    assert "above 0" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="no data source"):
        Mixture({}, {}, seed=0, num_samples=1)


def test_an_empty_source_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="data source 'source 1' is empty") as caught:
        mixture_of([3, 0], [1, 1])
    assert "language filter" in str(caught.value.hint)


def test_a_read_past_the_end_is_an_error_not_a_repetition() -> None:
    with pytest.raises(IndexError):
        mixture_of([3], [1], num_samples=10).batch(8, 3)
