"""Where a training run calls back, for what the trainer does not know: scores that need generation, and batches made by the model itself.

Two seams. A `Callback` is called every so many steps with the model in evaluation mode; what it returns goes into the log under its name. A
`BatchSource` gives the batches: `data.loader.StreamMixture` reads stored rows, and a loop that trains on the model's own answers (rejection
sampling, on-policy distillation) gives an object of its own, whose `batch` may generate with the weights of the moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from herd.model.transformer import Transformer
from herd.train.batch import AnyBatch, Columns, some_rows
from herd.train.objectives.objective import Objective, Sums, mean_loss, mean_metrics


@runtime_checkable
class Callback(Protocol):
    """Called after every `every` steps and after the last one."""

    @property
    def name(self) -> str:
        """What its scores are logged under."""
        ...

    @property
    def every(self) -> int:
        """Steps from one call to the next."""
        ...

    def __call__(self, model: Transformer, step: int) -> Mapping[str, float]:
        """Scores for the log; nothing is logged for an empty one."""
        ...


@runtime_checkable
class BatchSource(Protocol):
    """What a trainer reads: samples by number, so that a resumed run goes on where it was."""

    def batch(self, first: int, size: int) -> AnyBatch:
        """Samples first..first+size-1."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldBack:
    """A callback that measures an objective on rows kept out of training: its loss and its metrics (accuracy, margins)."""

    objective: Objective
    columns: Columns
    every: int
    dtype: torch.dtype = torch.float32
    micro_batch_size: int = 8
    name: str = "heldback"

    def __call__(self, model: Transformer, step: int) -> Mapping[str, float]:
        """The loss over all rows, and the metrics."""
        return measure(model, self.objective, self.columns, dtype=self.dtype, micro_batch_size=self.micro_batch_size)


@torch.no_grad()
def measure(
    model: Transformer, objective: Objective, columns: Columns, *, dtype: torch.dtype = torch.float32, micro_batch_size: int = 8
) -> dict[str, float]:
    """An objective's loss and metrics over rows; `loss` and what the objective names."""
    parts: Sequence[Columns] = [some_rows(columns, start, micro_batch_size) for start in range(0, len(columns["tokens"]), micro_batch_size)]
    shared = objective.prepare(model, parts, dtype)
    found: list[Sums] = [objective.sums(model, part, dtype, shared) for part in parts]
    return {"loss": mean_loss(found, objective.units(columns)), **mean_metrics(found)}
