"""Drawing in C against the distribution that the sampler computes in numpy: the same tokens stay, and a number picks the same one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import C_KINDS, c_library, running

from herd.engine.draw import Drawer
from herd.engine.params import TokenParams
from herd.engine.sampler import best_ids, distribution, draw_in_numpy, sample, uniform
from herd.kernels.draw import NUMBERS, draw

pytestmark = pytest.mark.skipif("not __import__('herd.kernels.draw').kernels.draw.available()", reason="the C kernels do not run here")


def numbers(uniforms: np.ndarray, **chosen: Any) -> np.ndarray:
    made = np.zeros(len(uniforms), dtype=NUMBERS)
    for name, value in {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0, **chosen}.items():
        made[name] = value
    made["uniform"] = uniforms
    return made


class Here:
    """A runner as far as drawing goes."""

    draws_rows = True
    draw_rows = staticmethod(draw)


def drawer() -> Drawer:
    return Drawer(Here())


def params(**values: Any) -> TokenParams:
    return TokenParams(max_tokens=10, **values)


@pytest.mark.parametrize("kind", C_KINDS)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2, 17, 255, 256, 257, 1000, 8192]),
    spread=st.sampled_from([0.01, 1.0, 4.0, 30.0]),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 5, 50]),
    top_p=st.sampled_from([1.0, 0.93, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 0.03, 0.6]),
    banned=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_a_number_picks_the_token_that_numpy_picks(
    kind: str, seed: int, size: int, spread: float, temperature: float, top_k: int, top_p: float, min_p: float, banned: bool
) -> None:
    rng = np.random.default_rng(seed)
    scores = (rng.standard_normal(size) * spread).astype(np.float32)
    if banned and size > 1:
        scores[rng.permutation(size)[: size // 2]] = -np.inf
    chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    ids, probs = distribution(scores, params(**chosen))
    uniforms = rng.random(16)
    ends = np.cumsum(probs)
    with running(kind):
        found = draw(np.repeat(scores[None], 16, axis=0), numbers(uniforms, **chosen))
    for number, token_id in zip(uniforms, found, strict=True):
        [place] = np.flatnonzero(ids == token_id)
        assert ends[place] - probs[place] - 1e-5 <= number * ends[-1] <= ends[place] + 1e-5


@pytest.mark.parametrize("kind", C_KINDS)
def test_of_equals_the_lowest_ids_stay(kind: str) -> None:
    scores = np.array([[0.0, 1.0, -0.0, 1.0, 0.0, 1.0, 0.0]], dtype=np.float32)
    grid = (np.arange(200) + 0.5) / 200

    def kept(**chosen: Any) -> set[int]:
        return set(draw(np.repeat(scores, 200, axis=0), numbers(grid, **chosen)))

    with running(kind):
        assert kept(top_k=2) == {1, 3}
        assert kept(top_k=5) == {0, 1, 2, 3, 5}
        assert kept(top_p=1e-9) == {1}
        assert kept(min_p=0.9) == {1, 3, 5}
        assert kept(temperature=0.0) == {1}
        assert kept() == set(range(7))


def test_extreme_numbers_stay_in_bounds() -> None:
    scores = np.array([[3.4e38, -3.4e38, 0.0], [-np.inf, -3.4e38, -np.inf], [1e-45, 0.0, -1e-45]], dtype=np.float32)
    for temperature in (1e-300, 1e-6, 1.0, 1e6, 1e300):
        for number in (0.0, 0.5, 1 - 2**-53):
            first, second, third = draw(scores, numbers(np.full(3, number), temperature=temperature))
            assert (first, second) == (0, 1) or temperature >= 1e6
            assert second == 1 and third in range(3)


def test_a_row_is_drawn_alone_as_in_a_batch_whatever_the_threads() -> None:
    rng = np.random.default_rng(3)
    scores = rng.standard_normal((40, 1000), dtype=np.float32) * 3
    chosen = [
        params(
            temperature=float(rng.choice([0.0, 0.5, 1.0])), top_p=float(rng.choice([1.0, 0.8])), top_k=int(rng.choice([0, 20])), seed=row
        )
        for row in range(40)
    ]
    positions = list(range(100, 140))
    alone = [sample(scores[row], chosen[row], position=positions[row], draw=drawer().one) for row in range(40)]
    for threads in (1, 2, 5):
        with running(c_library().level, threads=threads):
            rows = drawer()
            for _ in range(2):
                assert rows.rows(scores, best_ids(scores), list(chosen), positions) == alone
            order = rng.permutation(40)
            mixed = rows.rows(scores[order], best_ids(scores[order]), [chosen[row] for row in order], [positions[row] for row in order])
            assert mixed == [alone[row] for row in order]


def test_a_row_of_noise_is_told_and_the_others_are_drawn() -> None:
    scores = np.random.default_rng(4).standard_normal((3, 50), dtype=np.float32)
    chosen = [params(temperature=1.0, seed=row) for row in range(3)]
    expected = drawer().rows(scores, best_ids(scores), chosen, [7, 8, 9])
    scores[1, 5] = np.nan
    assert drawer().rows(scores, best_ids(scores), chosen, [7, 8, 9]) == [expected[0], -1, expected[2]]


def test_what_c_does_not_know_is_drawn_in_numpy() -> None:
    scores = np.random.default_rng(5).standard_normal(300, dtype=np.float32)
    chosen = params(typical_p=0.5, seed=1)
    for position in range(20):
        assert sample(scores, chosen, position=position, draw=drawer().one) == draw_in_numpy(scores, chosen, uniform(1, position))


def test_without_a_kernel_numpy_draws_and_no_rows_at_once() -> None:
    scores = np.random.default_rng(6).standard_normal(300, dtype=np.float32)
    plain = Drawer(object())
    assert not plain.draws_rows(params(temperature=0.7)) and plain.draws_rows(params(temperature=0.0))
    assert plain.one(scores, params(seed=3), 0.4) == draw_in_numpy(scores, params(seed=3), 0.4)


@pytest.mark.parametrize("kind", C_KINDS)
@pytest.mark.parametrize("likely", [0, 1, 40])
def test_top_p_reaches_into_what_is_unlikely_where_the_likely_do_not_suffice(kind: str, likely: int) -> None:
    """Thousands of tokens at 2^-12 of the likeliest have most of the mass: the first of them stay, as far as top-p goes."""
    scores = np.full(8192, np.log(2.0**-12), dtype=np.float32)
    scores[100 : 101 + likely] = 0.0
    mass = 1 + likely + (8191 - likely) * 2.0**-12
    with running(kind):
        for top_p in (0.3, 0.9, 0.999):
            found = draw(np.repeat(scores[None], 64, axis=0), numbers((np.arange(64) + 0.5) / 64, top_p=top_p))
            unlikely = {token_id for token_id in found if not 100 <= token_id <= 100 + likely}
            if top_p * mass < 1 + likely:
                assert not unlikely
            else:
                assert unlikely and max(unlikely) <= (top_p * mass - 1 - likely) * 2.0**12 + likely + 3
