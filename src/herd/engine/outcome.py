"""Books what came of a step: computed tokens, accepted ones, blocks that became full, forks and ends. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from herd.engine.request import Sequence, Status
from herd.engine.roster import Roster
from herd.engine.step import Step, StepItem, StepResult


def apply(roster: Roster, step: Step, results: Mapping[int, StepResult]) -> list[Sequence]:
    """Book a step; returns the sequences that ended. Those cancelled in the meantime are passed over."""
    ended: list[tuple[Sequence, str]] = []
    size = roster.pool.block_size
    num_used = 0
    for item in step.items:
        sequence = item.sequence
        result = results.get(sequence.id)
        num_used += result is not None
        if sequence.status is not Status.RUNNING:
            continue
        reason = _book(item, result)
        if sequence.num_computed >= (sequence.num_registered + 1) * size:
            roster.register(sequence)
        if item.num_sampled and sequence.followers:
            roster.fork(sequence)
        if reason is not None:
            ended.append((sequence, reason))
    assert num_used == len(results), "a result for a sequence that was not in the step"
    for sequence, reason in ended:
        roster.end(sequence, reason)
    return [sequence for sequence, _ in ended]


def _book(item: StepItem, result: StepResult | None) -> str | None:
    """Count computed and accepted tokens; drafts that were not accepted are as if never computed. Returns why it ends, if it does."""
    sequence, num_tokens, first, num_sampled = item
    accepted, reason = result or ((), None)
    if num_sampled == 1 == len(accepted) and not sequence.draft:  # the common case, for speed alone
        sequence.num_computed = first + num_tokens
        sequence.output += accepted
        return reason or ("length" if len(sequence.output) >= sequence.max_new_tokens else None)
    if not num_sampled:
        assert not accepted, f"sequence {sequence.id} drew a token in the middle of its prompt"
        sequence.num_computed = first + num_tokens
        return reason
    num_accepted = len(accepted)
    assert num_accepted <= num_sampled and (num_accepted or reason), f"sequence {sequence.id}: {num_accepted} of {num_sampled} tokens"
    if sequence.draft:
        assert sequence.draft[: max(0, num_accepted - 1)] == list(accepted[:-1]), f"sequence {sequence.id} accepted what was not drafted"
        sequence.draft = []
    sequence.num_computed = first + num_tokens - num_sampled + max(1, num_accepted)
    output = sequence.output
    output += accepted
    return reason or ("length" if len(output) >= sequence.max_new_tokens else None)
