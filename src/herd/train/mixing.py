"""The order in which a stage reads its rows, and rows cut for a shorter phase.

The order is `data.loader.StreamMixture`'s, a pure function of (seed, sample number): shares are exact, and a change of weights on the way
neither repeats nor skips a row of any source. What is added here is what the trainer asks for: which source a row is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import ConfigError
from herd.data.loader import RowSource, StreamMixture
from herd.data.schedule import MixPhase
from herd.train.batch import AnyBatch, as_columns
from herd.train.config import StageConfig


class StageMixture(StreamMixture):
    """Samples of a stage's sources, which it can tell apart."""

    def source_numbers(self, first: int, size: int) -> NDArray[np.int16]:
        """The number, in `names`, of the source of each of samples first..first+size-1."""
        return self.rows_of(first, size)[0].astype(np.int16)


def mix_schedule(stage: StageConfig) -> list[MixPhase]:
    """The weights of a stage's sources from each sample on. A change falls on the first row at or past its tokens."""
    weights = {source.name: source.weight for source in stage.used_sources}
    phases = [MixPhase(from_sample=0, weights=weights)]
    for change in stage.mix_changes:
        weights = weights | {weight.name: weight.weight for weight in change.weights if weight.name in weights}
        first = -(-change.from_tokens // stage.sequence_length)
        if first == phases[-1].from_sample:
            phases.pop()
        phases.append(MixPhase(from_sample=first, weights=weights))
    return phases


def stage_mixture(rows: Mapping[str, RowSource], stage: StageConfig, *, seed: int) -> StageMixture:
    """The order of a stage's rows. Raises ConfigError for a source that is empty, or a mix in which nothing has weight."""
    if not stage.used_sources:
        raise ConfigError("no data source has a positive weight", hint="set the weight of at least one source above 0")
    used = {source.name: rows[source.name] for source in stage.used_sources}
    limits = {source.name: source.max_epochs for source in stage.used_sources}
    return StageMixture(used, mix_schedule(stage), seed=seed, max_epochs=limits)


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
