"""What the next step of the model computes: one token budget, no phases. No torch, no clock of its own, no randomness.

    schedule() -> Step        which tokens of which sequences; the blocks for them are in the sequences' tables
    update(results)           what came of it

A sequence's next tokens are (prompt + output + draft)[num_computed : ...]: reading a prompt in chunks, going on behind a cached prefix,
checking drafts and computing again after a preemption are all the same. Where blocks run out, the lowest priority gives way, then the
youngest: its blocks go back, it waits before all new ones and is computed again, from what is left of it in the cache.

Nothing is refused but at `add`, and what was added ends: `schedule` gives an empty step only when there is nothing left to do. The parts:
`limits` refuses, `fairness` orders those who wait, `admission` counts blocks, `planning` fills a step, `outcome` books it, `roster` moves
sequences, `invariants` watches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from herd.engine import invariants, outcome
from herd.engine.admission import Admission
from herd.engine.blocks import BlockPool
from herd.engine.limits import Limits, check_fits
from herd.engine.planning import Plan
from herd.engine.request import Sequence, Status
from herd.engine.roster import Roster
from herd.engine.step import Step, StepItem, StepResult

__all__ = ["Scheduler", "Step", "StepItem", "StepResult"]


class Scheduler:
    """Sequences over one pool of blocks. Calls come from one thread; only `check_fits` may come from any."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        token_budget: int,
        max_sequences: int,
        max_context: int,
        clock: Callable[[], float],
        chunk_alignment: int = 1,
        reserve: float = 0.0,
    ) -> None:
        """Raises ConfigError for limits that contradict each other; `Limits` tells what they mean."""
        self.pool = pool
        self.limits = Limits(
            token_budget=token_budget,
            max_sequences=max_sequences,
            max_context=max_context,
            chunk_alignment=chunk_alignment,
            reserve=reserve,
        )
        self._roster = Roster(pool, max_sequences=max_sequences, clock=clock)
        self._admission = Admission(pool, reserve=reserve)
        self._step: Step | None = None

    @property
    def sequences(self) -> list[Sequence]:
        """All that live, in the order of their coming."""
        return list(self._roster.sequences.values())

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._roster.running)

    @property
    def num_waiting(self) -> int:
        """Sequences that hold none: new, preempted, or followers of a group whose prompt is not read yet."""
        return len(self._roster.sequences) - len(self._roster.running)

    @property
    def num_preemptions(self) -> int:
        """Since the start."""
        return self._roster.num_preemptions

    def check_fits(self, num_prompt: int, max_new_tokens: int) -> None:
        """Raises DoesNotFitError where a sequence of this size could not run even alone, ContextOverflowError, UsageError."""
        num_new = self.limits.new_tokens(num_prompt, max_new_tokens)
        check_fits(num_prompt, num_new, num_blocks=self.pool.num_usable, block_size=self.pool.block_size)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises TokenizerError, ContextOverflowError, DoesNotFitError or UsageError; then nothing was queued."""
        self.add_group([sequence])

    def add_group(self, sequences: list[Sequence]) -> None:
        """Queue continuations of one prompt, which is computed once: the others fork from the first one's blocks. Raises as `add`."""
        first = sequences[0]
        self.limits.check_prompt(first.prompt)
        assert len({sequence.id for sequence in sequences}) == len(sequences)
        for sequence in sequences:
            assert sequence.id not in self._roster.sequences, f"sequence {sequence.id} is here already"
            assert sequence.status is Status.WAITING and not sequence.output
            assert (sequence.prompt, sequence.salt, sequence.adapter) == (first.prompt, first.salt, first.adapter)
            self.check_fits(len(sequence.prompt), sequence.max_new_tokens)
        for sequence in sequences:
            sequence.max_new_tokens = self.limits.new_tokens(len(sequence.prompt), sequence.max_new_tokens)
            self._admission.measure(sequence)
        self._roster.add(sequences)

    def cancel(self, sequence_id: int) -> bool:
        """End a sequence now; its blocks are free on return, also while a step runs. False where it had ended before."""
        sequence = self._roster.sequences.get(sequence_id)
        if sequence is None:
            return False
        self._roster.end(sequence, "cancelled")
        return True

    def schedule(self) -> Step:
        """The next step; its results go to `update` before the next call. An empty one needs no update: there is nothing left to do."""
        assert self._step is None, "the step before has no results yet"
        step = Plan(self._roster, self.limits, self._admission).make()
        invariants.books(self._roster)
        assert step.num_tokens <= self.limits.token_budget
        assert bool(step.items) == bool(self._roster.sequences), "an empty step, but there are sequences"
        self._step = step if step.items else None
        return step

    def look_ahead(self) -> list[StepItem]:
        """Of the step in work, the next tokens after its next tokens: with a block for each, asked for a step before its time.

        None where it has other work than next tokens, where someone waits, or where blocks are short. Who ends with this step by its length
        is left out; who ends otherwise was asked for in vain, and no answer depends on it. The next `schedule` decides all the same.
        """
        assert self._step is not None, "there is no step to look beyond"
        step, roster, pool = self._step, self._roster, self.pool
        if step.num_next != len(step.items) or len(roster.sequences) != len(roster.running):
            return []
        going = [item for item in step.items if len(item.sequence.output) + 1 < item.sequence.max_new_tokens]
        growing = [item for item in going if (item.first_position + 1) // pool.block_size == len(item.sequence.blocks)]
        if pool.num_free < len(growing) + len(roster.running):
            return []
        for item in growing:
            item.sequence.blocks += pool.allocate(1)
        return [StepItem(sequence, 1, first + 1, 1) for sequence, _, first, _ in going]

    def update(self, results: Mapping[int, StepResult]) -> list[Sequence]:
        """Book what came of the step, by sequence id; returns the sequences that ended. The middle of a prompt needs no result."""
        assert self._step is not None, "there is no step to book"
        step, self._step = self._step, None
        ended = outcome.apply(self._roster, step, results)
        invariants.books(self._roster)
        return ended

    def abandon(self, *, forget: bool = False) -> None:
        """Drop the step in work, if any, because it failed: all that runs is computed again. `forget` the cache too if weights changed."""
        self._step = None
        while self._roster.running:
            self._roster.preempt()
        if forget:
            self.pool.forget()

    def check(self) -> None:
        """Assert every invariant; for tests, since it walks over all blocks and sequences."""
        invariants.check(self._roster)
