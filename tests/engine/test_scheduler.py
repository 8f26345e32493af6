"""The scheduler's promises, one by one, over the fake engine, which checks every read and every answer on the way."""

from __future__ import annotations

import pytest
from fake_engine import LONG, FakeEngine, alone, prompt_with_answers

from herd.engine.request import Sequence, Status
from herd.engine.scheduler import StepResult


def widths(engine: FakeEngine, sequence: Sequence) -> list[int]:
    """Tokens of each of the steps until its answer begins."""
    found = []
    while not sequence.output and sequence.finish_reason is None:
        found += [item.num_tokens for item in engine.step().items if item.sequence is sequence]
    return found


# One sequence


def test_a_short_prompt_takes_one_step_and_each_token_another() -> None:
    engine = FakeEngine()
    (sequence,) = engine.submit(LONG, 4)
    assert [engine.step().items[0].num_tokens for _ in range(4)] == [6, 1, 1, 1]
    assert sequence.finish_reason == "length" and len(sequence.output) == 4
    assert engine.step().items == []


def test_it_stops_when_the_engine_says_so() -> None:
    engine = FakeEngine()
    (sequence,) = engine.submit(prompt_with_answers(lambda length: length == 3), 20)
    engine.run()
    assert sequence.finish_reason == "stop" and len(sequence.output) == 3


def test_a_long_prompt_is_read_in_chunks_that_end_at_aligned_positions() -> None:
    engine = FakeEngine(token_budget=11, max_sequences=4, chunk_alignment=8)
    (sequence,) = engine.submit([1] * 30)
    assert widths(engine, sequence) == [8, 8, 8, 6]


def test_chunks_stay_aligned_beside_sequences_that_write() -> None:
    engine = FakeEngine(token_budget=11, max_sequences=4, chunk_alignment=8)
    for _ in range(3):
        engine.submit(LONG, 30)
    engine.step()
    engine.step()
    engine.step()
    (sequence,) = engine.submit([1] * 20)
    assert widths(engine, sequence) == [8, 8, 4], "3 tokens of the budget go to those that write"


def test_a_chunk_that_starts_behind_a_cached_prefix_ends_aligned_too() -> None:
    engine = FakeEngine(token_budget=19, max_sequences=1, chunk_alignment=16, block_size=4)
    engine.submit([1] * 12, 1)
    engine.run()
    (sequence,) = engine.submit([1] * 40)
    assert widths(engine, sequence) == [4, 16, 8]


def test_times_are_those_of_the_injected_clock() -> None:
    engine = FakeEngine()
    engine.now = 5.0
    (sequence,) = engine.submit(LONG, 2)
    engine.now = 7.5
    engine.step()
    engine.now = 3.0
    engine.step()
    assert (sequence.arrival, sequence.admitted_at, sequence.finished_at) == (5.0, 7.5, 3.0)


# Prefixes


def test_a_second_request_starts_behind_what_the_first_computed() -> None:
    engine = FakeEngine(block_size=4)
    engine.submit([1] * 10, 1)
    engine.run()
    (second,) = engine.submit([1] * 9 + [2], 1)
    engine.run()
    assert second.num_cached == 8
    assert (engine.pool.num_queried_tokens, engine.pool.num_hit_tokens) == (20, 8)


def test_a_prefix_is_shared_while_its_owner_runs() -> None:
    engine = FakeEngine(block_size=4)
    (first,) = engine.submit([*LONG, *LONG], 20)
    engine.step()
    (second,) = engine.submit([*LONG, *LONG], 20)
    step = engine.begin()
    assert second.num_cached == 8 and second.blocks[:2] == first.blocks[:2]
    engine.finish(step)
    engine.run()


@pytest.mark.parametrize("num_prompt", [4, 8, 12])
def test_a_hit_never_covers_the_whole_prompt(num_prompt: int) -> None:
    engine = FakeEngine(block_size=4)
    engine.submit([1] * num_prompt, 1)
    engine.run()
    (second,) = engine.submit([1] * num_prompt, 1)
    assert widths(engine, second) == [4]
    assert second.num_cached == num_prompt - 4


def test_an_answer_is_a_prefix_for_the_next_turn() -> None:
    engine = FakeEngine(block_size=4)
    (first,) = engine.submit(LONG, 20)
    engine.run()
    (second,) = engine.submit([*LONG, *first.output, 1, 2], 1)
    engine.run()
    assert second.num_cached == 24, "all but the answer's last token, in whole blocks"


