"""One token stream: what was asked, what came, how much of it is in the cache and where. No torch.

A sequence is data; the scheduler moves it. The three states are told apart by `status`: WAITING holds no blocks, RUNNING holds the blocks
that cover its computed tokens, FINISHED holds none again. Positions count from the first token of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Status(Enum):
    """Where a sequence stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Account:
    """What a tenant was served at one priority, in tokens computed: the measure of its fair share."""

    served: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """A prompt and its continuation. The caller fills the first group of fields and may set `draft`; the rest is the scheduler's.

    Attributes:
        id: the caller's number for it, unique among live sequences.
        prompt: token ids to start from.
        max_new_tokens: at most so many are generated; `Scheduler.add` lowers it to what the context leaves.
        priority: lower runs first, and is preempted last.
        tenant: whose fair share it counts against.
        salt: prefixes are shared only among sequences of one salt.
        adapter: and of one adapter, since that changes keys and values.
        reuse_prefix: whether it may start from cached blocks; false where every position is computed, as for a mean of all states.
        reuse_limit: leading tokens that cached blocks may hold at most, where later ones are computed, as for log-probabilities of the
            prompt; None for all but the last.
        arrival: when it was asked, by the caller's clock; told back in metrics, never used for order, since clocks jump.
        draft: proposed next tokens; the scheduler takes as many as fit, and the next `update` clears them.
        output: tokens generated.
        num_computed: leading tokens whose keys and values are in the cache.
        num_registered: leading blocks that the pool knows by content.
        num_cached: tokens that came from the cache when it first ran; None before.
        blocks: the block table.
        block_hashes: digests of its leading full blocks, as far as they were needed.
        blocks_most: blocks it holds at its full length.
        blocks_goal: blocks that admission keeps for it.
        turn: its place in line: the order of arrival, kept through preemption.
        followers: for a group, the sequences that fork from this one once its prompt is computed.
        leader: the sequence that it follows.
        account: its tenant's.
        admitted_at: when it first ran.
        finished_at: when it ended.
    """

    id: int
    prompt: tuple[int, ...] = field(repr=False)
    max_new_tokens: int
    priority: int = 0
    tenant: str = ""
    salt: bytes = field(default=b"", repr=False)
    adapter: str = ""
    reuse_prefix: bool = True
    reuse_limit: int | None = None
    arrival: float = 0.0
    draft: list[int] = field(default_factory=list[int], repr=False)

    output: list[int] = field(default_factory=list[int], repr=False)
    status: Status = Status.WAITING
    finish_reason: str | None = None
    num_computed: int = 0
    num_registered: int = 0
    num_cached: int | None = None
    num_preemptions: int = 0
    blocks: list[int] = field(default_factory=list[int])
    block_hashes: list[bytes] = field(default_factory=list[bytes], repr=False)
    blocks_most: int = 0
    blocks_goal: int = 0
    turn: int = -1
    followers: list[Sequence] = field(default_factory=list["Sequence"], repr=False)
    leader: Sequence | None = field(default=None, repr=False)
    account: Account = field(default_factory=Account, repr=False)
    admitted_at: float | None = None
    finished_at: float | None = None

    @property
    def num_tokens(self) -> int:
        """Known tokens: prompt and output."""
        return len(self.prompt) + len(self.output)

    @property
    def reusable(self) -> int:
        """Leading tokens that may come from the cache."""
        if not self.reuse_prefix:
            return 0
        return self.num_tokens if self.reuse_limit is None else self.reuse_limit

    @property
    def num_draft(self) -> int:
        """Proposed tokens."""
        return len(self.draft)

    def tokens(self, first: int, end: int) -> list[int]:
        """Tokens at positions first..end-1 of prompt, output and draft behind one another."""
        prompt, output = self.prompt, self.output
        num_prompt = len(prompt)
        if first >= num_prompt:
            known = num_prompt + len(output)
            found = output[first - num_prompt : end - num_prompt]
            return found if end <= known else found + self.draft[max(0, first - known) : end - known]
        found = list(prompt[first:end])
        return found if end <= num_prompt else found + self.tokens(num_prompt, end)
