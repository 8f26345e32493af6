"""Whether one more sequence fits into the cache, beside what those that run may still need. No torch.

A sequence comes in with blocks for all its known tokens, so that two half-read prompts cannot block each other. Of the blocks then left,
each running sequence is promised the ones it needs next: one at least, or up to its reserved share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from herd.engine.blocks import BlockPool
from herd.engine.request import Sequence


class _Refusal(NamedTuple):
    """The last sequence that did not fit, the blocks it asked for, and the digest after the last one that was found."""

    sequence: Sequence
    num_needed: int
    missed: bytes | None


class Admission:
    """Counts blocks; moves none."""

    def __init__(self, pool: BlockPool, *, reserve: float) -> None:
        self.pool, self.reserve = pool, reserve
        self._refusal: _Refusal | None = None

    def measure(self, sequence: Sequence) -> None:
        """Note how many blocks a new sequence takes at its full length, and how many admission keeps for it."""
        num_prompt, num_new = len(sequence.prompt), sequence.max_new_tokens
        sequence.blocks_most = self.pool.blocks_for(num_prompt + num_new - 1)
        sequence.blocks_goal = self.pool.blocks_for(num_prompt + max(1, math.ceil(self.reserve * num_new)) - 1)

    def promised(self, sequence: Sequence, num_held: int) -> int:
        """Blocks that a sequence which holds `num_held` may ask for, and its followers beside those that they share."""
        more = max(sequence.blocks_goal - num_held, min(1, sequence.blocks_most - num_held))
        if sequence.followers:
            shared = (len(sequence.prompt) - 1) // self.pool.block_size
            more += len(sequence.followers) * max(1, sequence.blocks_goal - shared)
        return more

    def headroom(self, running: Iterable[Sequence]) -> int:
        """Blocks promised to those that run. Shared blocks that are written in this step were copied before anyone is admitted."""
        return sum([self.promised(sequence, len(sequence.blocks)) for sequence in running])

    def is_still_refused(self, sequence: Sequence, headroom: int) -> bool:
        """Whether nothing changed for the one that was refused last; asked in every step while the line is stuck, so it is cheap."""
        last = self._refusal
        if last is None or last.sequence is not sequence:
            return False
        return self.pool.num_free < last.num_needed + headroom and (last.missed is None or not self.pool.holds(last.missed))

    def find(self, sequence: Sequence, headroom: int | None) -> list[int] | None:
        """The cached blocks that a waiting sequence would start from, or None where it does not fit beside `headroom` promised blocks.

        None promised: nothing else runs, so it fits, or it would not have been accepted.
        """
        pool, hasher = self.pool, self.pool.hasher
        # At least one token is left to compute: without it there would be no scores to draw from.
        most = min(sequence.num_tokens - 1, sequence.reusable) // pool.block_size
        hits = pool.lookup(hasher.block_hashes(sequence, most))
        total = pool.blocks_for(sequence.num_tokens)
        num_needed = total - len(hits) + pool.num_free_of(hits)
        if headroom is None:
            assert num_needed <= pool.num_free, f"sequence {sequence.id} was accepted and does not fit alone"
            return hits
        num_needed += self.promised(sequence, total)
        if num_needed + headroom <= pool.num_free:
            return hits
        missed = hasher.block_hash(sequence, len(hits)) if len(hits) < most else None
        self._refusal = _Refusal(sequence, num_needed, missed)
        return None
