"""One step of the engine after another: scheduler, runner and sampler meet here and nowhere else.

The scheduler says which tokens to compute, the runner gives their scores, the sampler the next ids, and the scheduler is told what came of
it. Knows token ids and who is to be told; nothing of threads, which are `engine`'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import HerdError
from herd.base.log import get_logger
from herd.engine.ahead import Ahead
from herd.engine.batch import RaggedBatch, RowReader, Runner
from herd.engine.draw import AheadRunner, Drawer, Drawn
from herd.engine.params import TokenParams
from herd.engine.pooling import Pooler
from herd.engine.request import Sequence
from herd.engine.rows import Rows, ScoreReader
from herd.engine.sampler import Seen, TokenLogprobs, check_best, logprobs, sample, seed_of
from herd.engine.scheduler import Scheduler
from herd.engine.speculation import Due, Guesser
from herd.engine.step import Step, StepItem, StepResult
from herd.engine.stream import Admitted, Embedded, Emit, Failed, Finish, PromptLogprobs, TokenEvent, TokenRequest, Tokens
from herd.engine.tables import BlockTables

if TYPE_CHECKING:
    from herd.engine.disk.cache import DiskCache
    from herd.engine.grammar.compiler import CompiledGrammar
    from herd.engine.grammar.pool import MaskPool
    from herd.engine.grammar.state import GrammarState, Mask

_NOTHING = StepResult(accepted=[])
"""Of an item in the middle of a prompt."""
_NO_ROWS = np.empty(0, dtype=np.int64)


log = get_logger(__name__)


@dataclass(slots=True)
class _Live:
    """What is kept of a sequence beside the scheduler's record."""

    sequence: Sequence
    request: int
    index: int
    params: TokenParams
    seen: Seen | None
    emit: Emit
    state: GrammarState | None = None
    pooler: Pooler | None = None
    admitted: bool = False
    num_told: int = 0
    plain: bool = False  # the next token is drawn from the scores as they are, and nothing but the token is told