@pytest.mark.parametrize("change", [{"salt": b"other"}, {"adapter": "other"}, {"reuse_prefix": False}])
def test_another_salt_or_adapter_hits_nothing(change: dict[str, object]) -> None:
    engine = FakeEngine(block_size=4)
    engine.submit([1] * 10, 1, salt=b"tenant")
    engine.run()
    (second,) = engine.submit([1] * 10, 1, **{"salt": b"tenant", **change})  # type: ignore[arg-type]
    assert widths(engine, second) == [10]


def test_another_tenant_of_the_same_salt_hits() -> None:
    engine = FakeEngine(block_size=4)
    engine.submit([1] * 10, 1, tenant="a")
    engine.run()
    (second,) = engine.submit([1] * 10, 1, tenant="b")
    assert widths(engine, second) == [2]


# Many sequences


def test_the_budget_is_shared_and_nobody_who_writes_waits() -> None:
    engine = FakeEngine(token_budget=10, max_sequences=3, chunk_alignment=4)
    engine.submit(LONG, 30)
    engine.step()
    engine.submit([1] * 30)
    engine.submit([2] * 30)
    for _ in range(3):
        assert [item.num_tokens for item in engine.step().items] == [1, 8]
    assert [item.num_tokens for item in engine.step().items] == [1, 6], "3 are left, but no chunk ends there"


def test_no_more_run_than_there_are_slots() -> None:
    engine = FakeEngine(max_sequences=2, token_budget=32)
    for _ in range(5):
        engine.submit(LONG, 3)
    assert len(engine.step().items) == 2
    assert (engine.scheduler.num_running, engine.scheduler.num_waiting) == (2, 3)
    engine.run()


def test_the_one_in_line_that_does_not_fit_is_not_passed_by_smaller_ones() -> None:
    engine = FakeEngine(num_blocks=1 + 10, block_size=4, max_context=40)
    engine.submit(LONG, 12)
    engine.step()
    (large,) = engine.submit([1] * 35, 2)
    for _ in range(20):
        engine.submit([2], 2)
    order: list[Sequence] = []
    while engine.live:
        order += engine.step().admitted
    assert order[0] is large


def test_one_request_among_a_thousand_is_next_when_a_slot_is_free() -> None:
    engine = FakeEngine(max_sequences=4, token_budget=16, num_blocks=200)
    for _ in range(1000):
        engine.submit(LONG, 4, tenant="many")
    for _ in range(9):
        engine.step()
    (one,) = engine.submit(LONG, 4, tenant="one")
    steps = 0
    while one.finish_reason is None:
        engine.step()
        steps += 1
    assert steps <= 4 + 4, "an answer of those that run, and its own"
    assert engine.scheduler.num_waiting > 900
    for sequence in list(engine.live.values()):
        engine.cancel(sequence)


def test_long_prompts_of_one_tenant_do_not_hold_up_the_short_one_of_another() -> None:
    engine = FakeEngine(max_sequences=4, token_budget=11, chunk_alignment=8, max_context=64, num_blocks=100)
    for _ in range(20):
        engine.submit([1] * 60, 1, tenant="long", reuse_prefix=False)
    engine.step()
    engine.step()
    (short,) = engine.submit([2] * 8, 1, tenant="short")
    assert widths(engine, short) == [8]
    assert engine.num_steps <= 4, "once each has got the same, before the rest of the prompt in work"
    engine.run()


def test_two_tenants_get_the_same_number_of_tokens() -> None:
    engine = FakeEngine(max_sequences=2, token_budget=16, num_blocks=200)
    for _ in range(200):
        engine.submit(LONG, 10, tenant="long answers", reuse_prefix=False)
        engine.submit([1, 2], 1, tenant="short answers", reuse_prefix=False)
    served = {"long answers": 0, "short answers": 0}
    for _ in range(200):
        for item in engine.step().items:
            served[item.sequence.tenant] += item.num_tokens
    assert abs(served["long answers"] - served["short answers"]) <= 2 * 16
    for sequence in list(engine.live.values()):
        engine.cancel(sequence)


def test_a_tenant_that_was_away_has_saved_nothing_up() -> None:
    engine = FakeEngine(max_sequences=1, token_budget=16)
    for _ in range(60):
        engine.submit(LONG, 10, tenant="always here", reuse_prefix=False)
    for _ in range(200):
        engine.step()
    for _ in range(40):
        engine.submit(LONG, 10, tenant="away", reuse_prefix=False)
    admitted: list[str] = []
    while len(admitted) < 20:
        admitted += [sequence.tenant for sequence in engine.step().admitted]
    assert admitted.count("away") == 10
    for sequence in list(engine.live.values()):
        engine.cancel(sequence)


