"""Requests to measure with: the same for a seed, of the lengths that were asked, at the times of a Poisson process."""

from __future__ import annotations

import itertools
import statistics

import pytest

from herd.base.errors import UsageError
from herd.bench.workload import MIXES, Mix, as_mix, make_items, prompt_ids, prompt_text


@pytest.mark.parametrize("mix", MIXES)
def test_a_seed_makes_the_same_requests_and_another_seed_others(mix: Mix) -> None:
    def made(seed: int) -> list[tuple[int, ...]]:
        items = make_items(20, num_prompt=64, num_answer=32, mix=mix, seed=seed)
        return [prompt_ids(item, 500, mix=mix) for item in items]

    assert made(1) == made(1) != made(2)
    assert all(0 <= token_id < 500 for prompt in made(1) for token_id in prompt)


def test_lengths_are_those_of_the_mix() -> None:
    fixed = make_items(50, num_prompt=64, num_answer=32)
    assert {(item.num_prompt, item.num_answer) for item in fixed} == {(64, 32)}
    uniform = make_items(500, num_prompt=64, num_answer=32, mix="uniform")
    assert {item.num_prompt for item in uniform} == set(range(32, 65)) and {item.num_answer for item in uniform} == set(range(16, 33))
    chat = make_items(2000, num_prompt=300, num_answer=200, mix="chat")
    prompts, answers = [item.num_prompt for item in chat], [item.num_answer for item in chat]
    assert 80 < statistics.median(prompts) < 120 and max(prompts) == 600 and min(prompts) >= 4
    assert 85 < statistics.median(answers) < 115 and max(answers) == 400 and min(answers) >= 1


def test_a_shared_beginning_is_nine_tenths() -> None:
    items = make_items(8, num_prompt=100, num_answer=1, mix="shared")
    prompts = [prompt_ids(item, 1000, mix="shared") for item in items]
    assert len({prompt[:90] for prompt in prompts}) == 1 and len({prompt[90:] for prompt in prompts}) == 8
    texts = [prompt_text(item, mix="shared").split() for item in items]
    assert all(text[:90] == texts[0][:90] and len(text) == 100 for text in texts) and texts[0] != texts[1]


def test_requests_come_at_the_rate() -> None:
    items = make_items(4000, num_prompt=1, num_answer=1, rate=20.0)
    times = [item.at_s for item in items]
    assert times == sorted(times) and 180 < times[-1] < 220
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 0.9 < statistics.stdev(gaps) * 20 < 1.1  # of a Poisson process, the gaps' deviation is their mean
    assert all(item.at_s == 0.0 for item in make_items(9, num_prompt=1, num_answer=1))


def test_what_cannot_be_is_refused_by_name() -> None:
    for changes, message in (
        ({"count": 0}, "requests: 0"),
        ({"num_prompt": 0}, "prompt tokens: 0"),
        ({"num_answer": -1}, "new tokens: -1"),
        ({"rate": 0.0}, "the rate is 0"),
        ({"rate": float("nan")}, "the rate is nan"),
    ):
        with pytest.raises(UsageError, match=message):
            make_items(**{"count": 1, "num_prompt": 1, "num_answer": 1, **changes})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown mix 'shred'") as caught:
        as_mix("shred")
    assert caught.value.hint == "did you mean 'shared'?"
