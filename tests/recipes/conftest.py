"""The recipe `tiny`, reduced by overrides to a run of a second, and the folder that it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from herd.base.config_io import apply_overrides
from herd.recipes.config import RecipeConfig
from herd.recipes.pipeline import RunResult, run_recipe
from herd.recipes.registry import find_recipe

QUICK = (
    *("model.hidden_size=32", "model.intermediate_size=64", "model.num_hidden_layers=2", "model.head_dim=16"),
    *("pretrain.num_steps=4", "pretrain.warmup_steps=2", "pretrain.batch_size=4", "pretrain.micro_batch_size=2"),
    *("pretrain.sequence_length=64", "pretrain.eval_every=2", "pretrain.save_every=2", "pretrain.log_every=1"),
    *("sft.num_steps=4", "sft.warmup_steps=1", "sft.batch_size=2", "sft.micro_batch_size=2", "sft.save_every=2", "sft.log_every=1"),
    *("pretrain.sources.own.num_items=60", "sft.sources.own.num_items=60", "tokenizer.sources.own.num_items=400"),
    *("heldout_bytes=1500", "sample_prompts=Hello!, Who are you?"),
)


@pytest.fixture(scope="session")
def quick() -> RecipeConfig:
    """The config."""
    return apply_overrides(find_recipe("tiny"), QUICK)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, quick: RecipeConfig) -> RunResult:
    """A run of it, done. Tests read it and write nothing into it."""
    return run_recipe(quick, data=None, output=tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def finished_folder(finished: RunResult) -> Path:
    """The run's folder."""
    return finished.model.parent
