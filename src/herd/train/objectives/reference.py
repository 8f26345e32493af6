"""Log-probabilities that a model gives to every token of rows, as a column: the reference of a preference loss, computed once and stored.

So training holds one model, not two, and the reference costs one forward pass over the data, whatever the number of epochs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from herd.model.transformer import Transformer
from herd.train.batch import Columns, some_rows
from herd.train.objectives.branches import answer_tokens, find_answers


@torch.no_grad()
def reference_logprobs(
    model: Transformer,
    columns: Columns,
    *,
    dtype: torch.dtype = torch.float32,
    micro_batch_size: int = 8,
    advance: Callable[[int, str], None] | None = None,
) -> NDArray[np.float32]:
    """The column `reference` [B, T+1]: log p of each token of an answer, 0 elsewhere. `advance` is told the rows done."""
    model.eval()
    found = np.zeros(columns["tokens"].shape, dtype=np.float32)
    for start in range(0, len(found), micro_batch_size):
        part = some_rows(columns, start, micro_batch_size)
        answers = find_answers(part)
        tokens, _ = answer_tokens(model, part, answers, dtype)
        inside = (answers.ids[:, 1:] >= 0) & (answers.ids[:, 1:] == answers.ids[:, :-1])
        found[start : start + micro_batch_size, 1:][inside] = tokens.logprobs.cpu().numpy()
        if advance is not None:
            advance(min(len(found), start + micro_batch_size), "")
    return found
