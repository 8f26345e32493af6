"""Draws tokens in C where it runs: one row, or all rows of a step at once. A row's draw is the same either way.

Where C does not run, or for typical sampling, which it does not know, `sampler` draws in numpy. Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.engine.params import TokenParams
from herd.engine.sampler import Draw, Scores, draw_in_numpy, uniform
from herd.kernels import draw as kernel


def best_draw() -> Draw:
    """What draws a row here."""
    return _draw_in_c if kernel.available() else draw_in_numpy


def draws_rows(params: TokenParams) -> bool:
    """Whether `RowDraws` knows these parameters."""
    return params.temperature == 0.0 or (params.typical_p == 1.0 and kernel.available())


def _draw_in_c(scores_V: Scores, params: TokenParams, number: float) -> int:
    if params.typical_p < 1.0:
        return draw_in_numpy(scores_V, params, number)
    numbers = _numbers([params])
    numbers["uniform"] = number
    return kernel.draw(scores_V[None], numbers)[0]


def _numbers(params: Sequence[TokenParams]) -> NDArray[Any]:
    rows = [(one.temperature, one.top_p, one.min_p, 0.0, one.top_k) for one in params]
    return np.array(rows, dtype=kernel.NUMBERS)


class RowDraws:
    """Draws the rows of one step after another; what it needs of their parameters is kept while the rows are the same sequences'."""

    def __init__(self) -> None:
        self._params: list[TokenParams] = []
        self._numbers = _numbers([])
        self._drawn: list[int] = []

    def draw(self, scores_RV: Scores, best_R: list[int], params: list[TokenParams], positions: list[int]) -> list[int]:
        """The next ids, which will stand at `positions`: the best where the temperature is 0, and where there is none (-1)."""
        if len(params) != len(self._params) or any(one is not other for one, other in zip(params, self._params, strict=True)):
            self._params = params
            self._drawn = [row for row, one in enumerate(params) if one.temperature > 0.0]
            self._numbers = _numbers([params[row] for row in self._drawn])
        drawn = self._drawn
        if not drawn or min(best_R) < 0:
            rows = [row for row in drawn if best_R[row] >= 0]
            if not rows:
                return best_R
            return self._some(scores_RV, best_R, params, positions, rows)
        self._numbers["uniform"] = [uniform(params[row].seed, positions[row]) for row in drawn]
        if len(drawn) == len(params):
            return kernel.draw(scores_RV, self._numbers)
        ids = list(best_R)
        for row, token_id in zip(drawn, kernel.draw(scores_RV[drawn], self._numbers), strict=True):
            ids[row] = token_id
        return ids

    def _some(self, scores_RV: Scores, best_R: list[int], params: list[TokenParams], positions: list[int], rows: list[int]) -> list[int]:
        """Where a row is noise, the others one by one."""
        ids = list(best_R)
        for row in rows:
            ids[row] = _draw_in_c(scores_RV[row], params[row], uniform(params[row].seed, positions[row]))
        return ids
