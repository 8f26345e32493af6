"""Draws tokens by the runner's own kernel where it has one: one row, or all rows of a step at once. A row's draw is the same either way.

A runner on a device may draw there (`there`): then scores stay where they are. Without such a kernel, and for typical sampling, which none
knows, `sampler` draws in numpy. No torch. Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from herd.engine.batch import RaggedBatch
from herd.engine.params import TokenParams
from herd.engine.sampler import Scores, draw_in_numpy, uniform
from herd.kernels.draw_numbers import NUMBERS


@runtime_checkable
class RowDrawer(Protocol):
    """A runner with a kernel that draws. `draws_rows` tells whether it runs here."""

    draws_rows: bool

    def draw_rows(self, scores_RV: NDArray[np.float32], numbers_R: NDArray[Any]) -> list[int]:
        """See `kernels.draw.draw`."""
        ...


class RowNumbers(NamedTuple):
    """Of each row of a step: its temperature (0 takes the likeliest), its top-k (0 is none), top-p and min-p, and its number in [0, 1)."""

    temperatures: list[float]
    top_k: list[int]
    top_p: list[float]
    min_p: list[float]
    uniforms: list[float]


@runtime_checkable
class ThereDrawer(Protocol):
    """A runner that draws where its scores lie, so that they need not come to the host."""

    def draw_there(self, numbers: RowNumbers) -> list[int]:
        """The ids of all rows of the batch that was run last; -1 where scores are no finite numbers."""
        ...


@runtime_checkable
class Drawn(Protocol):
    """Ids that were drawn where the scores lie, or will be."""

    def read(self) -> list[int]:
        """They, waited for; -1 where scores are no finite numbers."""
        ...


@runtime_checkable
class AheadRunner(Protocol):
    """A runner that takes the ids of one step into the next without the host's having read them. `runs_ahead` tells whether it shall."""

    runs_ahead: bool

    def draw_later(self, numbers: RowNumbers) -> Drawn:
        """As `ThereDrawer.draw_there`, to be read when they are needed."""
        ...

    def run_ahead(self, batch: RaggedBatch, drawn: Drawn, rows: list[int]) -> None:
        """As `Runner.run`, of next tokens alone: the ids drawn of these rows, whatever the batch's tokens say."""
        ...


def _drawn_there(params: TokenParams) -> bool:
    return params.temperature == 0.0 or params.typical_p == 1.0


class Drawer:
    """Draws for one runner. What it needs of the rows' parameters is kept while the rows are the same sequences'."""

    def __init__(self, runner: object) -> None:
        self._kernel = runner.draw_rows if isinstance(runner, RowDrawer) and runner.draws_rows else None
        self._there = runner if isinstance(runner, ThereDrawer) else None
        self._ahead = runner if isinstance(runner, AheadRunner) else None
        self._params: list[TokenParams] = []
        self._numbers = _numbers([])
        self._drawn: list[int] = []

    def draws_rows(self, params: TokenParams) -> bool:
        """Whether `rows` knows these parameters."""
        return params.temperature == 0.0 or (params.typical_p == 1.0 and self._kernel is not None)

    def there(self, params: list[TokenParams], positions: list[int]) -> list[int] | None:
        """The next ids of all rows of the batch that was run last, for `positions`; None where they are to be drawn here."""
        if self._there is None or not all(map(_drawn_there, params)):
            return None
        return self._there.draw_there(row_numbers(params, positions))

    def later(self, params: list[TokenParams], positions: list[int]) -> Drawn | None:
        """As `there`, to be read later, where the runner takes ids into the next step by itself."""
        if self._ahead is None or not self._ahead.runs_ahead or not all(map(_drawn_there, params)):
            return None
        return self._ahead.draw_later(row_numbers(params, positions))

    def one(self, scores_V: Scores, params: TokenParams, number: float) -> int:
        """The id at a number in [0, 1) of a row's distribution; a `sampler.Draw`."""
        if self._kernel is None or params.typical_p < 1.0:
            return draw_in_numpy(scores_V, params, number)
        numbers = _numbers([params])
        numbers["uniform"] = number
        return self._kernel(scores_V[None], numbers)[0]

    def rows(self, scores_RV: Scores, best_R: list[int], params: list[TokenParams], positions: list[int]) -> list[int]:
        """The next ids, which will stand at `positions`: the best where the temperature is 0, and where there is none (-1)."""
        if len(params) != len(self._params) or any(one is not other for one, other in zip(params, self._params, strict=True)):
            self._params = params
            self._drawn = [row for row, one in enumerate(params) if one.temperature > 0.0]
            self._numbers = _numbers([params[row] for row in self._drawn])
        drawn, kernel = self._drawn, self._kernel
        if not drawn:
            return best_R
        assert kernel is not None, "asked to draw rows without a kernel for it"
        ids = list(best_R)
        if min(best_R) < 0:  # a row is noise: the others one by one
            for row in drawn:
                if best_R[row] >= 0:
                    ids[row] = self.one(scores_RV[row], params[row], uniform(params[row].seed, positions[row]))
            return ids
        self._numbers["uniform"] = [uniform(params[row].seed, positions[row]) for row in drawn]
        if len(drawn) == len(params):
            return kernel(scores_RV, self._numbers)
        for row, token_id in zip(drawn, kernel(scores_RV[drawn], self._numbers), strict=True):
            ids[row] = token_id
        return ids


def row_numbers(params: Sequence[TokenParams], positions: Sequence[int]) -> RowNumbers:
    """What a device is told of rows whose tokens will stand at `positions`."""
    return RowNumbers(
        temperatures=[one.temperature for one in params],
        top_k=[one.top_k for one in params],
        top_p=[one.top_p for one in params],
        min_p=[one.min_p for one in params],
        uniforms=[uniform(one.seed, at) if one.temperature else 0.0 for one, at in zip(params, positions, strict=True)],
    )


def _numbers(params: Sequence[TokenParams]) -> NDArray[Any]:
    rows = [(one.temperature, one.top_p, one.min_p, 0.0, one.top_k) for one in params]
    return np.array(rows, dtype=NUMBERS)
