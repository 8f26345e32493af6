"""A batch of packed rows as named columns: what an objective reads.

Every batch has `tokens`, `documents` and `counts`, each [B, T+1]; the tuple of these three is its short form. Objectives name the further
columns that they need, all with B rows. A column is aligned with the token it says something about: `counts[t]` is whether token t counts
as a target. Knows arrays, nothing of losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Batch = tuple[NDArray[np.int32], NDArray[np.int16], NDArray[np.bool_]]
Columns = Mapping[str, NDArray[Any]]
AnyBatch = Batch | Columns
Either = TypeVar("Either", Batch, Columns)


def as_columns(batch: AnyBatch) -> Columns:
    """The columns of a batch, by name."""
    if isinstance(batch, tuple):
        tokens, documents, counts = batch
        return {"tokens": tokens, "documents": documents, "counts": counts}
    return batch


def some_rows(batch: Either, first: int, size: int) -> Either:
    """Rows first..first+size-1 of a batch, in the form that it has."""
    if isinstance(batch, tuple):
        tokens, documents, counts = batch
        return tokens[first : first + size], documents[first : first + size], counts[first : first + size]
    return {name: column[first : first + size] for name, column in cast("Columns", batch).items()}


def to_tensors(columns: Columns, device: torch.device) -> dict[str, Tensor]:
    """The columns as tensors on a device; tokens are int64, as embeddings and targets want them."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(column)).to(device) for name, column in columns.items()}
    tensors["tokens"] = tensors["tokens"].long()
    return tensors
