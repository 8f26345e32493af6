"""draw: the next token of each row of scores, in C: temperature, top-k, top-p, min-p and one uniform number by inverse distribution.

A row's draw depends on the row and its own numbers alone. There is no torch reference here: the oracle is `engine.sampler`, which draws in
numpy where C does not run, and in float64 where this sums float32 weights. Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.kernels import dispatch, library
from herd.kernels.draw_numbers import NUMBERS


def available() -> bool:
    """Whether C runs."""
    return dispatch.choice().library is not None


def draw(scores_RV: NDArray[np.float32], numbers_R: NDArray[Any]) -> list[int]:
    """The ids drawn from the rows, by `NUMBERS` of each. Scores are finite, or minus infinity for what is never drawn.

    Rows may be apart, but each lies in one piece. Raises MemoryError where there is none.
    """
    found = dispatch.choice().library
    assert found is not None, "nothing but C runs this"
    rows, vocab = scores_RV.shape
    assert scores_RV.dtype == np.float32 and numbers_R.dtype == NUMBERS and len(numbers_R) == rows
    assert scores_RV.strides[1] == 4 and scores_RV.strides[0] % 4 == 0 and numbers_R.flags.c_contiguous
    ids = np.empty(rows, dtype=np.int64)
    places = [array.__array_interface__["data"][0] for array in (scores_RV, numbers_R, ids)]
    library.raise_for(found.draw(places[0], scores_RV.strides[0] // 4, rows, vocab, *places[1:]))
    return ids.tolist()
