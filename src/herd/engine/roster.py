"""Who lives, who runs, who waits, and every move between the three. No torch.

    add -> WAITING -> start -> RUNNING -> end -> FINISHED        preempt: RUNNING -> WAITING        fork: a follower -> RUNNING or WAITING

Followers of a group wait outside the queue until their leader has read the prompt. Knows nothing of steps or budgets.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable

from herd.engine.blocks import BlockPool
from herd.engine.fairness import WaitingQueue
from herd.engine.request import Sequence, Status


def rank(sequence: Sequence) -> tuple[int, int]:
    """Who gives way to whom: the greatest is the first to lose its blocks."""
    return sequence.priority, sequence.turn


class Roster:
    """All live sequences over one pool.

    Attributes:
        running: those that hold blocks, by rank.
        waiting: those in line.
        sequences: all, by id.
        num_preemptions: since the start.
    """

    def __init__(self, pool: BlockPool, *, max_sequences: int, clock: Callable[[], float]) -> None:
        self.pool = pool
        self.max_sequences = max_sequences
        self.running: list[Sequence] = []
        self.waiting = WaitingQueue()
        self.sequences: dict[int, Sequence] = {}
        self.num_preemptions = 0
        self._clock = clock
        self._next_turn = 0

    @property
    def is_full(self) -> bool:
        """Whether as many run as may."""
        return len(self.running) >= self.max_sequences

    def add(self, sequences: list[Sequence]) -> None:
        """Take in a group: the first goes into line, the others follow it."""
        leader, *followers = sequences
        for sequence in sequences:
            sequence.turn = self._next_turn
            self._next_turn += 1
            self.sequences[sequence.id] = sequence
            self.waiting.join(sequence)
        self._lead(leader, followers)
        self.waiting.push(leader, lift=True)

    @staticmethod
    def _lead(leader: Sequence, followers: list[Sequence]) -> None:
        leader.leader, leader.followers = None, followers
        for follower in followers:
            follower.leader = leader

    def start(self, sequence: Sequence, hits: list[int]) -> None:
        """Let the sequence at the head of the line run, from these cached blocks on, with blocks for all it knows."""
        pool = self.pool
        num_tokens, num_hits = sequence.num_tokens, len(hits)
        self.waiting.remove(sequence, admitted=True)
        pool.acquire(hits)
        sequence.blocks = hits + pool.allocate(pool.blocks_for(num_tokens) - num_hits)
        sequence.num_registered = num_hits
        sequence.num_computed = num_hits * pool.block_size
        if sequence.reuse_prefix:
            pool.count_lookup(num_tokens, sequence.num_computed)
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed
            sequence.admitted_at = self._clock()
        self._run(sequence)

    def _run(self, sequence: Sequence) -> None:
        sequence.status = Status.RUNNING
        insort(self.running, sequence, key=rank)

    def preempt(self) -> Sequence:
        """Take the blocks of the running sequence of lowest rank; it waits before all new ones and will be computed again."""
        sequence = self.running.pop()
        self._strip(sequence)
        sequence.status = Status.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.push(sequence)
        return sequence

    def _strip(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = sequence.num_registered = 0

    def fork(self, leader: Sequence) -> None:
        """Let the followers of a sequence that has just read its prompt run on its blocks; those for whom there is no slot get in line.

        Each computes the prompt's last token again, since it draws its own first token from the scores there.
        """
        pool = self.pool
        num_computed = len(leader.prompt) - 1
        whole = num_computed // pool.block_size
        table = leader.blocks[: whole + 1]  # without those that its drafts took
        followers, leader.followers = leader.followers, []
        for follower in followers:
            follower.leader = None
            follower.block_hashes = leader.block_hashes[:whole]
            if self.is_full:
                self.waiting.push(follower)
                continue
            follower.blocks = pool.fork(table)
            follower.num_computed = follower.num_cached = num_computed
            follower.num_registered = min(leader.num_registered, whole)
            follower.admitted_at = self._clock()
            self._run(follower)

    def register(self, sequence: Sequence) -> None:
        """Name the blocks that became full, so that others find them."""
        pool, hasher = self.pool, self.pool.hasher
        for index in range(sequence.num_registered, sequence.num_computed // pool.block_size):
            pool.register(sequence.blocks[index], hasher.block_hash(sequence, index))
            sequence.num_registered += 1

    def end(self, sequence: Sequence, reason: str) -> None:
        """Finish a sequence, whatever it is doing. Of a group without its leader the next one leads."""
        if sequence.status is Status.RUNNING:
            del self.running[bisect_left(self.running, rank(sequence), key=rank)]
            self._strip(sequence)
        elif sequence.leader is not None:
            sequence.leader.followers.remove(sequence)
            sequence.leader = None
        else:
            self.waiting.remove(sequence)
        sequence.status, sequence.finish_reason = Status.FINISHED, reason
        sequence.finished_at = self._clock()
        del self.sequences[sequence.id]
        if sequence.followers:
            self._bequeath(sequence)
        self.waiting.leave(sequence)

    def _bequeath(self, sequence: Sequence) -> None:
        heir, *rest = sequence.followers
        sequence.followers = []
        heir.block_hashes = sequence.block_hashes
        self._lead(heir, rest)
        self.waiting.push(heir)