def test_order_does_not_follow_a_clock_that_jumps() -> None:
    engine = FakeEngine(max_sequences=1)
    come = []
    for now in (5.0, -1e9, 1e9, 0.0):
        engine.now = now
        come += engine.submit(LONG, 2)
    order = []
    while engine.live:
        order += engine.step().admitted
    assert order == come


# Drafts


def test_drafts_that_are_right_come_in_one_step() -> None:
    engine = FakeEngine()
    (sequence,) = engine.submit(LONG, 20)
    engine.step()
    right = alone(sequence, 0)[0]
    sequence.draft = right[1:5]
    (item,) = engine.step().items
    assert (item.num_tokens, item.num_sampled) == (5, 5)
    assert sequence.output == right[:6] and sequence.draft == []
    assert sequence.num_computed == sequence.num_tokens - 1
    engine.run()


def test_drafts_that_are_wrong_are_as_if_never_computed() -> None:
    engine = FakeEngine(block_size=2)
    (sequence,) = engine.submit(LONG, 20)
    engine.step()
    right = alone(sequence, 0)[0]
    sequence.draft = [right[1], 3 if right[2] != 3 else 2, 1, 1, 1]
    engine.step()
    assert sequence.output == right[:3]
    assert sequence.num_computed == len(LONG) + 2
    engine.run()


def test_drafts_beyond_the_last_token_are_left_out() -> None:
    engine = FakeEngine()
    (sequence,) = engine.submit(LONG, 3)
    engine.step()
    sequence.draft = [1] * 10
    assert engine.step().items[0].num_tokens <= 2


def test_drafts_leave_a_chunk_for_a_prompt() -> None:
    engine = FakeEngine(token_budget=14, max_sequences=2, chunk_alignment=8)
    (writer,) = engine.submit(LONG, 30)
    engine.step()
    (reader,) = engine.submit([1] * 20)
    writer.draft = [1] * 20
    step = engine.step()
    assert {item.sequence.id: item.num_tokens for item in step.items} == {writer.id: 6, reader.id: 8}


def test_drafts_take_blocks_from_no_one() -> None:
    engine = FakeEngine(num_blocks=1 + 6, block_size=4, max_context=16)
    one, two = (engine.submit(LONG, 10, reuse_prefix=False) for _ in range(2))
    engine.step()
    for (sequence,) in (one, two):
        sequence.draft = [1] * 9
    step = engine.begin()
    assert not step.preempted
    assert [item.num_tokens for item in step.items] == [9, 2], "the second as far as its own block goes"
    engine.finish(step)
    engine.run()


# Preemption


def test_where_blocks_run_out_the_youngest_waits_and_both_finish() -> None:
    engine = FakeEngine(num_blocks=1 + 6, block_size=4, max_context=24)
    (old,) = engine.submit(LONG, 16)
    (young,) = engine.submit(LONG, 16, reuse_prefix=False)
    engine.run()
    assert (old.num_preemptions, young.num_preemptions > 0) == (0, True)
    assert engine.scheduler.num_preemptions == young.num_preemptions


def test_the_lower_priority_gives_way_before_the_younger() -> None:
    engine = FakeEngine(num_blocks=1 + 6, block_size=4, max_context=24)
    (old,) = engine.submit(LONG, 16, priority=1)
    (young,) = engine.submit(LONG, 16, priority=0, reuse_prefix=False)
    engine.run()
    assert (old.num_preemptions > 0, young.num_preemptions) == (True, 0)


def test_what_was_preempted_starts_again_from_what_is_left_in_the_cache() -> None:
    engine = FakeEngine(num_blocks=1 + 16, block_size=2, max_sequences=1, max_context=24)
    (late,) = engine.submit(LONG, 16, priority=1)
    for _ in range(5):
        engine.step()
    engine.submit([1, 2, 3], 2)
    engine.step()
    assert late.status is Status.WAITING and not late.blocks
    while late.status is Status.WAITING:
        step = engine.step()
    assert [item.first_position for item in step.items] == [10], "of 11 known tokens"
    engine.run()


