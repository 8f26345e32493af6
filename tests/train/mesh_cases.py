"""What mesh tests run in every process: training on a mesh, and what a single process makes of the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from small_run import VOCAB, small_mixture, small_stage  # pyright: ignore[reportMissingImports]

from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.train.mixing import cut_rows
from herd.train.numerics import prepare_model
from herd.train.objectives.by_source import next_token_for, with_sources
from herd.train.optimizer import build_adamw
from herd.train.parallel.config import ParallelConfig
from herd.train.parallel.mesh import build_mesh
from herd.train.parallel.model import ShardedTransformer, build_sharded
from herd.train.parallel.step import ParallelStep
from herd.train.schedule import stage_learning_rate
from herd.train.step import train_step

STEPS = 20
LENGTH = 32


def mesh_config(*, tied: bool = False, layers: int = 2) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.1,
    )


def mesh_stage(**changes: Any) -> Any:
    fields = {"sequence_length": LENGTH, "batch_size": 8, "micro_batch_size": 2, "num_steps": STEPS, "z_loss": 1e-4}
    return small_stage(**(fields | changes))


def plain_losses(*, tied: bool = False, layers: int = 2, **changes: Any) -> list[list[float]]:
    """Loss, gradient norm and a source's loss of every step in one process."""
    stage = mesh_stage(**changes)
    with torch.device("meta"):
        model = Transformer(mesh_config(tied=tied, layers=layers))
    initialise(model, seed=3)
    prepare_model(model, stage)
    mixture, optimizer = small_mixture(stage), build_adamw(model, stage)
    objective = next_token_for(mixture, z_loss=stage.z_loss)
    found: list[list[float]] = []
    for step in range(STEPS):
        first = step * stage.batch_size
        batch = with_sources(mixture, mixture.batch(first, stage.batch_size), first=first)
        result = train_step(model, optimizer, batch, stage, lr=stage_learning_rate(stage, step), objective=objective)
        found.append([result.loss, result.grad_norm, result.metrics.get("loss/a", 0.0), float(result.num_counted)])
    return found


def train_on_mesh(
    *, folder: Path, mesh: dict[str, Any], tied: bool = False, layers: int = 2, steps: int = STEPS, **changes: Any
) -> dict[str, Any]:
    """The same on this rank of a mesh."""
    stage = mesh_stage(**changes)
    ranks = build_mesh(ParallelConfig(**mesh), "cpu")
    model: ShardedTransformer = build_sharded(
        mesh_config(tied=tied, layers=layers), ranks, seed=3, compute_dtype=getattr(torch, stage.compute_dtype)
    )
    prepare_model(model, stage)
    mixture, optimizer = small_mixture(stage), build_adamw(model, stage)
    step_on = ParallelStep(model, z_loss=stage.z_loss, source_names=mixture.names)
    per_rank = stage.batch_size // ranks.config.dp
    found: list[list[float]] = []
    for step in range(steps):
        first = step * stage.batch_size + ranks.dp_index * per_rank
        batch = cut_rows(with_sources(mixture, mixture.batch(first, per_rank), first=first), stage.sequence_length)
        result = step_on(optimizer, batch, stage, lr=stage_learning_rate(stage, step))
        found.append([result.loss, result.grad_norm, result.metrics.get("loss/a", 0.0), float(result.num_counted)])
    rows = mixture.batch(ranks.dp_index * 2, 2)
    return {"steps": found, "heldout": step_on.loss_sum(rows, micro_batch_size=1)}


CASES = {"train": train_on_mesh}
