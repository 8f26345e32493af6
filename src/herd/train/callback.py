"""Where a training run calls back: for scores that the trainer cannot know (they need generation, another measure), and for its batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from herd.model.transformer import Transformer
from herd.train.step import Batch


@runtime_checkable
class Callback(Protocol):
    """Called after every `every` steps and after the last one."""

    name: str
    every: int

    def __call__(self, model: Transformer, step: int) -> Mapping[str, float]:
        """Scores for the log; nothing is logged for an empty one."""
        ...


@runtime_checkable
class BatchSource(Protocol):
    """What a trainer reads: samples by number, so that a resumed run goes on where it was."""

    def batch(self, first: int, size: int) -> Batch:
        """Samples first..first+size-1."""
        ...
