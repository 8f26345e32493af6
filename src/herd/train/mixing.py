"""Which row comes next when the mix changes on the way: a pure function of (seed, sample number), like `data.mixture`.

Sample n draws its source by the weights in force at n; the k-th sample of a source is row perm_epoch(k // R)[k % R], so a change of
weights neither repeats nor skips a row of any source. Without changes the order is that of `data.mixture.Mixture`.
Knows rows and weights; nothing of steps. Rows of the stage's length are cut into equal parts for a shorter phase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import ConfigError
from herd.data.rows import Rows
from herd.train.batch import AnyBatch, Batch, as_columns
from herd.train.config import StageConfig
from herd.train.schedule import step_plan


class ScheduledMixture:
    """Rows of several sources in a seeded order, by weights that change at given samples."""

    def __init__(
        self, sources: Mapping[str, Rows], schedule: Sequence[tuple[int, Mapping[str, float]]], *, seed: int, num_samples: int
    ) -> None:
        """`schedule` gives the weights from each sample number on, the first from 0.

        Raises ConfigError when a source is empty or no weight is positive.
        """
        self.names = [name for name in sources if any(weights[name] > 0 for _, weights in schedule)]
        for first, weights in schedule:
            if not any(weights[name] > 0 for name in self.names):
                raise ConfigError(
                    f"no data source has a positive weight from sample {first} on", hint="set the weight of at least one source above 0"
                )
        for name in self.names:
            if len(sources[name]) == 0:
                raise ConfigError(f"data source {name!r} is empty", hint="check its path, its language filter and the data folder")
        self.rows = [sources[name] for name in self.names]
        self.seed = seed
        draws = np.random.default_rng([seed, 0]).random(num_samples)
        self._source = np.zeros(num_samples, dtype=np.int16)
        ends = [first for first, _ in schedule[1:]] + [num_samples]
        for (first, weights), end in zip(schedule, ends, strict=True):
            share = np.array([weights[name] for name in self.names], dtype=np.float64)
            places = np.searchsorted(np.cumsum(share / share.sum()), draws[first:end], side="right")
            self._source[first:end] = places.clip(max=int(np.flatnonzero(share)[-1]))
        self._turn = np.zeros(num_samples, dtype=np.int64)
        for number in range(len(self.names)):
            mine = self._source == number
            self._turn[mine] = np.arange(int(mine.sum()))
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self._source)

    def _row(self, source: int, turn: int) -> int:
        epoch, place = divmod(turn, len(self.rows[source]))
        key = (source, epoch)
        if key not in self._orders:
            self._orders[key] = np.random.default_rng([self.seed, 1, source, epoch]).permutation(len(self.rows[source]))
        return int(self._orders[key][place])

    def source_numbers(self, first: int, size: int) -> NDArray[np.int16]:
        """The number (in `names`) of the source of each of samples first..first+size-1."""
        return self._source[first : first + size]

    def places(self, first: int, size: int) -> list[tuple[int, int]]:
        """For samples first..first+size-1, the number of the source in `names` and the row in it."""
        picks = [(int(self._source[n]), int(self._turn[n])) for n in range(first, first + size)]
        return [(source, self._row(source, turn)) for source, turn in picks]

    def batch(self, first: int, size: int) -> Batch:
        """Samples first..first+size-1: tokens, document numbers and loss mask, each [size, T+1]."""
        places = self.places(first, size)
        return (
            np.stack([self.rows[source].tokens[row] for source, row in places]),
            np.stack([self.rows[source].documents[row] for source, row in places]),
            np.stack([self.rows[source].counts[row] for source, row in places]),
        )

    def epochs(self, num_samples: int) -> dict[str, float]:
        """How often each source has been read after `num_samples` samples."""
        counts = np.bincount(self._source[:num_samples], minlength=len(self.names))
        return {name: float(counts[number]) / len(self.rows[number]) for number, name in enumerate(self.names)}


def mix_schedule(stage: StageConfig) -> list[tuple[int, dict[str, float]]]:
    """The weights of a stage's sources from each sample number on. A change falls on the first row at or past its tokens."""
    weights = {source.name: source.weight for source in stage.sources}
    schedule = [(0, weights)]
    for change in stage.mix_changes:
        weights = weights | {weight.name: weight.weight for weight in change.weights}
        first = -(-change.from_tokens // stage.sequence_length)
        if first == schedule[-1][0]:
            schedule.pop()
        schedule.append((first, weights))
    return schedule


def stage_mixture(rows: Mapping[str, Rows], stage: StageConfig, *, seed: int) -> ScheduledMixture:
    """The order in which a stage reads its rows, with as many more samples as its rollbacks may pass over."""
    plan = step_plan(stage)
    num_samples = plan.samples_before(stage.num_steps)
    most = max(phase.num_samples for phase in plan.phases)
    spare = (
        stage.guard.max_rollbacks * (stage.save_every + 1) * most if "rollback" in (stage.guard.on_nonfinite, stage.guard.on_spike) else 0
    )
    used = {source.name: rows[source.name] for source in stage.used_sources}
    schedule = [(first, weights) for first, weights in mix_schedule(stage) if first < num_samples + spare]
    return ScheduledMixture(used, schedule, seed=seed, num_samples=num_samples + spare)


def cut_rows(batch: AnyBatch, length: int) -> AnyBatch:
    """Rows of T + 1 cut into T / length rows of `length` + 1 each, in order; neighbours share the token that one predicts last."""
    columns = as_columns(batch)
    parts = (columns["tokens"].shape[1] - 1) // length
    if parts <= 1:
        return batch
    return {name: _cut(column, parts, length) for name, column in columns.items()}


def _cut(column: NDArray[Any], parts: int, length: int) -> NDArray[Any]:
    if column.ndim == 1:
        return np.repeat(column, parts)
    windows = [column[:, start : start + length + 1] for start in range(0, parts * length, length)]
    return np.stack(windows, axis=1).reshape(-1, length + 1)
