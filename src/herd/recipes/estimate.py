"""What a run will take, before it is made: steps, tokens, FLOPs and time of each stage.

Time is tokens over the speed that an earlier run in the same folder had; without one it is FLOPs over the machine's measured matrix-product
peak at an assumed utilisation, which is named. Memory is the planner's (`herd.plan`), for one device that holds everything; what several
share, and how, is the business of `herd plan train`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from herd.base.memory import gib
from herd.model.config import ModelConfig
from herd.plan.assumptions import Assumptions
from herd.plan.memory import fullest_bytes
from herd.plan.mesh import Batch, Mesh, Precision, Recompute
from herd.recipes.config import RecipeConfig
from herd.train.config import StageConfig
from herd.train.run_log import LOG, read_lines
from herd.train.schedule import step_plan

ASSUMED_UTILISATION = 0.4


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEstimate:
    """One stage: `seconds` None where neither a measured speed nor a peak is at hand. `basis` says where they come from.

    `memory_bytes` is what one device would need for the largest phase.
    """

    name: str
    num_steps: int
    num_tokens: int
    flops: float
    memory_bytes: int
    seconds: float | None
    basis: str


def estimate_stages(
    config: RecipeConfig, *, folder: Path | None = None, peak_flops: float | None = None, on_gpu: bool = False
) -> list[StageEstimate]:
    """Every stage of a run. A long-context length counts at its most steps."""
    return [_estimate(name, stage, config, folder, peak_flops, on_gpu=on_gpu) for name, stage in config.stages()]


def _estimate(
    name: str, stage: StageConfig, config: RecipeConfig, folder: Path | None, peak_flops: float | None, *, on_gpu: bool
) -> StageEstimate:
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
    return StageEstimate(
        name=name,
        num_steps=stage.num_steps,
        num_tokens=tokens,
        flops=flops,
        memory_bytes=stage_memory(stage, model, on_gpu=on_gpu),
        seconds=seconds,
        basis=basis,
    )


_RECOMPUTE: dict[str, Recompute] = {"none": "none", "selective": "elementwise", "full": "full"}
"""The planner's words: what herd's selective recomputation keeps are the matrix products."""


def stage_memory(stage: StageConfig, model: ModelConfig, *, on_gpu: bool) -> int:
    """Bytes of a stage on one device, by the planner: the largest of its phases."""
    narrow: Precision = "fp8" if stage.float8 else "bf16"
    precision: Precision = "fp32" if stage.compute_dtype == "float32" else narrow
    assumptions = Assumptions() if on_gpu else Assumptions(activations=2.5, reserve_gb=0.0)
    batches = [
        Batch(
            sequence=phase.sequence_length,
            tokens=phase.tokens_per_step,
            micro_batch=phase.micro_batch_size,
            precision=precision,
            recompute=_RECOMPUTE[stage.recompute],
        )
        for phase in step_plan(stage).phases
    ]
    return max(fullest_bytes(model, Mesh(zero=0), batch, assumptions) for batch in batches)


def _measured_speed(folder: Path) -> float | None:
    speeds = [record["tokens_per_s"] for record in read_lines(folder / LOG) if "tokens_per_s" in record]
    return median(speeds) if speeds else None


def describe(estimate: StageEstimate) -> str:
    """A line about a stage."""
    text = f"{estimate.name}: {estimate.num_steps:,} steps, {estimate.num_tokens:,} tokens, {estimate.flops:.3g} FLOP"
    text += f", {gib(estimate.memory_bytes)} on one device"
    return text if estimate.seconds is None else f"{text}, {duration(estimate.seconds)} {estimate.basis}"


def duration(seconds: float) -> str:
    """A time in the unit that fits it."""
    for unit, size in (("years", 365.25 * 86400), ("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} seconds"
