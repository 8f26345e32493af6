"""A follower takes the steps of the scheduler that leads it, whatever happens to that one; frames are JSON."""

from __future__ import annotations

import json
import random
import time

import pytest

from herd.engine.blocks import BlockPool
from herd.engine.engine import EngineError
from herd.engine.parallel.replica import Follower, LeadScheduler, frames, sequence_from_dict, sequence_to_dict
from herd.engine.request import Sequence
from herd.engine.scheduler import Scheduler
from herd.engine.step import StepItem, StepResult

SIZES = {"token_budget": 24, "max_sequences": 8, "max_context": 64, "clock": time.monotonic}


def pool() -> BlockPool:
    return BlockPool(24, 4, key=b"k" * 32)


def result(rng: random.Random, item: StepItem) -> StepResult:
    """What a sampler might make of an item: some drafts accepted, now and then an end."""
    sequence = item.sequence
    if not item.num_sampled:
        return StepResult(accepted=[])
    accepted = [*sequence.draft[: rng.randint(0, item.num_sampled - 1)], rng.randrange(100)]
    accepted = accepted[: sequence.max_new_tokens - len(sequence.output)]
    ended = len(sequence.output) + len(accepted) >= sequence.max_new_tokens or rng.random() < 0.05
    return StepResult(accepted=accepted, finish="stop" if ended else None)


@pytest.mark.parametrize("seed", range(8))
def test_the_same_steps_through_groups_drafts_cancellations_preemptions_and_failures(seed: int) -> None:
    rng = random.Random(seed)
    lead = LeadScheduler(pool(), **SIZES)
    follower = Follower(Scheduler(pool(), **SIZES), rank=1, size=2)
    number = 0
    for _ in range(150):
        if rng.random() < 0.4:
            prompt = tuple(rng.randrange(3) for _ in range(rng.randint(1, 30)))
            tenant, priority = rng.choice("ab"), rng.choice((0, 0, 1))
            ids = range(number, number + rng.choice((1, 1, 3)))
            number = ids.stop
            lead.add_group([Sequence(id=one, prompt=prompt, max_new_tokens=20, tenant=tenant, priority=priority) for one in ids])
        if rng.random() < 0.1 and lead.sequences:
            lead.cancel(rng.choice(lead.sequences).id)
        for sequence in lead.sequences:
            sequence.draft = [rng.randrange(100) for _ in range(rng.choice((0, 0, 2)))]
        step = lead.schedule()
        if not step.items:
            continue
        if rng.random() < 0.05:
            lead.abandon()  # its step failed before it was sent
            continue
        told = [json.loads(json.dumps(one)) for one in frames(lead.take_log(), [0], [])]
        *others, batch = [follower.take(one) for one in told]
        assert batch is not None and len(batch.tokens_T) == step.num_tokens
        assert not any(others)
        assert [one.blocks for one in follower.scheduler.sequences] == [one.blocks for one in lead.sequences]
        lead.update({item.sequence.id: result(rng, item) for item in step.items})
    assert follower.num_steps > 80


def test_another_step_is_told_apart_by_its_blocks() -> None:
    lead = LeadScheduler(pool(), **SIZES)
    other = pool()
    other._blank.reverse()
    follower = Follower(Scheduler(other, **SIZES), rank=3, size=4)
    lead.add(Sequence(id=1, prompt=(1, 2, 3), max_new_tokens=4))
    lead.schedule()
    with pytest.raises(EngineError, match="rank 3 of 4 would take another step than rank 0: its step 1 has 1 sequences and 3 tokens"):
        follower.take({"calls": lead.take_log()})


def test_what_is_refused_is_not_passed_on() -> None:
    lead = LeadScheduler(pool(), **SIZES)
    with pytest.raises(Exception, match="no room for an answer"):
        lead.add(Sequence(id=1, prompt=(1,) * 64, max_new_tokens=4))
    assert not lead.cancel(1)
    assert lead.take_log() == []


def test_a_sequence_passes_through_json() -> None:
    sequence = Sequence(
        id=3, prompt=(1, 2), max_new_tokens=4, priority=-1, tenant="t", salt=b"\x00\xff", adapter="a", reuse_prefix=False, reuse_limit=3
    )
    read = sequence_from_dict(json.loads(json.dumps(sequence_to_dict(sequence))), (1, 2))
    assert sequence_to_dict(read) == sequence_to_dict(sequence)
    assert read.salt == b"\x00\xff" and read.prompt == (1, 2)


def test_a_group_has_a_frame_of_its_own_with_its_prompt_once() -> None:
    lead = LeadScheduler(pool(), **SIZES)
    lead.add_group([Sequence(id=one, prompt=(7, 8, 9), max_new_tokens=4) for one in range(3)])
    lead.add(Sequence(id=3, prompt=(5,), max_new_tokens=4))
    lead.cancel(0)
    lead.schedule()
    told = list(frames(lead.take_log(), [1], [0]))
    assert [[call[0] for call in one["calls"]] for one in told] == [["add"], ["add"], ["cancel", "schedule"]]
    assert json.dumps(told[0]).count("[7, 8, 9]") == 1
    assert [(one.get("rows"), one.get("hidden")) for one in told] == [(None, None), (None, None), ([1], [0])]
