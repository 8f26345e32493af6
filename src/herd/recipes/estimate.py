"""What a run will take, before it is made: steps, tokens, FLOPs and time of each stage.

Time is tokens over the speed that an earlier run in the same folder had; without one it is FLOPs over the machine's measured matrix-product
peak at an assumed utilisation, which is named. Memory is the planner's (`herd.plan`), which knows the mesh too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from herd.recipes.config import RecipeConfig
from herd.train.config import StageConfig
from herd.train.run_log import LOG, read_lines
from herd.train.schedule import step_plan

ASSUMED_UTILISATION = 0.4


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEstimate:
    """One stage: `seconds` None where neither a measured speed nor a peak is at hand. `basis` says where they come from."""

    name: str
    num_steps: int
    num_tokens: int
    flops: float
    seconds: float | None
    basis: str


def estimate_stages(config: RecipeConfig, *, folder: Path | None = None, peak_flops: float | None = None) -> list[StageEstimate]:
    """Every stage of a run. A long-context length counts at its most steps."""
    return [_estimate(name, stage, config, folder, peak_flops) for name, stage in config.stages()]


def _estimate(name: str, stage: StageConfig, config: RecipeConfig, folder: Path | None, peak_flops: float | None) -> StageEstimate:
    model, flops, tokens = config.model_at(name), 0.0, 0
    for phase in step_plan(stage).phases:
        read = (phase.end_step - phase.first_step) * phase.tokens_per_step
        tokens += read
        flops += float(read) * model.training_flops_per_token(phase.sequence_length)
    speed = _measured_speed(folder / name) if folder is not None else None
    seconds, basis = None, ""
    if speed:
        seconds, basis = tokens / speed, f"at {speed:,.0f} tokens/s, as measured in {folder}"
    elif peak_flops:
        seconds = flops / (peak_flops * ASSUMED_UTILISATION)
        basis = f"if this machine kept {ASSUMED_UTILISATION:.0%} (assumed) of its measured {peak_flops / 1e12:.2f} TFLOP/s"
    return StageEstimate(name=name, num_steps=stage.num_steps, num_tokens=tokens, flops=flops, seconds=seconds, basis=basis)


def _measured_speed(folder: Path) -> float | None:
    speeds = [record["tokens_per_s"] for record in read_lines(folder / LOG) if "tokens_per_s" in record]
    return median(speeds) if speeds else None


def describe(estimate: StageEstimate) -> str:
    """A line about a stage."""
    text = f"{estimate.name}: {estimate.num_steps:,} steps, {estimate.num_tokens:,} tokens, {estimate.flops:.3g} FLOP"
    return text if estimate.seconds is None else f"{text}, {duration(estimate.seconds)} {estimate.basis}"


def duration(seconds: float) -> str:
    """A time in the unit that fits it."""
    for unit, size in (("years", 365.25 * 86400), ("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} seconds"