def test_half_an_answer_is_finished_before_a_tenant_that_was_served_less() -> None:
    engine = FakeEngine(num_blocks=1 + 6, block_size=4, max_context=24)
    engine.submit(LONG, 16, tenant="much")
    (late,) = engine.submit(LONG, 16, tenant="much", reuse_prefix=False)
    while not late.num_preemptions:
        engine.step()
    (other,) = engine.submit([1], 2, tenant="little")
    order: list[Sequence] = []
    while engine.live:
        order += engine.step().admitted
    assert order == [late, other]


def test_a_request_of_higher_priority_displaces_the_lowest_one() -> None:
    engine = FakeEngine(max_sequences=2)
    batch = [engine.submit(LONG, 30, priority=9)[0] for _ in range(2)]
    engine.step()
    (urgent,) = engine.submit(LONG, 2, priority=0)
    step = engine.step()
    assert step.preempted == [batch[1]] and step.admitted == [urgent]
    engine.run()


def test_a_request_of_the_same_priority_displaces_no_one() -> None:
    engine = FakeEngine(max_sequences=1)
    engine.submit(LONG, 10)
    engine.step()
    engine.submit(LONG, 2)
    assert engine.step().preempted == []
    engine.run()


def test_a_lone_sequence_fits_to_its_last_token() -> None:
    engine = FakeEngine(num_blocks=1 + 9, block_size=4, max_context=37)
    (sequence,) = engine.submit(LONG, 31)
    engine.run()
    assert sequence.num_preemptions == 0


def test_with_a_full_reserve_nobody_is_preempted() -> None:
    engine = FakeEngine(num_blocks=1 + 20, block_size=2, max_context=24, reserve=1.0)
    for number in range(30):
        engine.submit(LONG[: 1 + number % 6], 1 + number % 17, n=1 + number % 2)
    engine.run()
    assert engine.scheduler.num_preemptions == 0
    eager = FakeEngine(num_blocks=1 + 20, block_size=2, max_context=24)
    for number in range(30):
        eager.submit(LONG[: 1 + number % 6], 1 + number % 17, n=1 + number % 2)
    eager.run()
    assert eager.scheduler.num_preemptions > 0, "the same load without it"


# Groups


def test_a_group_reads_its_prompt_once_and_shares_it() -> None:
    engine = FakeEngine(block_size=4)
    group = engine.submit(LONG, 10, n=3)
    first = engine.step()
    assert [item.sequence for item in first.items] == group[:1]
    second = engine.begin()
    assert [item.num_tokens for item in second.items] == [1, 1, 1]
    assert len({sequence.blocks[0] for sequence in group}) == 1
    assert len({sequence.blocks[1] for sequence in group}) == 3 and len(second.copies) == 2
    engine.finish(second)
    engine.run()
    assert len({tuple(sequence.output) for sequence in group}) > 1


def test_a_group_whose_prompt_ends_with_a_block_shares_that_block_with_no_one_who_writes_it() -> None:
    engine = FakeEngine(block_size=3)
    engine.submit(LONG, 10, n=3)
    engine.run()


def test_the_blocks_of_a_leaders_drafts_stay_its_own() -> None:
    engine = FakeEngine(block_size=2, token_budget=20, max_sequences=4, chunk_alignment=5)
    engine.submit([1] * 15, 1)
    leader, *_ = engine.submit(LONG, 12, n=3)
    engine.step()
    assert (leader.num_computed, leader.output) == (5, [])
    leader.draft = alone(leader, 0)[0][:6]
    engine.step()
    assert len(leader.output) == 7
    engine.scheduler.check()
    engine.run()


def test_a_group_larger_than_the_slots_or_the_cache_ends() -> None:
    engine = FakeEngine(num_blocks=1 + 5, block_size=4, max_context=20, max_sequences=3)
    group = engine.submit(LONG, 14, n=9)
    engine.run()
    assert all(sequence.finish_reason in ("stop", "length") for sequence in group)


def test_a_leader_that_ends_with_its_first_token_leaves_its_blocks_to_the_others() -> None:
    engine = FakeEngine(block_size=4)
    leader, follower = engine.submit(prompt_with_answers(lambda length: length == 1), 5, n=2)
    engine.step()
    assert leader.finish_reason == "stop" and follower.status is Status.RUNNING
    engine.run()


@pytest.mark.parametrize("num_steps", [0, 1])
def test_when_the_leader_is_cancelled_the_next_one_leads_at_its_place(num_steps: int) -> None:
    engine = FakeEngine(max_sequences=1, token_budget=4, chunk_alignment=4)
    leader, heir, follower = engine.submit(LONG, 3, n=3)
    (later,) = engine.submit(LONG, 3)
    for _ in range(num_steps):
        engine.step()
    engine.cancel(leader)
    engine.scheduler.check()
    assert engine.step().items[0].sequence is heir
    order = [heir]
    while engine.live:
        order += [sequence for sequence in engine.step().admitted if sequence not in order]
    assert order == [heir, follower, later]


