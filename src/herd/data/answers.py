"""Rows of prompts with their answers: what preference and reward training read. A prompt and its answers always share a row.

The columns beside `tokens`, `documents` and `counts`: `branches` (0 on prompts, 1, 2, ... on answers), `grades` (the answer's grade on each
of its tokens) and `answer` (what the model would have to write, its end token included; `counts` leaves the end token out). A prompt
with answers that do not fit into one row is left out and counted: half an answer has no grade.
Knows token ids only. Shapes: R rows, T sequence length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.data.rows import best_fit


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer's token ids, its header first; which of them count, which the model would write, and its grade (higher is better)."""

    ids: Sequence[int]
    counts: Sequence[bool]
    answer: Sequence[bool]
    grade: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A prompt and its answers."""

    prompt: Sequence[int]
    answers: tuple[Answer, ...]

    @property
    def length(self) -> int:
        """Tokens of all."""
        return len(self.prompt) + sum(len(answer.ids) for answer in self.answers)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerRows:
    """Packed rows as named columns, each [R, T+1], and how many prompts were read and left out."""

    columns: dict[str, NDArray[Any]]
    num_prompts: int
    num_dropped: int

    def __len__(self) -> int:
        return len(self.columns["tokens"])


_KINDS: tuple[tuple[str, Any, int], ...] = (
    ("tokens", np.int32, 0),
    ("documents", np.int16, -1),
    ("counts", np.bool_, 0),
    ("branches", np.int16, 0),
    ("grades", np.int8, 0),
    ("answer", np.bool_, 0),
)


def pack_answers(judged: Iterable[Judged], sequence_length: int, *, pad_id: int) -> AnswerRows:
    """Pack prompts with their answers into rows of `sequence_length` + 1 tokens, by best fit."""
    capacity = sequence_length + 1
    found = list(judged)
    kept = [item for item in found if item.length <= capacity]
    bins = best_fit([item.length for item in kept], capacity)
    columns = {name: np.full((len(bins), capacity), pad_id if name == "tokens" else fill, dtype=kind) for name, kind, fill in _KINDS}
    for row, items in enumerate(bins):
        start = 0
        for number, item in enumerate(items):
            _write(columns, row, start, number, kept[item])
            start += kept[item].length
    return AnswerRows(columns=columns, num_prompts=len(found), num_dropped=len(found) - len(kept))


def _write(columns: dict[str, NDArray[Any]], row: int, start: int, number: int, item: Judged) -> None:
    end = start + len(item.prompt)
    columns["tokens"][row, start:end] = item.prompt
    columns["documents"][row, start : start + item.length] = number
    for branch, answer in enumerate(item.answers, start=1):
        start, end = end, end + len(answer.ids)
        columns["tokens"][row, start:end] = answer.ids
        columns["branches"][row, start:end] = branch
        columns["grades"][row, start:end] = answer.grade
        columns["counts"][row, start:end] = answer.counts
        columns["answer"][row, start:end] = answer.answer
