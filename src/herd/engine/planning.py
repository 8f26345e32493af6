"""Fills one step: next tokens, drafts, prompts, in this order. No torch.

Every running sequence that has read all it knows gets its next token; the limits see to it that the budget always has room for these and a
chunk. Drafts take what is left but for that chunk, prompts the rest. Blocks are asked for at the latest moment, and only a next token may
take them from others.
"""

from __future__ import annotations

import heapq

from herd.engine.admission import Admission
from herd.engine.fairness import standing
from herd.engine.limits import Limits
from herd.engine.request import Sequence
from herd.engine.roster import Roster
from herd.engine.step import Step, StepItem


class Plan:
    """A step in the making: it moves sequences of the roster, and is thrown away."""

    __slots__ = ("_headroom", "admission", "limits", "pool", "roster", "step")

    def __init__(self, roster: Roster, limits: Limits, admission: Admission) -> None:
        self.roster, self.limits, self.admission = roster, limits, admission
        self.pool = roster.pool
        self.step = Step()
        self._headroom: int | None = None

    def make(self) -> Step:
        """The step; call it once."""
        self._make_way()
        num_displaced = len(self.step.preempted)
        prompts = self._add_next_tokens()
        # Whoever gave way just now would be back at once, and give way again.
        self._add_prompts(prompts, may_admit=len(self.step.preempted) == num_displaced)
        return self.step

    def _preempt(self) -> Sequence:
        sequence = self.roster.preempt()
        self.step.preempted.append(sequence)
        return sequence

    def _make_way(self) -> None:
        """Let the first in line displace running sequences of lower priority, while slots or blocks are short."""
        running, urgent = self.roster.running, self.roster.waiting.peek()
        while urgent is not None and running and running[-1].priority > urgent.priority:
            if not self.roster.is_full and self._find(urgent) is not None:
                break
            self._preempt()
            self._headroom = None
        self._headroom = None

    def _add_next_tokens(self) -> list[Sequence]:
        """A token for each sequence that has read all it knows; returns those that have not."""
        items, running = self.step.items, self.roster.running
        size, refs, digests = self.pool.block_size, self.pool.refs, self.pool.digests
        prompts: list[Sequence] = []
        drafted: list[int] = []
        index = 0
        while index < len(running):  # its end moves: sequences of lower rank may have to give way
            sequence = running[index]
            index += 1
            first, blocks = sequence.num_computed, sequence.blocks
            if len(sequence.prompt) + len(sequence.output) - first > 1:
                prompts.append(sequence)
                continue
            place = first // size
            is_own = place < len(blocks) and refs[blocks[place]] == 1 and digests[blocks[place]] is None
            if not is_own and not self._make_own(sequence, first):
                break
            if sequence.draft:
                drafted.append(len(items))
            sequence.account.served += 1
            items.append(StepItem(sequence, 1, first, 1))
        self.step.num_tokens = len(items)
        self.step.num_next = 0 if drafted else len(items)
        if drafted:
            self._add_drafts(drafted, keep=self.limits.chunk_alignment if prompts or self.roster.waiting else 0)
        return prompts

    def _make_own(self, sequence: Sequence, position: int) -> bool:
        """Give it a block to write `position` in, at the cost of lower ranks if need be. False where itself is the lowest and gave way."""
        pool, blocks = self.pool, sequence.blocks
        place = position // pool.block_size
        while pool.num_free == 0 and (place == len(blocks) or pool.refs[blocks[place]] > 1):
            if self._preempt() is sequence:
                return False
        if place == len(blocks):
            blocks += pool.allocate(1)
        elif (copy := pool.writable(blocks, position)) is not None:
            self.step.copies.append(copy)
        return True

    def _add_drafts(self, drafted: list[int], *, keep: int) -> None:
        """Add drafts to these items as far as they can be of use and budget and free blocks go; `keep` tokens stay for a prompt."""
        pool, step = self.pool, self.step
        left = self.limits.token_budget - step.num_tokens - keep
        for index in drafted:
            sequence, _, first, _ = step.items[index]
            blocks = sequence.blocks
            useful = sequence.max_new_tokens - len(sequence.output) - 1
            room = (len(blocks) + pool.num_free) * pool.block_size - 1 - first
            count = max(0, min(len(sequence.draft), useful, room, left))
            del sequence.draft[count:]
            blocks += pool.allocate(max(0, pool.blocks_for(first + 1 + count) - len(blocks)))
            sequence.account.served += count
            step.items[index] = StepItem(sequence, 1 + count, first, 1 + count)
            step.num_tokens += count
            left -= count

    def _add_prompts(self, prompts: list[Sequence], *, may_admit: bool) -> None:
        """Spend the rest on prompts: always on the one that stands first, whether it is in work or in line.

        The first in line that cannot begin closes the door for this step, so that smaller ones cannot pass it for ever.
        """
        works = [(*standing(sequence), sequence) for sequence in prompts]
        heapq.heapify(works)
        while self.step.num_tokens < self.limits.token_budget:
            work = _first(works)
            comer = self.roster.waiting.peek() if may_admit else None
            if comer is not None and (work is None or standing(comer) < standing(work)):
                may_admit = self._admit(comer)
            elif work is not None:
                heapq.heappop(works)
                self._add_chunk(work)
            else:
                break

    def _admit(self, sequence: Sequence) -> bool:
        """Start the first in line and compute its first chunk, if there is a slot, memory and budget."""
        roster = self.roster
        if roster.is_full:
            return False
        hits = self._find(sequence)
        if hits is None or not self._chunk(sequence, len(hits) * self.pool.block_size):
            return False
        roster.start(sequence, hits)
        self.step.admitted.append(sequence)
        if self._headroom is not None:
            self._headroom += self.admission.promised(sequence, len(sequence.blocks))
        self._add_chunk(sequence)
        return True

    def _find(self, sequence: Sequence) -> list[int] | None:
        """The cached blocks to start from, or None where memory is short."""
        admission, running = self.admission, self.roster.running
        if not running:
            return admission.find(sequence, None)
        if admission.is_still_refused(sequence, 0):
            return None
        if self._headroom is None:
            self._headroom = admission.headroom(running)
        return None if admission.is_still_refused(sequence, self._headroom) else admission.find(sequence, self._headroom)

    def _chunk(self, sequence: Sequence, first: int) -> int:
        """How many tokens from `first` on: to the end of what is known, or to the last aligned position within the budget."""
        known, align = sequence.num_tokens, self.limits.chunk_alignment
        end = first + self.limits.token_budget - self.step.num_tokens
        return known - first if end >= known else max(0, end // align * align - first)

    def _add_chunk(self, sequence: Sequence) -> None:
        first = sequence.num_computed
        count = self._chunk(sequence, first)
        if not count:
            return
        sequence.draft = []  # proposed to follow a token that is not the last any more, or not read yet
        sequence.account.served += count
        self.step.items.append(StepItem(sequence, count, first, int(first + count == sequence.num_tokens)))
        self.step.num_tokens += count


def _first(works: list[tuple[int, int, int, Sequence]]) -> Sequence | None:
    """The first of a heap whose accounts have grown since they were put in."""
    while works:
        sequence = works[0][3]
        current = standing(sequence)
        if current == works[0][:3]:
            return sequence
        heapq.heapreplace(works, (*current, sequence))
    return None
