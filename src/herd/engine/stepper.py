"""One step of the engine after another: scheduler, runner and sampler meet here and nowhere else.

The scheduler says which tokens to compute, the runner gives their scores, `results` draws and tells, and the scheduler is told what came of
it. Knows token ids and who is to be told; nothing of threads, which are `engine`'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from herd.base.errors import HerdError
from herd.engine.ahead import Ahead
from herd.engine.batch import RaggedBatch, RowReader, Runner
from herd.engine.draw import AheadRunner, Drawer, Drawn
from herd.engine.live import Live, LiveSequences, continuations
from herd.engine.results import Results
from herd.engine.rows import ScoreReader
from herd.engine.scheduler import Scheduler
from herd.engine.speculation import Due, Guesser
from herd.engine.step import Step, StepItem, StepResult
from herd.engine.stream import Admitted, Emit, Failed, TokenRequest, Tokens
from herd.engine.tables import BlockTables

if TYPE_CHECKING:
    from herd.engine.disk.cache import DiskCache
    from herd.engine.grammar.compiler import CompiledGrammar
    from herd.engine.grammar.pool import MaskPool
    from herd.engine.grammar.state import Mask

_NO_ROWS = np.empty(0, dtype=np.int64)


class Stepper:
    """Requests over one runner. Calls come from one thread at a time. Without a `guesser` nothing is guessed."""

    def __init__(
        self, runner: Runner, scheduler: Scheduler, *, guesser: Guesser | None, clock: Callable[[], float], disk: DiskCache | None = None
    ) -> None:
        self.runner, self.scheduler, self.guesser, self.disk = runner, scheduler, guesser, disk
        self._clock = clock
        self._ids = itertools.count(1)
        self._live = LiveSequences()
        self._mask_pool: MaskPool | None = None
        self._tables = BlockTables()
        self._drawer = Drawer(runner)
        self.results = Results(self._live.by_id, self._drawer, guesser)
        self.ahead = Ahead(scheduler, self._tables)
        self._counting = np.arange(1, dtype=np.int64)
        self.num_steps = self.num_tokens = 0
        self.busy_s = 0.0

    def add(self, number: int, request: TokenRequest, emit: Emit, *, grammar: CompiledGrammar | None = None) -> None:
        """Queue a request under the caller's number; `grammar` is its own, compiled. What the scheduler refuses is told as `Failed`."""
        lives = continuations(number, request, emit, ids=self._ids, arrival=self._clock(), grammar=grammar)
        for live in lives:
            live.plain = live.wants_token_alone and self._drawer.draws_rows(live.params) and self.guesser is None
        self._live.add(number, lives)
        if self.disk is None or not self.disk.hold(lives[0].sequence, lambda: self._enqueue(number, emit)):
            self._enqueue(number, emit)

    def _enqueue(self, number: int, emit: Emit) -> None:
        """Give those of a request's continuations that still live to the scheduler."""
        lives = self._live.of_request(number)
        if not lives:
            return
        try:
            self.scheduler.add_group([live.sequence for live in lives])
        except HerdError as error:
            self._forget(*lives)
            emit(Failed(error=error))

    def cancel(self, number: int, index: int | None = None) -> None:
        """End a request, or one of its continuations; its blocks are free on return. One that has ended already is left alone."""
        for live in self._live.of_request(number):
            if index in (None, live.index):
                self._forget(live)
                self.scheduler.cancel(live.sequence.id)
                live.emit(Tokens(index=live.index, ids=(), finish="cancelled"))

    def _forget(self, *lives: Live) -> None:
        for live in lives:
            if self.guesser is not None:
                self.guesser.forget(live.sequence.id)
            self._live.forget(live)

    def fail_all(self, error: HerdError) -> None:
        """Tell every request in flight that it failed, and forget them. Safe in the middle of a step that was broken off."""
        self.scheduler.abandon()
        self.ahead.forget()
        self.results.discard()
        for number in self._live.requests:
            lives = self._live.of_request(number)
            for live in lives:
                self.scheduler.cancel(live.sequence.id)
            self._forget(*lives)
            if lives:  # who was told of another's failure may have cancelled these
                lives[0].emit(Failed(error=error))

    def step(self) -> bool:
        """Run one step; says whether there was anything to run."""
        started = self._clock()
        if self.disk is not None:
            self.disk.take_arrivals()
        self._guess()
        step = self.scheduler.schedule()
        if not step.items:
            return False
        self._tell_admitted(step)
        results = self._results(step)
        self.scheduler.update(results)
        self._forget_finished(results)
        self.results.send()
        if self.disk is not None:
            self.disk.save(step)
        self.num_steps += 1
        self.num_tokens += step.num_tokens
        self.busy_s += self._clock() - started
        return True

    def _results(self, step: Step) -> dict[int, StepResult]:
        """Run the step; what came of each item. Next tokens come first, and all at once."""
        if (under_way := self.ahead.take(step)) is not None:
            return self._drawn_ahead(step, *under_way)
        masks = self._start_masks(step)
        num_next = 0 if self._live.num_poolers else step.num_next  # what is pooled wants no scores, also of its last token
        batch, wanted = self._batch(step, num_next)
        chunks = self.runner.run(batch)
        if not wanted and (drawn := self._drawn_there(step)) is not None:
            return drawn
        scores = ScoreReader(chunks, self.runner.vocab_size)
        results = self.results.of_next_tokens(step.items[:num_next], scores, masks)
        if not wanted:
            return results
        states = RowReader(self.runner.hidden(batch) if len(batch.hidden_E) else iter(()))
        for item, num_scores, num_states in wanted:
            number = item.sequence.id
            found = states.take(num_states) if num_states else None
            results[number] = self.results.of_item(item, scores.take(num_scores), found, masks.get(number))
        return results

    def _drawn_there(self, step: Step) -> dict[int, StepResult] | None:
        """Results of a step of next tokens alone, where the runner draws all of them; else None."""
        lives = [self._live.by_id[item.sequence.id] for item in step.items]
        if not all(live.plain for live in lives):
            return None
        positions = [live.sequence.num_tokens for live in lives]
        later = self._drawer.later([live.params for live in lives], positions)
        if later is not None:
            return self._drawn_ahead(step, later, list(range(len(lives))))
        ids = self._drawer.there([live.params for live in lives], positions)
        return None if ids is None else self.results.of_drawn(lives, ids, positions)

    def _drawn_ahead(self, step: Step, drawn: Drawn, rows: list[int]) -> dict[int, StepResult]:
        """Results of a step whose ids are drawn in these rows. Before they are read, the step after it is launched."""
        lives = [self._live.by_id[item.sequence.id] for item in step.items]
        if isinstance(self.runner, AheadRunner):
            self.ahead.launch(self.runner, step, drawn, rows, {live.sequence.id: live.params for live in lives})
        ids = drawn.read()
        return self.results.of_drawn(lives, [ids[row] for row in rows], [live.sequence.num_tokens for live in lives])

    def _guess(self) -> None:
        """Have guesses made for those that draw their next token in the coming step."""
        if self.guesser is None:
            return
        due: list[Due] = []
        for live in self._live.by_id.values():
            sequence, limit = live.sequence, live.params.max_tokens - len(live.sequence.output) - 1
            if sequence.blocks and sequence.num_computed == sequence.num_tokens - 1 and live.pooler is None and limit > 0:
                due.append(Due(sequence=sequence, params=live.params, seen=live.seen, limit=limit))
        guesses = self.guesser.guess(due) if due else {}
        for one in due:
            one.sequence.draft = guesses.get(one.sequence.id, [])

    def _tell_admitted(self, step: Step) -> None:
        for item in step.items:
            live = self._live.by_id[item.sequence.id]
            if not live.admitted:
                live.admitted = True
                if live.index == 0:
                    live.emit(Admitted(num_cached=item.sequence.num_cached or 0))

    def _start_masks(self, step: Step) -> dict[int, Future[Mask]]:
        """Have the grammars' masks computed while the model runs, by sequence."""
        if not self._live.num_grammars:
            return {}
        found = {item.sequence.id: self._live.by_id[item.sequence.id].state for item in step.items if item.num_sampled}
        states = {number: state for number, state in found.items() if state is not None}
        if not states:
            return {}
        if self._mask_pool is None:
            from herd.engine.grammar.pool import MaskPool

            self._mask_pool = MaskPool()
        return dict(zip(states, self._mask_pool.start(list(states.values())), strict=True))

    def _batch(self, step: Step, num_next: int) -> tuple[RaggedBatch, list[tuple[StepItem, int, int]]]:
        """What the runner computes, and how many rows of scores and of states each item wants behind the first `num_next`."""
        items = step.items
        if num_next >= len(self._counting):
            self._counting = np.arange(2 * num_next, dtype=np.int64)
        sequences = [item.sequence for item in items]
        tokens = [sequence.output[-1] if sequence.output else sequence.prompt[-1] for sequence in sequences[:num_next]]
        starts, rows, hidden = list[int](), list[int](), list[int]()
        wanted: list[tuple[StepItem, int, int]] = []
        begin = num_next
        for item in items[num_next:]:
            sequence, num_tokens, first, num_sampled = item
            end, pooler = first + num_tokens, self._live.by_id[sequence.id].pooler
            tokens += sequence.tokens(first, end)
            count = self._num_scores(item)
            pooled = range(0) if pooler is None else pooler.rows(first, end, is_last=bool(num_sampled))
            hidden += [begin + place - first for place in pooled]
            begin += num_tokens
            rows += range(begin - count, begin)
            wanted.append((item, count, len(pooled)))
            starts.append(begin)
        lead = self._counting[: num_next + 1]
        batch = RaggedBatch(
            tokens_T=np.array(tokens, dtype=np.int32),
            first_S=np.array([item.first_position for item in items], dtype=np.int32),
            starts=np.concatenate((lead, starts)).astype(np.int32) if starts else lead.astype(np.int32),
            block_table_SW=self._tables.of([sequence.blocks for sequence in sequences], moved=bool(step.copies)),
            rows_R=np.concatenate((lead[:-1], rows)).astype(np.int64) if rows else lead[:-1],
            copies=tuple(step.copies),
            hidden_E=np.array(hidden, dtype=np.int64) if hidden else _NO_ROWS,
        )
        return batch, wanted

    def _num_scores(self, item: StepItem) -> int:
        """How many last rows of an item want scores: the last known token's and the drafts', or more where the prompt's are reported."""
        sequence = item.sequence
        live = self._live.by_id[sequence.id]
        if live.pooler is not None:
            return 0
        if live.params.prompt_logprobs is None or item.first_position >= len(sequence.prompt):
            return item.num_sampled
        reported = max(item.first_position, live.params.prompt_logprobs_from - 1)
        return max(item.first_position + item.num_tokens - reported, item.num_sampled)

    def _forget_finished(self, results: dict[int, StepResult]) -> None:
        for sequence_id, result in results.items():
            live = self._live.by_id.get(sequence_id) if result.finish is not None else None
            if live is not None:
                self._forget(live)
        while self.results.unsound:
            self.cancel(self.results.unsound.pop())

    def close(self) -> None:
        """Let go of the threads for masks and for the disk."""
        if self.disk is not None:
            self.disk.close()
        if self._mask_pool is not None:
            self._mask_pool.close()
