"""What is always true of roster and pool. `books` is cheap enough for every step, `check` looks at everything, in tests. No torch."""

from __future__ import annotations

from herd.engine.request import Sequence, Status
from herd.engine.roster import Roster, rank


def books(roster: Roster) -> None:
    """Assert that no block is held by anyone but the running sequences, nor lost."""
    pool = roster.pool
    assert len(roster.running) <= roster.max_sequences
    assert pool.num_references == sum([len(sequence.blocks) for sequence in roster.running]), "a block is held by no sequence"


def check(roster: Roster) -> None:
    """Assert every invariant, at the cost of a walk over all blocks and sequences."""
    books(roster)
    roster.pool.check([sequence.blocks for sequence in roster.running])
    ranks = [rank(sequence) for sequence in roster.running]
    assert ranks == sorted(set(ranks)), "the running are out of order"
    in_line = roster.waiting.sequences()
    followers = [follower for sequence in roster.sequences.values() for follower in sequence.followers]
    found = sorted(sequence.id for sequence in [*roster.running, *in_line, *followers])
    assert found == sorted(roster.sequences), "a sequence is nowhere, or twice somewhere"
    assert bool(in_line) == bool(roster.waiting) and len(in_line) == len(roster.waiting)
    for sequence in roster.running:
        _check_running(roster, sequence)
    for sequence in [*in_line, *followers]:
        assert sequence.status is Status.WAITING
        assert not sequence.blocks and not sequence.num_computed and not sequence.num_registered
    for sequence in roster.sequences.values():
        assert len(sequence.output) < sequence.max_new_tokens
        assert all(follower.leader is sequence for follower in sequence.followers)
        assert all(not follower.followers for follower in sequence.followers)
    assert all(sequence.leader is None for sequence in [*roster.running, *in_line])


def _check_running(roster: Roster, sequence: Sequence) -> None:
    pool, blocks = roster.pool, sequence.blocks
    assert sequence.status is Status.RUNNING
    assert sequence.num_computed < sequence.num_tokens
    assert sequence.num_computed <= len(blocks) * pool.block_size <= sequence.blocks_most * pool.block_size
    assert len(set(blocks)) == len(blocks), "a block stands twice in a table"
    assert sequence.num_registered <= sequence.num_computed // pool.block_size
    named = [pool.digests[block] for block in blocks]
    for index in range(sequence.num_registered):
        assert named[index] in (None, pool.hasher.block_hash(sequence, index)), "a block has another content than its name"
    # After a fork the block in work may still be shared, or named: it is made the sequence's own before it is written. Those behind are.
    behind = sequence.num_computed // pool.block_size + 1
    assert all(pool.refs[block] == 1 and name is None for block, name in zip(blocks[behind:], named[behind:], strict=True))
