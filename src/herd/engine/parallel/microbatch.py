"""A step cut into pieces, so that one stage works on a piece while the next works on the piece before. No torch.

A row's result does not depend on what is computed beside it (kernels' law), so that pieces may be cut anywhere, in the middle of a prompt
too: they pass through every stage in order, and a token's keys are written before later ones are computed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from herd.engine.batch import RaggedBatch
from herd.engine.parallel.layout import span

MIN_TOKENS = 64
"""Tokens of a piece at least. Every piece reads the weights anew, which for a few tokens costs more than stages that wait."""


def num_pieces(num_tokens: int, stages: int) -> int:
    """How many pieces a step is cut into: one a stage, fewer where they would be small."""
    return max(1, min(stages, num_tokens // MIN_TOKENS))


def pieces(batch: RaggedBatch, count: int) -> Iterator[RaggedBatch]:
    """The batch in `count` pieces of as many tokens, in order. Block copies come with the first."""
    if count == 1:
        yield batch
        return
    for number in range(count):
        part = span(len(batch.tokens_T), count, number)
        first, last = (int(np.searchsorted(batch.starts, place, side="right")) - 1 for place in (part.start, part.stop - 1))
        starts = np.clip(batch.starts[first : last + 2], part.start, part.stop) - part.start
        skipped = np.maximum(part.start - batch.starts[first : last + 1], 0)
        inside = (batch.rows_R >= part.start) & (batch.rows_R < part.stop)
        yield RaggedBatch(
            tokens_T=batch.tokens_T[part.start : part.stop],
            first_S=(batch.first_S[first : last + 1] + skipped).astype(np.int32),
            starts=starts.astype(np.int32),
            block_table_SW=batch.block_table_SW[first : last + 1],
            rows_R=batch.rows_R[inside] - part.start,
            copies=batch.copies if number == 0 else (),
        )
