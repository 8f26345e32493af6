"""The seam between a training step and what it minimises.

The law that every objective obeys: the loss is a sum over units (valid tokens, pairs, examples) divided by their number in the whole global
batch. So an objective gives sums and says beforehand, from the data alone, how many units there are; the step divides. Nothing depends on
how the batch is cut into micro batches. What has to be known of the whole batch before its parts (KTO's reference point) is computed by
`prepare`, without gradients. An objective is pure: it holds settings, no state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from herd.model.transformer import Transformer
from herd.train.batch import Columns

Shared = Mapping[str, float]
"""Values of the whole batch, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """What an objective found in some rows.

    Attributes:
        terms: differentiable sums by unit; the loss adds them up, each divided by its unit's count over the whole batch.
        metrics: by name, a sum and the number that it is the sum of, for the log.
    """

    terms: Mapping[str, Tensor]
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])


@runtime_checkable
class Objective(Protocol):
    """What `train_step` runs."""

    def units(self, columns: Columns) -> dict[str, int]:
        """How many units a batch holds, by name of the unit; the first is what the log counts."""
        ...

    def prepare(self, model: Transformer, parts: Sequence[Columns], dtype: torch.dtype) -> Shared:
        """What the parts of a batch have to know of the whole; called once a step, without gradients."""
        ...

    def sums(self, model: Transformer, columns: Columns, dtype: torch.dtype, shared: Shared) -> Sums:
        """The sums of some rows, computed in `dtype` by autocast."""
        ...


def mean_loss(sums: Sequence[Sums], units: Mapping[str, int]) -> float:
    """The loss of a batch from the sums of its parts."""
    return sum(sum(float(part.terms[name].detach()) for part in sums) / max(1, count) for name, count in units.items())


def mean_metrics(sums: Sequence[Sums]) -> dict[str, float]:
    """Metrics of a batch from those of its parts; one that nothing was counted for is left out."""
    totals: dict[str, tuple[float, float]] = {}
    for part in sums:
        for name, (value, count) in part.metrics.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + value, before[1] + count)
    return {name: value / count for name, (value, count) in totals.items() if count}
