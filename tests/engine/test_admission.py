"""Admission counts what is free, found and promised; a full reserve keeps its word, and a remembered refusal hides nothing."""

from __future__ import annotations

from random import Random

import pytest
from fake_engine import LONG, FakeEngine, prompt_with_answers

from herd.engine.request import Sequence, Status


def test_it_comes_in_with_blocks_for_all_it_knows() -> None:
    engine = FakeEngine(block_size=4, token_budget=8, max_sequences=1)
    (sequence,) = engine.submit([1] * 30, 4)
    engine.begin()
    assert len(sequence.blocks) == 8


def test_two_prompts_that_do_not_fit_together_are_read_one_after_the_other() -> None:
    engine = FakeEngine(num_blocks=1 + 10, block_size=4, token_budget=9, max_sequences=2, max_context=40)
    one, two = engine.submit([1] * 30, 2), engine.submit([2] * 30, 2)
    while one[0].finish_reason is None:
        engine.step()
        assert two[0].status is Status.WAITING
    engine.run()
    assert engine.scheduler.num_preemptions == 0


def test_a_block_is_left_for_everyone_who_writes() -> None:
    engine = FakeEngine(num_blocks=1 + 8, block_size=4, max_context=32)
    engine.submit([1] * 12, 20)
    engine.step()
    engine.submit([2] * 16, 2, reuse_prefix=False)
    assert len(engine.step().items) == 1, "3 blocks held, 4 needed and 1 for each of the two to grow"


def test_what_others_hold_already_costs_nothing() -> None:
    engine = FakeEngine(num_blocks=1 + 10, block_size=4, max_context=40)
    engine.submit([1] * 28, 3)
    engine.step()
    (second,) = engine.submit([1] * 28, 3)
    engine.step()
    assert second.num_cached == 24


def test_one_that_waits_for_memory_is_let_in_once_its_prefix_was_read_by_another() -> None:
    """No block has become free in the meantime: only the count of those it needs has changed."""
    engine = FakeEngine(num_blocks=1 + 10, block_size=4, token_budget=17, max_sequences=2, max_context=40)
    engine.submit([1] * 28, 3)
    (second,) = engine.submit([1] * 28, 3)
    engine.step()
    assert second.status is Status.WAITING
    free = engine.pool.num_free
    engine.step()
    assert engine.pool.num_free == free
    engine.step()
    assert second.num_cached == 24


def test_a_full_reserve_counts_those_let_in_by_the_same_step() -> None:
    """Each needs 9 blocks in the end, and 3 to begin with."""
    engine = FakeEngine(num_blocks=1 + 22, block_size=2, reserve=1.0)
    for _ in range(3):
        engine.submit(LONG, 12, reuse_prefix=False)
    assert len(engine.step().admitted) == 2
    engine.run()
    assert engine.scheduler.num_preemptions == 0


def test_a_full_reserve_counts_the_followers_of_a_group() -> None:
    """The group needs 9 blocks in the end, and 7 for each follower; another request has to wait for those 23."""
    engine = FakeEngine(num_blocks=1 + 23, block_size=2, reserve=1.0)
    engine.submit(prompt_with_answers(lambda length: length >= 12, n=3), 12, n=3)
    engine.submit(LONG, 12, reuse_prefix=False)
    assert len(engine.step().admitted) == 1
    engine.run()
    assert engine.scheduler.num_preemptions == 0


def a_load(engine: FakeEngine, rng: Random, *, most: int) -> None:
    """One random request of groups up to `most`."""
    common = [1, 2, 3, 1, 2, 3, 1, 2, 3][: rng.randint(1, 9)]
    engine.submit(common + [2] * rng.randint(0, 3), rng.randint(1, 12), n=rng.randint(1, most))


@pytest.mark.parametrize("seed", range(8))
def test_with_a_full_reserve_no_load_preempts_anyone(seed: int) -> None:
    """Groups too, as long as the cache holds a whole group."""
    rng = Random(seed)
    block_size = rng.randint(1, 4)
    for_three = 3 * -(-24 // block_size)
    engine = FakeEngine(num_blocks=1 + for_three + rng.randint(0, 5), block_size=block_size, max_context=24, reserve=1.0, rng=rng)
    for _ in range(150):
        if rng.random() < 0.4:
            a_load(engine, rng, most=3)
        engine.step()
    engine.run()
    assert engine.scheduler.num_preemptions == 0
    assert engine.counts["copies"]


@pytest.mark.parametrize("seed", range(8))
def test_to_remember_a_refusal_changes_nothing(seed: int) -> None:
    """The same life twice, once with the memory wiped before each step."""

    def life(*, wipe: bool) -> list[list[tuple[int, int, int]]]:
        rng = Random(seed)
        engine = FakeEngine(num_blocks=1 + 14, block_size=2, max_context=24, token_budget=12, max_sequences=6, reserve=0.5, rng=rng)
        steps = []
        for _ in range(200):
            if rng.random() < 0.3:
                a_load(engine, rng, most=2)
            if wipe:
                engine.scheduler._admission._refusal = None
            steps.append([(item.sequence.id, item.num_tokens, item.first_position) for item in engine.step().items])
        return steps

    assert life(wipe=False) == life(wipe=True)


def test_a_stuck_line_is_not_searched_in_every_step() -> None:
    engine = FakeEngine(num_blocks=1 + 10, block_size=4, max_context=40)
    engine.submit(LONG, 25)
    engine.submit([2] * 35, 2)
    found: list[Sequence] = []
    find = engine.scheduler._admission.find
    engine.scheduler._admission.find = lambda sequence, headroom: found.append(sequence) or find(sequence, headroom)  # type: ignore[method-assign]
    for _ in range(5):
        assert len(engine.step().items) == 1
    assert len(found) == 2, "once for each"
