"""Rows read ahead are those that the step would have made itself, and an error of theirs is raised where they are wanted."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from herd.train.batch import AnyBatch
from herd.train.read_ahead import ReadAhead
from herd.train.schedule import Phase

PHASE = Phase(first_step=0, end_step=9, sequence_length=4, batch_size=2, micro_batch_size=2, num_samples=2)
OTHER = Phase(first_step=9, end_step=12, sequence_length=4, batch_size=3, micro_batch_size=3, num_samples=3)


class Maker:
    """Rows that tell their sample; remembers what was asked for, and where."""

    def __init__(self, end: int = 100) -> None:
        self.asked: list[tuple[int, int, bool]] = []
        self.end = end

    def __call__(self, first: int, phase: Phase) -> AnyBatch:
        self.asked.append((first, phase.num_samples, threading.current_thread() is threading.main_thread()))
        if first + phase.num_samples > self.end:
            raise IndexError(f"sample {first}")
        return {"tokens": np.arange(first, first + phase.num_samples)}


def taken(ahead: ReadAhead, first: int, phase: Phase, then: Phase | None) -> list[int]:
    batch = ahead.rows(first, phase, then)
    assert isinstance(batch, dict)
    return batch["tokens"].tolist()


def test_the_step_after_is_made_by_a_thread() -> None:
    make = Maker()
    with ReadAhead(make, device="cuda") as ahead:
        assert [taken(ahead, 0, PHASE, PHASE), taken(ahead, 2, PHASE, OTHER), taken(ahead, 4, OTHER, None)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert make.asked == [(0, 2, True), (2, 2, False), (4, 3, False)], "nothing is made twice, and nothing after the last step"


def test_a_rollback_loses_what_was_read_ahead_and_nothing_else() -> None:
    make = Maker()
    with ReadAhead(make, device="cuda") as ahead:
        assert taken(ahead, 0, PHASE, PHASE) == [0, 1]
        assert taken(ahead, 40, PHASE, PHASE) == [40, 41]
        assert taken(ahead, 42, PHASE, None) == [42, 43]


def test_a_cpu_reads_nothing_ahead() -> None:
    make = Maker()
    with ReadAhead(make, device="cpu") as ahead:
        assert [taken(ahead, 0, PHASE, PHASE), taken(ahead, 2, PHASE, None)] == [[0, 1], [2, 3]]
    assert all(here for _, _, here in make.asked)


def test_the_end_of_the_data_is_an_error_only_where_it_is_reached() -> None:
    with ReadAhead(Maker(end=2), device="cuda") as ahead:
        assert taken(ahead, 0, PHASE, PHASE) == [0, 1]
    with ReadAhead(Maker(end=2), device="cuda") as ahead, pytest.raises(IndexError, match="sample 2"):
        taken(ahead, 0, PHASE, PHASE)
        taken(ahead, 2, PHASE, None)


def test_outside_its_context_nothing_is_read_ahead() -> None:
    make = Maker()
    ahead = ReadAhead(make, device="cuda")
    with ahead:
        assert taken(ahead, 0, PHASE, PHASE) == [0, 1]
    assert taken(ahead, 2, PHASE, PHASE) == [2, 3]
    with ahead:
        assert taken(ahead, 4, PHASE, None) == [4, 5]
    assert [first for first, _, here in make.asked if here] == [0, 2, 4], "what was in flight when the context ended is lost"