class Stepper:
    """Requests over one runner. Calls come from one thread at a time. Without a `guesser` nothing is guessed."""

    def __init__(
        self, runner: Runner, scheduler: Scheduler, *, guesser: Guesser | None, clock: Callable[[], float], disk: DiskCache | None = None
    ) -> None:
        self.runner, self.scheduler, self.guesser, self.disk = runner, scheduler, guesser, disk
        self._clock = clock
        self._ids = itertools.count(1)
        self._live: dict[int, _Live] = {}
        self._members: dict[int, list[int]] = {}
        self._unsound: list[int] = []
        self._outbox: list[tuple[Emit, TokenEvent]] = []
        self._mask_pool: MaskPool | None = None
        self._tables = BlockTables()
        self._drawer = Drawer(runner)
        self.ahead = Ahead(scheduler, self._tables)
        self._num_grammars = self._num_poolers = 0
        self._counting = np.arange(1, dtype=np.int64)
        self.num_steps = self.num_tokens = self.num_guessed = self.num_guesses_accepted = 0
        self.busy_s = 0.0

    def add(self, number: int, request: TokenRequest, emit: Emit, *, grammar: CompiledGrammar | None = None) -> None:
        """Queue a request under the caller's number; `grammar` is its own, compiled. What the scheduler refuses is told as `Failed`."""
        now = self._clock()
        members = []
        params, embed = request.params, request.embed
        scored = params.prompt_logprobs_from - 1
        seen = frozenset(request.prompt) if params.bends_scores else None
        for index in range(request.n):
            sequence = Sequence(
                id=next(self._ids),
                prompt=request.prompt,
                max_new_tokens=1 if embed else params.max_tokens,
                priority=request.priority,
                tenant=request.tenant,
                salt=request.salt,
                arrival=now,
                reuse_prefix=request.reuse_prefix and embed != "mean" and (params.prompt_logprobs is None or scored > 0),
                reuse_limit=None if params.prompt_logprobs is None else scored,
            )
            own = replace(params, seed=seed_of(params.seed, index))
            live = _Live(sequence, number, index, own, None if seen is None else Seen(seen), emit)
            live.state = None if grammar is None else grammar.state()
            live.pooler = None if embed is None else Pooler(embed)
            silent = own.logprobs is None and own.prompt_logprobs is None and embed is None
            live.plain = silent and not own.bends_scores and self._drawer.draws_rows(own) and live.state is None and self.guesser is None
            self._num_grammars += live.state is not None
            self._num_poolers += live.pooler is not None
            self._live[sequence.id] = live
            members.append(sequence)
        self._members[number] = [sequence.id for sequence in members]
        if self.disk is None or not self.disk.hold(members[0], lambda: self._enqueue(number, emit)):
            self._enqueue(number, emit)

    def _enqueue(self, number: int, emit: Emit) -> None:
        """Give those of a request's continuations that still live to the scheduler."""
        members = [self._live[member].sequence for member in self._members.get(number, ()) if member in self._live]
        if not members:
            return
        try:
            self.scheduler.add_group(members)
        except HerdError as error:
            self._drop(number)
            emit(Failed(error=error))

    def cancel(self, number: int, index: int | None = None) -> None:
        """End a request, or one of its continuations; its blocks are free on return. One that has ended already is left alone."""
        for sequence_id in self._members.get(number, ()):
            live = self._live.get(sequence_id)
            if live is not None and index in (None, live.index):
                self._forget(sequence_id)
                self.scheduler.cancel(sequence_id)
                live.emit(Tokens(index=live.index, ids=(), finish="cancelled"))
        self._forget_request(number)

    def _forget_request(self, number: int) -> None:
        """Forget a request none of whose continuations lives."""
        if not any(member in self._live for member in self._members.get(number, ())):
            self._members.pop(number, None)

    def _drop(self, number: int) -> None:
        for sequence_id in self._members.pop(number, ()):
            self._forget(sequence_id)

    def _forget(self, sequence_id: int) -> _Live | None:
        if self.guesser is not None:
            self.guesser.forget(sequence_id)
        live = self._live.pop(sequence_id, None)
        if live is not None:
            self._num_grammars -= live.state is not None
            self._num_poolers -= live.pooler is not None
        return live

    def fail_all(self, error: HerdError) -> None:
        """Tell every request in flight that it failed, and forget them. Safe in the middle of a step that was broken off."""
        self.scheduler.abandon()
        self.ahead.forget()
        self._outbox.clear()
        for number, ids in list(self._members.items()):
            members = [self._live[sequence_id] for sequence_id in ids if sequence_id in self._live]
            for live in members:
                self.scheduler.cancel(live.sequence.id)
            self._drop(number)
            if members:
                members[0].emit(Failed(error=error))

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
        self._send()
        if self.disk is not None:
            self.disk.save(step)
        self.num_steps += 1
        self.num_tokens += step.num_tokens
        self.busy_s += self._clock() - started
        return True

    def _send(self) -> None:
        """Events go out when the step is booked: who is told that a request ended finds its blocks free."""
        sent, self._outbox = self._outbox, []
        for emit, event in sent:
            emit(event)

    def _results(self, step: Step) -> dict[int, StepResult]:
        """Run the step; what came of each item. Next tokens come first, and all at once."""
        if (under_way := self.ahead.take(step)) is not None:
            return self._drawn_ahead(step, *under_way)
        masks = self._start_masks(step)
        num_next = 0 if self._num_poolers else step.num_next  # what is pooled wants no scores, also of its last token
        batch, wanted = self._batch(step, num_next)
        chunks = self.runner.run(batch)
        if not wanted and (drawn := self._drawn_there(step)) is not None:
            return drawn
        scores = ScoreReader(chunks, self.runner.vocab_size)
        results = self._next_tokens(step.items[:num_next], scores, masks)
        if not wanted:
            return results
        states = RowReader(self.runner.hidden(batch) if len(batch.hidden_E) else iter(()))
        for item, num_scores, num_states in wanted:
            number = item.sequence.id
            found = states.take(num_states) if num_states else None
            results[number] = self._outcome(item, scores.take(num_scores), found, masks.get(number))
        return results

    def _next_tokens(self, items: list[StepItem], scores: ScoreReader, masks: Mapping[int, Future[Mask]]) -> dict[int, StepResult]:
        """Results of next tokens. Those of plain sequences, the common ones, are drawn together, in as few moves as go."""
        if not items:
            return {}
        rows = scores.take(len(items))
        results: dict[int, StepResult] = {}
        plain: list[tuple[int, _Live]] = []
        for number, item in enumerate(items, start=rows.begin):
            live = self._live[item.sequence.id]
            if live.plain:
                plain.append((number, live))
            else:
                own = Rows(rows.chunk, rows.best, number, number + 1)
                results[item.sequence.id] = self._outcome(item, own, None, masks.get(item.sequence.id))
        if not plain:
            return results
        places = [number for number, _ in plain]
        chosen = rows.scores if len(plain) == len(items) else rows.chunk[places]
        lives = [live for _, live in plain]
        positions = [live.sequence.num_tokens for live in lives]
        ids = self._drawer.rows(chosen, [rows.best[place] for place in places], [live.params for live in lives], positions)
        return results | self._drawn(lives, ids, positions)

    def _drawn_there(self, step: Step) -> dict[int, StepResult] | None:
        """Results of a step of next tokens alone, where the runner draws all of them; else None."""
        lives = [self._live[item.sequence.id] for item in step.items]
        if not all(live.plain for live in lives):
            return None
        positions = [live.sequence.num_tokens for live in lives]
        later = self._drawer.later([live.params for live in lives], positions)
        if later is not None:
            return self._drawn_ahead(step, later, list(range(len(lives))))
        ids = self._drawer.there([live.params for live in lives], positions)
        return None if ids is None else self._drawn(lives, ids, positions)

    def _drawn_ahead(self, step: Step, drawn: Drawn, rows: list[int]) -> dict[int, StepResult]:
        """Results of a step whose ids are drawn in these rows. Before they are read, the step after it is launched."""
        lives = [self._live[item.sequence.id] for item in step.items]
        if isinstance(self.runner, AheadRunner):
            self.ahead.launch(self.runner, step, drawn, rows, {live.sequence.id: live.params for live in lives})
        ids = drawn.read()
        return self._drawn(lives, [ids[row] for row in rows], [live.sequence.num_tokens for live in lives])

    def _drawn(self, lives: list[_Live], ids: list[int], positions: list[int]) -> dict[int, StepResult]:
        """Results of plain sequences whose next ids are known; -1 fails its own."""
        results: dict[int, StepResult] = {}
        outbox = self._outbox
        for live, token_id, position in zip(lives, ids, positions, strict=True):
            try:
                check_best(token_id, position)
            except HerdError as error:
                results[live.sequence.id] = self._failed(live, error)
                continue
            finish = self._end(live, token_id, 1)
            outbox.append((live.emit, Tokens(live.index, (token_id,), (), finish)))
            results[live.sequence.id] = StepResult([token_id], finish)
        return results

    def _guess(self) -> None:
        """Have guesses made for those that draw their next token in the coming step."""
        if self.guesser is None:
            return
        due: list[Due] = []
        for live in self._live.values():
            sequence, limit = live.sequence, live.params.max_tokens - len(live.sequence.output) - 1
            if sequence.blocks and sequence.num_computed == sequence.num_tokens - 1 and live.pooler is None and limit > 0:
                due.append(Due(sequence=sequence, params=live.params, seen=live.seen, limit=limit))
        guesses = self.guesser.guess(due) if due else {}
        for one in due:
            one.sequence.draft = guesses.get(one.sequence.id, [])

    def _tell_admitted(self, step: Step) -> None:
        for item in step.items:
            live = self._live[item.sequence.id]
            if not live.admitted:
                live.admitted = True
                if live.index == 0:
                    live.emit(Admitted(num_cached=item.sequence.num_cached or 0))

    def _start_masks(self, step: Step) -> dict[int, Future[Mask]]:
        """Have the grammars' masks computed while the model runs, by sequence."""
        if not self._num_grammars:
            return {}
        found = {item.sequence.id: self._live[item.sequence.id].state for item in step.items if item.num_sampled}
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
            end, pooler = first + num_tokens, self._live[sequence.id].pooler
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
        live = self._live[sequence.id]
        if live.pooler is not None:
            return 0
        if live.params.prompt_logprobs is None or item.first_position >= len(sequence.prompt):
            return item.num_sampled
        reported = max(item.first_position, live.params.prompt_logprobs_from - 1)
        return max(item.first_position + item.num_tokens - reported, item.num_sampled)

    def _outcome(self, item: StepItem, rows: Rows, states: NDArray[np.float32] | None, mask: Future[Mask] | None) -> StepResult:
        """Sample after the last known token, and after each draft that was drawn too; report what came."""
        sequence, live = item.sequence, self._live[item.sequence.id]
        if live.pooler is not None:
            return self._pool(live, live.pooler, item, states)
        first_row = item.first_position + item.num_tokens - rows.num_rows
        try:
            if live.params.prompt_logprobs is not None and first_row < len(sequence.prompt):
                self._report_prompt(live, rows.scores, first_row)
            if not item.num_sampled:
                return _NOTHING
            drawn = Rows(rows.chunk, rows.best, rows.end - item.num_sampled, rows.end)
            return self._draw(live, drawn, sequence.num_tokens, None if mask is None else mask.result())
        except Exception as error:
            return self._failed(live, error)

    def _failed(self, live: _Live, error: Exception) -> StepResult:
        """End a request whose draw failed. That is no one else's business: whatever went wrong in it, the others go on."""
        if not isinstance(error, HerdError):
            log.error("a draw failed", exc_info=error)
        self._outbox.append((live.emit, Failed(error=error)))
        self._unsound.append(live.request)
        return StepResult(accepted=[], finish="failed")

    def _pool(self, live: _Live, pooler: Pooler, item: StepItem, states: NDArray[np.float32] | None) -> StepResult:
        """Take in the states of a chunk; at the prompt's end tell the vector and finish without a token."""
        if states is not None:
            pooler.add(item.first_position, states)
        if not item.num_sampled:
            return _NOTHING
        self._outbox.append((live.emit, Embedded(vector=tuple(pooler.vector().tolist()))))
        self._outbox.append((live.emit, Tokens(index=live.index, ids=(), finish="stop")))
        return StepResult(accepted=[], finish="stop")

    def _draw(self, live: _Live, rows: Rows, known: int, mask: Mask | None) -> StepResult:
        sequence, params = live.sequence, live.params
        accepted: list[int] = []
        reported: list[TokenLogprobs] = []
        finish: Finish | None = None
        for number, place in enumerate(range(rows.begin, rows.end)):
            if live.state is not None and number:
                mask = live.state.mask()
            row = rows.chunk[place]
            token_id = sample(row, params, live.seen, position=known + number, mask=mask, best=rows.best[place], draw=self._drawer.one)
            accepted.append(token_id)
            if live.state is not None:
                live.state.accept(token_id)
            if live.seen is not None:
                live.seen.add(token_id)
            if params.logprobs is not None:
                reported.append(logprobs(row, token_id, params.logprobs))
            finish = self._end(live, token_id, len(accepted))
            if finish is not None or number >= len(sequence.draft) or sequence.draft[number] != token_id:
                break
        if self.guesser is not None:
            self.num_guessed += rows.num_rows - 1
            self.num_guesses_accepted += sum(guess == token_id for guess, token_id in zip(sequence.draft, accepted, strict=False))
            self.guesser.learn(sequence.id, rows.num_rows - 1, accepted)
        return self._tell(live, accepted, finish, tuple(reported))

    @staticmethod
    def _end(live: _Live, token_id: int, num_new: int) -> Finish | None:
        """Whether a sequence ends with a token, the last of so many new ones."""
        if token_id in live.params.stop_ids:
            return "stop"
        return "length" if len(live.sequence.output) + num_new >= live.params.max_tokens else None

    def _tell(self, live: _Live, ids: list[int], finish: Finish | None, reported: tuple[TokenLogprobs, ...] = ()) -> StepResult:
        self._outbox.append((live.emit, Tokens(index=live.index, ids=tuple(ids), logprobs=reported, finish=finish)))
        return StepResult(accepted=ids, finish=finish)

    def _report_prompt(self, live: _Live, rows: NDArray[np.float32], first_row: int) -> None:
        """The rows score the tokens after them; of n continuations only the first reports, and after a preemption only what is new."""
        num_top = live.params.prompt_logprobs
        if live.index or num_top is None:
            return
        prompt = live.sequence.prompt
        first = max(first_row, live.params.prompt_logprobs_from - 1, live.num_told)
        last = min(first_row + len(rows), len(prompt) - 1)
        found = tuple(logprobs(rows[place - first_row], prompt[place + 1], num_top) for place in range(first, last))
        if found:
            live.num_told = last
            self._outbox.append((live.emit, PromptLogprobs(first=first + 1, logprobs=found)))

    def _forget_finished(self, results: dict[int, StepResult]) -> None:
        for sequence_id, result in results.items():
            if result.finish is None:
                continue
            live = self._forget(sequence_id)
            if live is not None:
                self._forget_request(live.request)
        while self._unsound:
            self.cancel(self._unsound.pop())

    def close(self) -> None:
        """Let go of the threads for masks and for the disk."""
        if self.disk is not None:
            self.disk.close()
        if self._mask_pool is not None:
            self._mask_pool.close()