def test_a_follower_can_be_cancelled_before_it_forks() -> None:
    engine = FakeEngine()
    leader, follower, last = engine.submit(LONG, 3, n=3)
    engine.cancel(follower)
    engine.run()
    assert [sequence.finish_reason for sequence in (leader, last)] == ["length"] * 2


# Cancellation and failure


def test_cancelling_frees_the_blocks_at_once() -> None:
    engine = FakeEngine()
    (sequence,) = engine.submit(LONG, 10)
    engine.step()
    engine.cancel(sequence)
    assert engine.pool.num_free == engine.pool.num_usable
    assert engine.step().items == []


def test_cancelling_while_the_step_runs_frees_them_too_and_its_result_is_passed_over() -> None:
    engine = FakeEngine()
    (sequence,), (other,) = engine.submit(LONG, 10), engine.submit([1, 2, 3], 3)
    step = engine.begin()
    results = {item.sequence.id: StepResult(accepted=[1]) for item in step.items}
    engine.cancel(sequence)
    assert engine.scheduler.update(results) == []
    assert sequence.output == [] and other.output == [1]


def test_cancelling_twice_or_what_never_was_does_nothing() -> None:
    engine = FakeEngine()
    (sequence,) = engine.submit(LONG, 10)
    assert engine.scheduler.cancel(sequence.id)
    assert not engine.scheduler.cancel(sequence.id)
    assert not engine.scheduler.cancel(12345)


def test_a_failed_step_is_computed_again() -> None:
    engine = FakeEngine(block_size=4)
    group = engine.submit(LONG, 10, n=3)
    engine.step()
    engine.begin()
    engine.scheduler.abandon()
    engine.scheduler.check()
    assert all(sequence.status is Status.WAITING for sequence in group)
    engine.run()


def test_new_weights_find_nothing_in_the_cache() -> None:
    engine = FakeEngine(block_size=4)
    engine.submit([1] * 10, 1)
    engine.run()
    engine.scheduler.abandon(forget=True)
    (second,) = engine.submit([1] * 10, 1)
    assert widths(engine, second) == [10]


# What only our own mistakes can cause


@pytest.mark.parametrize("change", [{"prompt": (1, 3)}, {"salt": b"x"}, {"adapter": "x"}, {"id": 1}])
def test_a_group_is_of_one_prompt_and_one_prefix_cache(change: dict[str, object]) -> None:
    engine = FakeEngine()
    group = [Sequence(**{"id": number, "prompt": (1, 2), "max_new_tokens": 2, **(change if number == 2 else {})}) for number in (1, 2)]  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        engine.scheduler.add_group(group)
    assert engine.scheduler.num_waiting == 0


def test_a_step_is_booked_before_the_next_is_made() -> None:
    engine = FakeEngine()
    engine.submit(LONG)
    engine.begin()
    with pytest.raises(AssertionError, match="has no results yet"):
        engine.scheduler.schedule()


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({}, "0 of 1 tokens"),
        ({1: StepResult([])}, "0 of 1 tokens"),
        ({1: StepResult([1, 2])}, "2 of 1 tokens"),
        ({1: StepResult([1]), 2: StepResult([1])}, "not in the step"),
    ],
)
def test_results_that_do_not_match_the_step_are_noticed(results: dict[int, StepResult], message: str) -> None:
    engine = FakeEngine()
    engine.submit(LONG)
    engine.begin()
    with pytest.raises(AssertionError, match=message):
        engine.scheduler.update(results)


def test_a_token_in_the_middle_of_a_prompt_is_noticed() -> None:
    engine = FakeEngine(token_budget=4, max_sequences=1)
    engine.submit(LONG)
    engine.begin()
    with pytest.raises(AssertionError, match="in the middle of its prompt"):
        engine.scheduler.update({1: StepResult([1])})


def test_accepting_what_was_not_drafted_is_noticed() -> None:
    engine = FakeEngine()
    (sequence,) = engine.submit(LONG)
    engine.step()
    sequence.draft = [1, 2, 3]
    engine.begin()
    with pytest.raises(AssertionError, match="accepted what was not drafted"):
        engine.scheduler.update({sequence.id: StepResult([1, 3, 1])})
