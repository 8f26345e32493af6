"""The next step launched before the last one's ids are read, where a runner draws on its device and takes ids into the next step itself.

    step n is launched, and its draw;  step n + 1 of those who go on is launched over the ids that lie there, and its draw;
    the ids of n are read, told and booked;  the scheduler makes step n + 1;  what it asks for is under way already

The scheduler decides as ever: what was launched is taken for a step whose every item is in it, and else is forgotten. It wrote a position
that its sequence would write next, in a block of its own, with the token that it drew: true if the sequence goes on, and never read if not,
since a block is found by others only when it is full of known tokens, and whoever gets it anew writes before it reads. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from herd.engine.batch import RaggedBatch
from herd.engine.draw import AheadRunner, Drawn, row_numbers
from herd.engine.params import TokenParams
from herd.engine.scheduler import Scheduler
from herd.engine.step import Step, StepItem
from herd.engine.tables import BlockTables

_Place = tuple[int, int, int, int]
"""A sequence, its position, its number of blocks and the last of them."""


def _place(item: StepItem) -> _Place:
    sequence = item.sequence
    return sequence.id, item.first_position, len(sequence.blocks), sequence.blocks[-1]


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step under way: its rows by place, and what is drawn of them."""

    rows: dict[_Place, int]
    drawn: Drawn


class Ahead:
    """Keeps what was launched for the step after the one in work.

    Attributes:
        num_taken, num_lost: steps that were launched ahead and were what came next, or were not.
    """

    def __init__(self, scheduler: Scheduler, tables: BlockTables) -> None:
        self._scheduler, self._tables = scheduler, tables
        self._launched: _Launched | None = None
        self.num_taken = self.num_lost = 0

    def take(self, step: Step) -> tuple[Drawn, list[int]] | None:
        """What is drawn of a step, and its items' rows there, if it is under way; what is under way is forgotten otherwise."""
        launched, self._launched = self._launched, None
        if launched is None:
            return None
        rows = [launched.rows.get(_place(item), -1) for item in step.items]
        if step.num_next != len(step.items) or step.copies or min(rows) < 0:
            self.num_lost += 1
            return None
        self.num_taken += 1
        return launched.drawn, rows

    def launch(self, runner: AheadRunner, step: Step, drawn: Drawn, rows: list[int], params: Mapping[int, TokenParams]) -> None:
        """Launch the step after this one, whose items' ids are drawn in these rows."""
        going = self._scheduler.look_ahead()
        if not going:
            return
        row_of = {item.sequence.id: row for item, row in zip(step.items, rows, strict=True)}
        count = len(going)
        every = np.arange(count + 1)
        batch = RaggedBatch(
            tokens_T=np.zeros(count, dtype=np.int32),
            first_S=np.array([item.first_position for item in going], dtype=np.int32),
            starts=every.astype(np.int32),
            block_table_SW=self._tables.of([item.sequence.blocks for item in going], moved=False),
            rows_R=every[:-1],
        )
        runner.run_ahead(batch, drawn, [row_of[item.sequence.id] for item in going])
        positions = [item.sequence.num_tokens + 1 for item in going]
        numbers = row_numbers([params[item.sequence.id] for item in going], positions)
        self._launched = _Launched({_place(item): row for row, item in enumerate(going)}, runner.draw_later(numbers))

    def forget(self) -> None:
        """Forget what is under way."""
        self._launched = None
