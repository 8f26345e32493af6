"""A look at what a run would train on, before it trains: a sample of each source with the counted tokens marked.

The tokenizer and the rows are made, and kept for the run that follows. Answers that never end are refused (`mask_view`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from herd.data.loader import RowSource
from herd.recipes.config import RecipeConfig
from herd.recipes.mask_view import check_answers_end, mask_sample
from herd.recipes.prepare import prepare_rows, prepare_tokenizer
from herd.recipes.tune_config import TuneConfig
from herd.recipes.tune_run import inspect_data
from herd.text.tokenizer import Tokenizer
from herd.train.batch import Columns, as_columns
from herd.train.config import StageConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceView:
    """One source of a stage: its rows, how full and how much of them counts, and a sample."""

    stage: str
    source: str
    num_rows: int
    share_filled: float
    share_counted: float
    sample: str


_LOOKED_AT = 4096
"""Rows of a source that are looked at; a data set on disk is not read whole."""


def rows_as_columns(rows: RowSource) -> Columns:
    """The first rows of a source by the names that objectives know."""
    return as_columns(rows.take(np.arange(min(len(rows), _LOOKED_AT))))


def check_stage(stage: StageConfig, rows: Mapping[str, RowSource], tokenizer: Tokenizer) -> None:
    """Raise FormatError for a chat source whose counted tokens never hold the end of a turn."""
    for source in stage.used_sources:
        if source.kind == "chat" and len(rows[source.name]):
            check_answers_end(source.name, rows_as_columns(rows[source.name]), tokenizer)


def inspect_recipe(config: RecipeConfig, *, data: Path | None, output: Path, colour: bool) -> list[SourceView]:
    """A view of every source of every stage. Nothing is trained."""
    tokenizer = prepare_tokenizer(config, data, output / "tokenizer")
    digest = hashlib.sha256((output / "tokenizer" / "tokenizer.model").read_bytes()).hexdigest()
    views: list[SourceView] = []
    for name, stage in config.stages():
        rows = prepare_rows(stage, config, data, tokenizer, digest=digest, cache=output / "data")
        for source, packed in rows.items():
            views.append(_view(name, source, rows_as_columns(packed), tokenizer, colour=colour))
        check_stage(stage, rows, tokenizer)
    return views


def inspect_tune(config: TuneConfig, *, data: Path | None, output: Path, colour: bool) -> list[SourceView]:
    """A view of every source of a post-training run."""
    tokenizer, tables = inspect_data(config, data=data, output=output)
    return [_view("train", name, table, tokenizer, colour=colour) for name, table in tables.items()]


def _view(stage: str, source: str, columns: Columns, tokenizer: Tokenizer, *, colour: bool) -> SourceView:
    written = columns["answer"] if "answer" in columns else columns["counts"]
    return SourceView(
        stage=stage,
        source=source,
        num_rows=len(columns["tokens"]),
        share_filled=float((columns["documents"] >= 0).mean()) if len(written) else 0.0,
        share_counted=float(written.mean()) if len(written) else 0.0,
        sample=mask_sample(columns, tokenizer, colour=colour) if len(columns["tokens"]) else "",
    )
