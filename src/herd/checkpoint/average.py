"""The weighted mean of models of one shape, tensor by tensor: memory of two tensors, whatever the number of models.

Llama 3.1 averages models of different data and settings at every stage of post-training (report, section 4.1.5). Sums are float32.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from herd.base.atomic import atomic_directory
from herd.base.errors import CheckpointError, UsageError
from herd.checkpoint.convert import TOKENIZER_FILES
from herd.checkpoint.hf import GENERATION_CONFIG_FILE, main_dtype, write_hf
from herd.checkpoint.hf_config import CONFIG_FILE, SpecialIds, special_ids_from_json
from herd.checkpoint.json_file import read_json_object
from herd.checkpoint.load import as_dtype
from herd.checkpoint.open import open_checkpoint
from herd.checkpoint.source import Format, TensorSource


class AveragedSource:
    """The mean of several sources as a source."""

    format: Format = "hf"

    def __init__(self, sources: Sequence[TensorSource], weights: Sequence[float], *, progress: Callable[[int, str], None] | None) -> None:
        self.sources, self.weights, self.progress = sources, weights, progress
        self.path, self.config = sources[0].path, sources[0].config
        self.tensors = sources[0].tensors
        self._done = 0

    def read(self, name: str) -> Tensor:
        """The mean of one tensor, float32."""
        total = torch.zeros(self.tensors[name].shape, dtype=torch.float32)
        for source, weight in zip(self.sources, self.weights, strict=True):
            total.add_(source.read(name).float(), alpha=weight)
        self._done += 1
        if self.progress is not None:
            self.progress(self._done, name)
        return total

    def close(self) -> None:
        """The sources are closed by who opened them."""

    def __enter__(self) -> AveragedSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def shares(number: int, weights: Sequence[float] | None) -> list[float]:
    """Weights that sum to one; equal ones unless given. Raises UsageError for a wrong number, or weights without a positive finite sum."""
    found = list(weights) if weights else [1.0] * number
    if len(found) != number:
        raise UsageError(f"{number} models and {len(found)} weights", hint="give a weight for each model, in their order")
    total = math.fsum(found)
    if not all(math.isfinite(weight) for weight in found) or not total > 0:
        raise UsageError(f"weights {found} have no positive sum", hint="weights are shares, as 2,1,1")
    return [weight / total for weight in found]


def average_models(
    paths: Sequence[Path],
    target: Path | str,
    *,
    weights: Sequence[float] | None = None,
    dtype: torch.dtype | str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, str], None] | None = None,
) -> int:
    """Write the mean of models as a Hugging Face folder, with the first one's tokenizer; returns the number of tensors.

    Args:
        paths: models in any format, all of one shape.
        target: the folder to write.
        weights: one for each model; their sum is made one. None: all alike.
        dtype: what to store; None takes the first model's.
        overwrite: replace what is at `target`.
        progress: told the tensors done.

    Raises:
        UsageError: fewer than two models, or weights that fit no mean.
        CheckpointError: models of different shapes.
    """
    if len(paths) < 2:
        raise UsageError(f"a mean of {len(paths)} model is none", hint="name two models or more")
    found = shares(len(paths), weights)
    with ExitStack() as stack:
        sources = [stack.enter_context(open_checkpoint(path)) for path in paths]
        for path, source in zip(paths, sources, strict=True):
            _check_same(paths[0], sources[0], path, source)
        stored = as_dtype(dtype) if dtype is not None else main_dtype(sources[0])
        with atomic_directory(target, overwrite=overwrite) as temporary:
            write_hf(AveragedSource(sources, found, progress=progress), temporary, dtype=stored, ids=_ids(paths[0]))
            for name in TOKENIZER_FILES:
                if paths[0].is_dir() and (paths[0] / name).is_file():
                    shutil.copyfile(paths[0] / name, temporary / name)
        return len(sources[0].config.parameter_shapes())


def _check_same(first: Path, one: TensorSource, path: Path, other: TensorSource) -> None:
    # How far positions reach is no shape: a model and its long-context child may differ in it.
    if one.config != replace(other.config, max_position_embeddings=one.config.max_position_embeddings):
        names = [name for name in one.config.__dataclass_fields__ if getattr(one.config, name) != getattr(other.config, name)]
        values = ", ".join(f"{name} {getattr(one.config, name)} and {getattr(other.config, name)}" for name in names)
        raise CheckpointError(f"{first} and {path} differ: {values}", hint="only models of one shape have a mean")


def _ids(path: Path) -> SpecialIds | None:
    for name in (GENERATION_CONFIG_FILE, CONFIG_FILE):
        if path.is_dir() and (path / name).is_file():
            return special_ids_from_json(read_json_object(path / name))
    return None
