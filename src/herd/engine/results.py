"""From a step's rows of scores to its results: what is drawn of each row, what is told of it, and what the scheduler books. No torch.

Events wait in an outbox until the step is booked: who is told that a request ended finds its blocks free.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import HerdError
from herd.base.log import get_logger
from herd.engine.draw import Drawer
from herd.engine.live import Live
from herd.engine.pooling import Pooler
from herd.engine.rows import Rows, ScoreReader
from herd.engine.sampler import TokenLogprobs, check_best, logprobs, sample
from herd.engine.speculation import Guesser
from herd.engine.step import StepItem, StepResult
from herd.engine.stream import Embedded, Emit, Failed, Finish, PromptLogprobs, TokenEvent, Tokens

if TYPE_CHECKING:
    from herd.engine.grammar.state import Mask

_NOTHING = StepResult(accepted=[])
"""Of an item in the middle of a prompt."""

log = get_logger(__name__)


class Results:
    """Makes them, step after step.

    Attributes:
        unsound: the requests of draws that failed, to be cancelled when the step is booked.
        num_guessed, num_guesses_accepted: tokens, since the start.
    """

    def __init__(self, lives: Mapping[int, Live], drawer: Drawer, guesser: Guesser | None) -> None:
        self._lives, self._drawer, self._guesser = lives, drawer, guesser
        self._outbox: list[tuple[Emit, TokenEvent]] = []
        self.unsound: list[int] = []
        self.num_guessed = self.num_guesses_accepted = 0

    def send(self) -> None:
        """Tell what waits."""
        sent, self._outbox = self._outbox, []
        for emit, event in sent:
            emit(event)

    def discard(self) -> None:
        """Forget what waits, of a step that was broken off."""
        self._outbox.clear()

    def of_next_tokens(self, items: list[StepItem], scores: ScoreReader, masks: Mapping[int, Future[Mask]]) -> dict[int, StepResult]:
        """Of items that want the next token. Those of plain sequences, the common ones, are drawn together, in as few moves as go."""
        if not items:
            return {}
        rows = scores.take(len(items))
        results: dict[int, StepResult] = {}
        plain: list[tuple[int, Live]] = []
        for number, item in enumerate(items, start=rows.begin):
            live = self._lives[item.sequence.id]
            if live.plain:
                plain.append((number, live))
            else:
                own = Rows(rows.chunk, rows.best, number, number + 1)
                results[item.sequence.id] = self.of_item(item, own, None, masks.get(item.sequence.id))
        if not plain:
            return results
        places = [number for number, _ in plain]
        chosen = rows.scores if len(plain) == len(items) else rows.chunk[places]
        lives = [live for _, live in plain]
        positions = [live.sequence.num_tokens for live in lives]
        ids = self._drawer.rows(chosen, [rows.best[place] for place in places], [live.params for live in lives], positions)
        return results | self.of_drawn(lives, ids, positions)

    def of_drawn(self, lives: list[Live], ids: list[int], positions: list[int]) -> dict[int, StepResult]:
        """Of plain sequences whose next ids are known; -1 fails its own."""
        results: dict[int, StepResult] = {}
        outbox = self._outbox
        for live, token_id, position in zip(lives, ids, positions, strict=True):
            try:
                check_best(token_id, position)
            except HerdError as error:
                results[live.sequence.id] = self._failed(live, error)
                continue
            finish = _end(live, token_id, 1)
            outbox.append((live.emit, Tokens(live.index, (token_id,), (), finish)))
            results[live.sequence.id] = StepResult([token_id], finish)
        return results

    def of_item(self, item: StepItem, rows: Rows, states: NDArray[np.float32] | None, mask: Future[Mask] | None) -> StepResult:
        """Sample after the last known token, and after each draft that was drawn too; report what came."""
        sequence, live = item.sequence, self._lives[item.sequence.id]
        if live.pooler is not None:
            return self._pooled(live, live.pooler, item, states)
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

    def _failed(self, live: Live, error: Exception) -> StepResult:
        """End a request whose draw failed. That is no one else's business: whatever went wrong in it, the others go on."""
        if not isinstance(error, HerdError):
            log.error("a draw failed", exc_info=error)
        self._outbox.append((live.emit, Failed(error=error)))
        self.unsound.append(live.request)
        return StepResult(accepted=[], finish="failed")

    def _pooled(self, live: Live, pooler: Pooler, item: StepItem, states: NDArray[np.float32] | None) -> StepResult:
        """Take in the states of a chunk; at the prompt's end tell the vector and finish without a token."""
        if states is not None:
            pooler.add(item.first_position, states)
        if not item.num_sampled:
            return _NOTHING
        self._outbox.append((live.emit, Embedded(vector=tuple(pooler.vector().tolist()))))
        self._outbox.append((live.emit, Tokens(index=live.index, ids=(), finish="stop")))
        return StepResult(accepted=[], finish="stop")

    def _draw(self, live: Live, rows: Rows, known: int, mask: Mask | None) -> StepResult:
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
            finish = _end(live, token_id, len(accepted))
            if finish is not None or number >= len(sequence.draft) or sequence.draft[number] != token_id:
                break
        if self._guesser is not None:
            self.num_guessed += rows.num_rows - 1
            self.num_guesses_accepted += sum(guess == token_id for guess, token_id in zip(sequence.draft, accepted, strict=False))
            self._guesser.learn(sequence.id, rows.num_rows - 1, accepted)
        self._outbox.append((live.emit, Tokens(index=live.index, ids=tuple(accepted), logprobs=tuple(reported), finish=finish)))
        return StepResult(accepted=accepted, finish=finish)

    def _report_prompt(self, live: Live, rows: NDArray[np.float32], first_row: int) -> None:
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


def _end(live: Live, token_id: int, num_new: int) -> Finish | None:
    """Whether a sequence ends with a token, the last of so many new ones."""
    if token_id in live.params.stop_ids:
        return "stop"
    return "length" if len(live.sequence.output) + num_new >= live.params.max_tokens else None
