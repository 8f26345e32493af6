"""Ranks of a recipe's mesh, traced one after the other: what `herd train RECIPE --simulate` shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from herd.base.errors import ConfigError, UsageError, did_you_mean
from herd.plan.hardware import find_device
from herd.recipes.config import RecipeConfig
from herd.train.parallel.beside import RankReport, beside
from herd.train.parallel.config import ParallelConfig
from herd.train.parallel.simulate import simulate_rank


def ranks_to_trace(parallel: ParallelConfig, wanted: str) -> list[int]:
    """One rank by its number; `all` is one of each pipeline stage, since the others of its stage do the same."""
    if wanted == "all":
        return [stage * parallel.tp * parallel.cp for stage in range(parallel.pp)]
    if not wanted.isdecimal():
        raise UsageError(f"--simulate takes a rank or `all`, here {wanted!r}", hint="ranks count from 0: --simulate 0")
    parallel.coordinates(int(wanted))
    return [int(wanted)]


def simulate_recipe(
    config: RecipeConfig, *, ranks: Sequence[int], stage_name: str, hardware: str, advance: Callable[[int, str], None] = lambda *_: None
) -> list[RankReport]:
    """Trace ranks in a step of a stage, at its final batch and length. Raises ConfigError for a stage that the recipe lacks."""
    found = dict(config.stages())
    if stage_name not in found:
        raise ConfigError(f"the recipe has no stage {stage_name!r}", hint=did_you_mean(stage_name, found))
    stage, model, device = replace(found[stage_name], ramp=()), config.model_at(stage_name), find_device(hardware)
    reports: list[RankReport] = []
    for number, rank in enumerate(ranks):
        reports.append(beside(simulate_rank(model, config.parallel, stage, rank), model, config.parallel, stage, device))
        advance(number + 1, f"rank {rank}")
    return reports
