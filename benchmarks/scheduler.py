"""Scheduler time: what a step costs besides the model, in microseconds of processor time, without a model.

    python -m benchmarks.scheduler [--json FILE]

A figure of a step is `schedule` plus `update`, averaged over the steps; other figures are of what their name says. No peer takes part:
theirs cannot be had without their model.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import count
from random import Random

from benchmarks import harness
from herd.engine.blocks import BlockPool
from herd.engine.request import Sequence
from herd.engine.scheduler import Scheduler, StepResult

PACKAGES = ("llama-herd",)
_STEPS = 200
_IDS = count(1)
_RNG = Random(0)


def _scheduler(*, num_blocks: int = 40_000, max_sequences: int = 64, token_budget: int = 8192, context: int = 131_072) -> Scheduler:
    pool = BlockPool(num_blocks, 16, key=bytes(32))
    return Scheduler(
        pool,
        token_budget=token_budget,
        max_sequences=max_sequences,
        max_context=context,
        chunk_alignment=64,
        clock=time.monotonic,
    )


def _sequence(num_prompt: int, num_new: int, tenant: str = "") -> Sequence:
    prompt = tuple(_RNG.choices(range(128_000), k=num_prompt))
    return Sequence(id=next(_IDS), prompt=prompt, max_new_tokens=num_new, tenant=tenant)


def _run(scheduler: Scheduler, num_steps: int, *, num_drafts: int = 0, until_read: bool = False) -> float:
    """Processor seconds of `schedule` and `update` over so many steps; every draft is accepted."""
    spent = 0.0
    for _ in range(num_steps):
        if num_drafts:
            for sequence in scheduler.sequences:
                sequence.draft = [5] * num_drafts
        started = time.process_time()
        step = scheduler.schedule()
        spent += time.process_time() - started
        results = {item.sequence.id: StepResult([5] * item.num_sampled) for item in step.items}
        started = time.process_time()
        scheduler.update(results)
        spent += time.process_time() - started
        if until_read and all(item.num_sampled for item in step.items):
            break
    return spent


def _decoding(num_sequences: int, *, num_drafts: int = 0, num_waiting: int = 0, num_blocks: int = 40_000, slots: int = 0) -> float:
    """Microseconds a step while so many sequences write and others wait."""
    scheduler = _scheduler(max_sequences=slots or num_sequences, num_blocks=num_blocks)
    for _ in range(num_sequences):
        scheduler.add(_sequence(500, 100_000 if num_blocks == 40_000 else 1000, "a"))
    _run(scheduler, 1000, until_read=True)
    for number in range(num_waiting):
        scheduler.add(_sequence(500, 1000, f"b{number % 50}"))
    _run(scheduler, 1)
    return _run(scheduler, _STEPS, num_drafts=num_drafts) / _STEPS * 1e6


def _long_prompt(*, cached: bool) -> float:
    """Microseconds of the first step of a prompt of 128,000 tokens."""
    scheduler = _scheduler()
    first = _sequence(128_000, 1)
    if cached:
        scheduler.add(first)
        _run(scheduler, 1000, until_read=True)
    scheduler.add(Sequence(id=next(_IDS), prompt=first.prompt, max_new_tokens=2))
    return _run(scheduler, 1) * 1e6


def _add_and_cancel() -> float:
    """Microseconds a sequence to queue it behind 10,000 others of 100 tenants and take it back."""
    scheduler = _scheduler()
    sequences = [_sequence(20, 10, f"t{number % 100}") for number in range(11_000)]
    for sequence in sequences[:10_000]:
        scheduler.add(sequence)
    started = time.process_time()
    for sequence in sequences[10_000:]:
        scheduler.add(sequence)
    for sequence in sequences[10_000:]:
        scheduler.cancel(sequence.id)
    return (time.process_time() - started) / 1000 * 1e6


TASKS: dict[str, Callable[[], float]] = {
    "step, 64 write": lambda: _decoding(64),
    "step, 256 write": lambda: _decoding(256),
    "step, 64 write, 4 drafts each": lambda: _decoding(64, num_drafts=4),
    "step, 64 write, 1,000 wait for a slot": lambda: _decoding(64, num_waiting=1000),
    "step, 64 write, 1,000 wait for memory": lambda: _decoding(64, num_waiting=1000, num_blocks=2_960, slots=128),
    "first step of 128,000 tokens, new": lambda: _long_prompt(cached=False),
    "first step of 128,000 tokens, cached": lambda: _long_prompt(cached=True),
    "add and cancel behind 10,000": _add_and_cancel,
}


def main() -> None:
    """Measure and print."""
    options = harness.parser(__doc__, repeats=5).parse_args()
    figures = harness.interleave(TASKS, options.repeats)
    results = {name: harness.summary(found) for name, found in figures.items()}
    harness.table(("microseconds", "median", "min"), [(name, f"{r['median']:,.1f}", f"{r['min']:,.1f}") for name, r in results.items()])
    harness.report(options.json, "scheduler", PACKAGES, results)


if __name__ == "__main__":
    sys.exit(main())
