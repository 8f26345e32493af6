"""Next-token loss that also tells each source's own loss, for the log: one source that goes wrong is hidden in the mean.

The batch has the column `sources` [B], the number of each row's source in `names`. Unit: tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from herd.model.transformer import Transformer
from herd.train.batch import AnyBatch, Columns, as_columns, to_tensors
from herd.train.loss import IGNORE, cross_entropy_sum
from herd.train.objectives.forward import hidden_states
from herd.train.objectives.next_token import NextToken
from herd.train.objectives.objective import Objective, Shared, Sums


@runtime_checkable
class KnowsSources(Protocol):
    """A source of batches that can tell which source each row is of."""

    names: list[str]

    def source_numbers(self, first: int, size: int) -> NDArray[np.int16]:
        """The number, in `names`, of the source of each of samples first..first+size-1."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class NextTokenBySource(NextToken):
    """`loss/NAME` in the metrics is the mean over the counted tokens of that source's rows."""

    names: tuple[str, ...]

    def sums(self, model: Transformer, columns: Columns, dtype: torch.dtype, shared: Shared) -> Sums:
        """The sum of the tokens' losses, in nats, and each source's."""
        tensors = to_tensors(columns, model.device)
        targets_BT = torch.where(tensors["counts"][:, 1:], tensors["tokens"][:, 1:], IGNORE)
        hidden = hidden_states(model, tensors, dtype)
        losses_N = torch.zeros(targets_BT.numel(), dtype=torch.float32, device=model.device)
        total = cross_entropy_sum(hidden.flatten(0, 1), model.head_weight, targets_BT.flatten(), z_loss=self.z_loss, out_N=losses_N)
        by_row = torch.stack((losses_N.view(targets_BT.shape).sum(1), (targets_BT != IGNORE).sum(1).float())).tolist()
        return Sums(terms={"tokens": total}, metrics=self._metrics(columns["sources"].tolist(), *by_row))

    def _metrics(self, sources: list[int], losses: list[float], counts: list[float]) -> Mapping[str, tuple[float, float]]:
        found: dict[str, tuple[float, float]] = {}
        for source, loss, count in zip(sources, losses, counts, strict=True):
            before = found.get(f"loss/{self.names[source]}", (0.0, 0.0))
            found[f"loss/{self.names[source]}"] = (before[0] + loss, before[1] + count)
        return found


def next_token_for(mixture: object, *, z_loss: float) -> Objective:
    """The next-token objective for a source of batches: by source where it knows more than one."""
    if isinstance(mixture, KnowsSources) and len(mixture.names) > 1:
        return NextTokenBySource(z_loss=z_loss, names=tuple(mixture.names))
    return NextToken(z_loss=z_loss)


def with_sources(mixture: object, batch: AnyBatch, *, first: int) -> AnyBatch:
    """The batch with the column `sources`, where its mixture knows them."""
    if not isinstance(mixture, KnowsSources):
        return batch
    columns = as_columns(batch)
    return {**columns, "sources": mixture.source_numbers(first, len(columns["tokens"]))}
