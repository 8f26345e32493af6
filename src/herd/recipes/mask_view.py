"""A look at what counts: one sample of packed rows with the counted tokens marked, and a refusal of answers that never end.

A model that was never shown an end token in its loss never ends its turns, so such data is refused before any training.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import FormatError
from herd.text.tokenizer import Tokenizer

_COUNTED, _OTHER, _END = "\x1b[32m", "\x1b[2m", "\x1b[0m"


def check_answers_end(name: str, columns: Mapping[str, NDArray[Any]], tokenizer: Tokenizer) -> None:
    """Raise FormatError if no answer of a source holds a stop token that the model would have to write."""
    written = columns["answer"] if "answer" in columns else columns["counts"]
    if not written.any():
        raise FormatError(f"no token of source {name!r} counts", hint="check that its records hold assistant messages that fit into a row")
    if not np.isin(columns["tokens"][written], sorted(tokenizer.stop_ids)).any():
        raise FormatError(
            f"no answer of source {name!r} ends with a stop token: a model trained on it would never stop",
            hint="give whole answers, and rows long enough for them (train.sequence_length)",
        )


def mask_sample(columns: Mapping[str, NDArray[Any]], tokenizer: Tokenizer, *, colour: bool, limit: int = 400) -> str:
    """The first document of the first row as text; what counts is green, or between ⟦ and ⟧ without colours. At most `limit` tokens."""
    inside = columns["documents"][0] == 0
    written = columns["answer"] if "answer" in columns else columns["counts"]
    ids, counted = columns["tokens"][0][inside][:limit], written[0][inside][:limit]
    pieces: list[str] = []
    for start, end in _runs(counted):
        text = tokenizer.decode(ids[start:end].tolist())
        if colour:
            pieces.append(f"{_COUNTED if counted[start] else _OTHER}{text}{_END}")
        else:
            pieces.append(f"⟦{text}⟧" if counted[start] else text)
    cut = " ..." if inside.sum() > limit else ""
    return "".join(pieces) + cut


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Begin and end of every run of equal flags."""
    edges = [0, *(np.flatnonzero(flags[1:] != flags[:-1]) + 1).tolist(), len(flags)]
    return [(start, end) for start, end in pairwise(edges) if end > start]


def show_sample(name: str, columns: Mapping[str, NDArray[Any]], tokenizer: Tokenizer) -> None:
    """Write the sample to stderr."""
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    marked = "green" if colour else "between ⟦ and ⟧"
    text = f"{name}: a sample; what is {marked} counts\n{mask_sample(columns, tokenizer, colour=colour)}\n"
    encoding = sys.stderr.encoding or "utf-8"
    sys.stderr.write(text.encode(encoding, "replace").decode(encoding))
    sys.stderr.flush()
