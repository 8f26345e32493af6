"""What a post-training recipe computes once for its rows: a reference's log-probabilities, or a teacher's predictions.

Both are kept in the run's `data/`, under a name with the run's digest. Knows the config and the rows; nothing of the training.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from herd.base.atomic import atomic_file
from herd.base.errors import ConfigError
from herd.base.progress import track_steps
from herd.checkpoint.load import load_model
from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model
from herd.model.transformer import Transformer
from herd.recipes.tune_config import TuneConfig
from herd.recipes.tune_data import Prepared, Table, tokenizer_digest, with_column
from herd.text.tokenizer import Tokenizer
from herd.train.objectives.reference import reference_logprobs
from herd.train.teacher import read_teacher, write_teacher


def teacher_of(config: TuneConfig) -> str:
    """The model to learn from: of a run that recovers from rounding the starting one, unless another is named."""
    return config.teacher or config.model


def completed(
    name: str, prepared: Prepared, config: TuneConfig, model: Transformer, tokenizer: Tokenizer, run: str, dtype: torch.dtype, cache: Path
) -> Prepared:
    """The rows with what is computed once: the reference's log-probabilities, or the teacher's predictions."""
    if config.method == "preference" and config.preference.needs_reference:
        return _with_reference(name, prepared, config, model, run, dtype, cache)
    if config.method == "distill":
        teacher = _Teacher(config, tokenizer, dtype, model.device)
        return replace(
            prepared,
            train=teacher.columns(prepared.train, cache / f"{name}-teacher-{run[:16]}"),
            heldback=teacher.columns(prepared.heldback, cache / f"{name}-teacher-{run[:16]}-heldback"),
        )
    return prepared


def _with_reference(
    name: str, prepared: Prepared, config: TuneConfig, model: Transformer, run: str, dtype: torch.dtype, cache: Path
) -> Prepared:
    """The starting model's log-probabilities, kept in a file of the run."""
    path = cache / f"{name}-reference-{run[:16]}.npz"
    if not path.exists():
        size = config.train.micro_batch_size
        with track_steps("reference", total=len(prepared.train["tokens"])) as advance:
            train = reference_logprobs(model, prepared.train, dtype=dtype, micro_batch_size=size, advance=advance)
        heldback = reference_logprobs(model, prepared.heldback, dtype=dtype, micro_batch_size=size)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, train=train, heldback=heldback)
    with np.load(path, allow_pickle=False) as arrays:
        return with_column(prepared, "reference", arrays["train"], arrays["heldback"])


class _Teacher:
    """Loads the teacher when first needed; gives rows with its predictions."""

    def __init__(self, config: TuneConfig, tokenizer: Tokenizer, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.path = resolve_model(teacher_of(config))
        self.digest = tokenizer_digest(tokenizer)
        other = tokenizer_digest(load_checkpoint_tokenizer(self.path))
        if other != self.digest:
            raise ConfigError(
                f"teacher {teacher_of(config)!r} and model {config.model!r} have different tokenizers",
                hint="distillation compares the same tokens: choose two models of one family",
            )

    def columns(self, table: Table, folder: Path) -> Table:
        if not len(table["tokens"]):
            empty = (*table["tokens"].shape, self.config.distill.top_k)
            return {**table, "teacher_ids": np.zeros(empty, np.int32), "teacher_logprobs": np.zeros(empty, np.float16)}
        with track_steps("teacher", total=len(table["tokens"])) as advance:
            write_teacher(
                load_model(self.path, dtype=self.dtype, device=self.device),
                table,
                folder,
                top_k=self.config.distill.top_k,
                teacher=self.config.teacher,
                tokenizer=self.digest,
                dtype=self.dtype,
                micro_batch_size=self.config.train.micro_batch_size,
                advance=advance,
            )
        return read_teacher(folder, tokenizer=self.digest)
