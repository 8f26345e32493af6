"""A long random life of the scheduler over a fake model: HERD_SOAK_STEPS steps (10,000 unless set), from a seed that a failure prints.

Every so often the sizes change: pools of a few blocks, odd alignments, one slot or many. In between come requests of few tokens with common
beginnings, groups, cancellations in and between steps, clock jumps, failed steps, changed weights. At the end of each life everything has
to end, and all blocks have to be free. A million steps are a matter of minutes with `-o addopts=`, which leaves out the checks of types.
"""

from __future__ import annotations

import os
from collections import Counter
from random import Random

import pytest
from fake_engine import VOCAB, FakeEngine

STEPS = int(os.environ.get("HERD_SOAK_STEPS", "10000"))
SEED = int(os.environ.get("HERD_SOAK_SEED", "1"))
LIFE = 400
"""Steps between two changes of the sizes."""


def a_life(rng: Random) -> FakeEngine:
    """An engine of random sizes."""
    block_size = rng.choice([1, 2, 3, 4, 8])
    max_context = rng.choice([6, 12, 24, 40])
    for_one = -(-max_context // block_size)
    max_sequences = rng.choice([1, 2, 3, 5, 8, 12])
    alignment = rng.choice([1, 1, block_size, 2 * block_size, 3])
    return FakeEngine(
        num_blocks=1 + for_one * rng.choice([1, 1, 2, 4, 8]) + rng.randrange(3),
        block_size=block_size,
        token_budget=max_sequences - 1 + alignment + rng.choice([0, 1, 5, 20]),
        max_sequences=max_sequences,
        max_context=max_context,
        chunk_alignment=alignment,
        reserve=rng.choice([0.0, 0.0, 0.5, 1.0]),
        rng=rng,
    )


def a_request(engine: FakeEngine, rng: Random) -> None:
    """Random, with a beginning that others have too."""
    longest = engine.scheduler.limits.max_context - 1
    shared = Random(rng.randrange(3)).choices(range(1, 1 + VOCAB), k=longest)
    kept = rng.randint(0, longest)
    prompt = (shared[:kept] + rng.choices(range(1, 1 + VOCAB), k=rng.randint(0, 4)))[:longest] or [1]
    engine.submit(
        prompt,
        rng.choice([1, 2, 5, 20]),
        n=rng.choice([1, 1, 1, 1, 2, 3, 9]),
        priority=rng.choice([0, 0, 0, 1, 7]),
        tenant=rng.choice("abc"),
        salt=rng.choice([b"", b"", b"x"]),
        adapter=rng.choice(["", "", "y"]),
        reuse_prefix=rng.random() < 0.9,
    )


def an_event(engine: FakeEngine, rng: Random, load: float) -> None:
    """Whatever may happen between two steps."""
    if rng.random() < load and len(engine.live) < 60:
        a_request(engine, rng)
    if engine.live and rng.random() < 0.02:
        engine.cancel(rng.choice(list(engine.live.values())))
    if rng.random() < 0.01:
        engine.now += rng.uniform(-1e6, 1e6)
    if rng.random() < 0.002:
        engine.scheduler.abandon(forget=rng.random() < 0.5)


def live(engine: FakeEngine, rng: Random, num_steps: int) -> None:
    """Some steps under a random load, then the end of everything."""
    load = rng.choice([0.1, 0.3, 0.6])
    engine.stop_rate = rng.choice([0.0, 0.0, 0.01])
    for number in range(num_steps):
        an_event(engine, rng, load)
        step = engine.begin()
        if step.items:
            if rng.random() < 0.02:
                engine.cancel(rng.choice(list(engine.live.values())))
            if rng.random() < 0.005:
                engine.scheduler.abandon()
            else:
                engine.finish(step)
        if number % 5 == 0:
            engine.scheduler.check()
    engine.run()
    engine.scheduler.check()
    assert engine.pool.num_free == engine.pool.num_usable


def soak(num_steps: int, seed: int) -> Counter[str]:
    """So many steps; returns what happened."""
    counts: Counter[str] = Counter()
    number = 0
    while counts["steps"] < num_steps:
        rng = Random(f"{seed}/{number}")
        engine = a_life(rng)
        try:
            live(engine, rng, min(LIFE, num_steps - counts["steps"]))
        except BaseException as error:
            error.add_note(f"in life {number} of seed {seed} (HERD_SOAK_SEED), step {engine.num_steps}")
            raise
        if engine.scheduler.limits.reserve == 1.0:
            counts["full reserve"] += 1
        counts.update(engine.counts)
        counts.update(steps=engine.num_steps, evictions=engine.pool.num_evictions, lives=1)
        number += 1
    return counts


@pytest.mark.timeout(0)
def test_whatever_happens_each_answer_is_the_one_it_would_be_alone() -> None:
    counts = soak(STEPS, SEED)
    print(f"\nsoak, seed {SEED}: " + ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())))
    if STEPS >= 10_000:
        seen = [
            "preemptions",
            "copies",
            "evictions",
            "hits",
            "chunks",
            "drafts accepted",
            "finished stop",
            "finished length",
            "finished error",
        ]
        assert all(counts[name] > 20 for name in seen), "the driver does not reach everything"
