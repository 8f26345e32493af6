"""Guesses by a smaller model of the same vocabulary, batched over all sequences that are about to draw. No torch.

The draft model has a runner and a cache of its own. It reads what is known of a sequence in chunks, then writes guesses one round after
another, each drawn from its own scores with the number that the sampler will verify it with: where the two models' scores agree, so do the
tokens, at any temperature. What is verified otherwise is written over. A preempted sequence keeps its draft cache; where blocks run short
those go first that are not about to draw. Nothing here can change a token, only how many come in a step. Leviathan et al., 2023.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from herd.base.errors import HerdError
from herd.engine.batch import Piece, RowReader, Runner, ragged
from herd.engine.blocks import BlockPool
from herd.engine.draw import Drawer
from herd.engine.payoff import Payoff
from herd.engine.request import Sequence
from herd.engine.sampler import Seen, sample
from herd.engine.speculation import Due


@dataclass(slots=True)
class _State:
    """What the draft model has of a sequence. Its `guesses` stand from position `base` on; `num_computed` positions are cached."""

    blocks: list[int] = field(default_factory=list[int])
    num_computed: int = 0
    num_registered: int = 0
    base: int = 0
    guesses: list[int] = field(default_factory=list[int])
    payoff: Payoff = field(default_factory=Payoff)


@dataclass(slots=True)
class _Turn:
    """A sequence in this call of `guess`: at most `limit` tokens are guessed."""

    sequence: Sequence
    due: Due
    state: _State
    limit: int
    seen: Seen | None


class DraftModel:
    """A `Guesser`.

    Args:
        runner: the draft model's.
        pool: its blocks, with the key of the engine's own pool, so that a block has one name in both.
        num_draft: tokens guessed at once, at most.
        token_budget: tokens of a step at most, the engine's and the draft model's.
        context: positions that the draft model knows.
    """

    def __init__(self, runner: Runner, pool: BlockPool, *, num_draft: int, token_budget: int, context: int) -> None:
        self.runner, self.pool = runner, pool
        self._num_draft, self._token_budget, self._context = num_draft, token_budget, context
        self._states: dict[int, _State] = {}
        self._drawer = Drawer(runner)
        self.num_steps = 0

    def guess(self, due: Many[Due]) -> dict[int, list[int]]:
        """See `Guesser.guess`. Runs the draft model once for each guess."""
        turns = self._read(self._turns(due))
        self._write(turns)
        return {turn.sequence.id: list(turn.state.guesses) for turn in turns}

    def learn(self, sequence_id: int, num_guessed: int, tokens: Many[int]) -> None:
        """See `Guesser.learn`."""
        state = self._states.get(sequence_id)
        if state is not None:
            state.payoff.observe(num_guessed, len(tokens) - 1)
            state.payoff.advance(len(tokens))

    def forget(self, sequence_id: int) -> None:
        """See `Guesser.forget`: its blocks are free on return."""
        state = self._states.pop(sequence_id, None)
        if state is not None:
            self._release(state)

    def _release(self, state: _State) -> None:
        self.pool.release(state.blocks)
        state.blocks, state.guesses = [], []
        state.num_computed = state.num_registered = 0

    def _turns(self, due: Many[Due]) -> list[_Turn]:
        """The sequences to guess for, with blocks for all that may be written. Who lags least comes first."""
        found: list[_Turn] = []
        for one in due:
            state = self._states.setdefault(one.sequence.id, _State())
            limit = min(one.limit, state.payoff.worth(self._num_draft), self._context - one.sequence.num_tokens)
            if limit > 0 and not state.payoff.is_paused:
                found.append(_Turn(one.sequence, one, state, limit, None))
        # A guess beyond the step's budget would be thrown away unseen.
        share = (self._token_budget - len(due)) // max(1, len(found))
        for turn in found:
            turn.limit = min(turn.limit, share)
            _settle(turn.state, turn.sequence)
            self._register(turn)
        busy = {turn.sequence.id for turn in found}
        found = [turn for turn in found if turn.limit > 0 and self._reserve(turn, busy)]
        return sorted(found, key=_lag)

    def _register(self, turn: _Turn) -> None:
        """Name the blocks that are full of known tokens, so that others find them."""
        state, pool = turn.state, self.pool
        if not turn.sequence.reuse_prefix:
            return
        for index in range(state.num_registered, state.num_computed // pool.block_size):
            pool.register(state.blocks[index], pool.hasher.block_hash(turn.sequence, index))
            state.num_registered += 1

    def _reserve(self, turn: _Turn, busy: set[int]) -> bool:
        """Give it the blocks it needs, from sequences that are not `busy` if need be. False where there are none."""
        state, sequence, pool = turn.state, turn.sequence, self.pool
        if not state.blocks and sequence.reuse_prefix:
            hits = pool.lookup(pool.hasher.block_hashes(sequence, (sequence.num_tokens - 1) // pool.block_size))
            pool.acquire(hits)
            state.blocks, state.num_registered = hits, len(hits)
            state.num_computed = len(hits) * pool.block_size
        wanted = pool.blocks_for(sequence.num_tokens + turn.limit - 1) - len(state.blocks)
        for other, idle in self._states.items():
            if wanted <= pool.num_free:
                break
            if other not in busy:
                self._release(idle)
        if wanted > pool.num_free:
            return False
        state.blocks += pool.allocate(max(0, wanted))
        return True

    def _read(self, turns: list[_Turn]) -> list[_Turn]:
        """Compute what the draft model has not seen yet, within the budget, and draw a first guess for those that have caught up."""
        left = self._token_budget
        pieces: list[Piece] = []
        ready: list[_Turn] = []
        started: list[tuple[_State, int]] = []
        for turn in turns:
            first, known = turn.state.num_computed, turn.sequence.num_tokens
            count = min(left, known - first)
            if not count:
                break
            left -= count
            end = first + count
            pieces.append(Piece(turn.sequence.tokens(first, end), first, turn.state.blocks, range(known - 1, end)))
            started.append((turn.state, end))
            if end == known:
                ready.append(turn)
                turn.state.base = known
                turn.seen = None if turn.due.seen is None else Seen(turn.due.seen.prompt, Counter(turn.due.seen.output))
        self._run(pieces, ready, started)
        return ready

    def _write(self, turns: list[_Turn]) -> None:
        """The guesses after the first, round by round, until none may go on."""
        going = turns
        while going := [turn for turn in going if _may_go_on(turn)]:
            pieces: list[Piece] = []
            ends: list[tuple[_State, int]] = []
            for turn in going:
                state = turn.state
                place = state.num_computed
                pieces.append(Piece([state.guesses[-1]], place, state.blocks, range(place, place + 1)))
                ends.append((state, place + 1))
            self._run(pieces, going, ends)

    def _run(self, pieces: list[Piece], drawing: list[_Turn], ends: list[tuple[_State, int]]) -> None:
        """Run a step of the draft model; whoever is `drawing` draws from the one row of its piece."""
        if not pieces:
            return
        rows = RowReader(self.runner.run(ragged(pieces)))
        self.num_steps += 1
        for state, end in ends:
            state.num_computed = end
        for turn in drawing:
            self._draw(turn, rows)

    def _draw(self, turn: _Turn, rows: RowReader) -> None:
        state = turn.state
        (row,) = rows.take(1)
        try:
            token_id = sample(row, turn.due.params, turn.seen, position=state.num_computed, draw=self._drawer.one)
        except HerdError:
            turn.limit = 0  # scores that are no numbers: whoever drafts badly is not asked, and the model itself will tell its own
            return
        state.guesses.append(token_id)
        if turn.seen is not None:
            turn.seen.add(token_id)
        if token_id in turn.due.params.stop_ids:
            turn.limit = 0


def _lag(turn: _Turn) -> int:
    return turn.sequence.num_tokens - turn.state.num_computed


def _may_go_on(turn: _Turn) -> bool:
    return 0 < len(turn.state.guesses) < turn.limit


def _settle(state: _State, sequence: Sequence) -> None:
    """Drop what was computed of guesses that did not come true, and the last known token, whose scores are wanted."""
    known, guesses = sequence.num_tokens, state.guesses
    came = sequence.tokens(state.base, min(known, state.base + len(guesses)))
    num_true = next((place for place, token_id in enumerate(came) if token_id != guesses[place]), len(came))
    if guesses:
        state.num_computed = min(state.num_computed, state.base + num_true)
        state.guesses = []
    state.num_computed = min(state.num_computed, known - 1)
