"""What a run will take, before it is made: steps, tokens, FLOPs, memory, time and energy of each stage.

Time is, in this order: tokens over the speed that an earlier run in the same folder had; the plan of this machine, where `herd doctor
--measure` has measured it; FLOPs over the machine's measured matrix-product peak at an assumed utilisation, which is named. Memory is the
planner's (`herd.plan`), of the fullest device of the run's mesh. A run keeps its estimate (`train.prediction`), and its page shows both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from herd.base.memory import gib
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.plan.assumptions import Assumptions, default_assumptions
from herd.plan.hardware import Device, load_here
from herd.plan.memory import fullest_bytes, train_memory
from herd.plan.mesh import Batch, Mesh, Precision, Recompute
from herd.plan.step_time import step_time
from herd.recipes.config import PowerConfig, RecipeConfig
from herd.train.config import StageConfig
from herd.train.parallel.beside import planned_mesh
from herd.train.parallel.config import ParallelConfig
from herd.train.precision import compute_dtype
from herd.train.prediction import StageEstimate
from herd.train.run_log import LOG, read_lines
from herd.train.schedule import step_plan
from herd.train.speed import measured_peak

ASSUMED_UTILISATION = 0.4
_STATE_BYTES = 12
"""Of a trained number beside its master: the gradient and two moments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What an estimate of time rests on: FLOP/s of a process's products, the measured device, how many processes run side by side."""

    peak_flops: float | None = None
    on_gpu: bool = False
    here: Device | None = None
    processes: int = 1


def this_machine(device: str, dtype: torch.dtype, parallel: ParallelConfig) -> Machine:
    """The machine of this process. Processes of one processor share its cores; GPUs work side by side."""
    on_gpu, threads = device.startswith("cuda"), torch.get_num_threads()
    here = load_here()
    if here is not None and (here.kind == "gpu") != on_gpu:
        here = None
    beside = parallel.world_size if on_gpu else min(parallel.world_size, max(1, (os.cpu_count() or 1) // threads))
    return Machine(peak_flops=measured_peak("cuda" if on_gpu else "cpu", dtype, threads), on_gpu=on_gpu, here=here, processes=beside)


def estimate_stages(
    config: RecipeConfig, *, folder: Path | None = None, peak_flops: float | None = None, machine: Machine | None = None
) -> list[StageEstimate]:
    """Every stage of a run. A long-context length counts at its most steps."""
    place = machine or Machine(peak_flops=peak_flops)
    return [_estimate(name, stage, config.model_at(name), config.parallel, config.power, folder, place) for name, stage in config.stages()]


def estimate_tuning(name: str, stage: StageConfig, model: Transformer, machine: Machine) -> StageEstimate:
    """A post-training stage of a model that is there. Frozen weights have neither gradients nor moments, and cost no products for them."""
    found = _estimate(name, stage, model.config, ParallelConfig(), PowerConfig(), None, machine)
    weights = list(model.parameters())
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    states = sum(weight.nbytes for weight in weights) + _STATE_BYTES * trained
    frozen = 1 - trained / sum(weight.numel() for weight in weights)
    supposed = _assumptions(on_gpu=machine.on_gpu)
    others = max(
        max(
            rank.activations + rank.logits + rank.buffers + rank.reserve
            for rank in train_memory(model.config, Mesh(zero=0), batch, supposed)
        )
        for _, batch in _batches(stage, on_gpu=machine.on_gpu)
    )
    share = 1 - frozen / 3
    return replace(
        found,
        memory_bytes=states + others,
        flops=found.flops * share,
        seconds=None if found.seconds is None else found.seconds * share,
    )


def _estimate(
    name: str,
    stage: StageConfig,
    model: ModelConfig,
    parallel: ParallelConfig,
    power: PowerConfig,
    folder: Path | None,
    machine: Machine,
) -> StageEstimate:
    flops, tokens = 0.0, 0
    for phase in step_plan(stage).phases:
        read = (phase.end_step - phase.first_step) * phase.tokens_per_step
        tokens += read
        flops += float(read) * model.training_flops_per_token(phase.sequence_length)
    speed = _measured_speed(folder / name) if folder is not None else None
    seconds, basis = None, ""
    if speed:
        seconds, basis = tokens / speed, f"as measured in {folder}"
    elif (planned := _planned_seconds(stage, model, parallel, machine)) is not None and machine.here is not None:
        seconds, basis = planned, f"by the plan of this machine: {machine.here.title}"
    elif machine.peak_flops:
        peak = machine.peak_flops * machine.processes
        seconds = flops / (peak * ASSUMED_UTILISATION)
        basis = f"if this machine kept {ASSUMED_UTILISATION:.0%} (assumed) of its measured {peak / 1e12:.2f} TFLOP/s"
    return StageEstimate(
        name=name,
        num_steps=stage.num_steps,
        num_tokens=tokens,
        flops=flops,
        memory_bytes=stage_memory(stage, model, on_gpu=machine.on_gpu, parallel=parallel),
        reserve_bytes=int(_assumptions(on_gpu=machine.on_gpu).reserve_gb * 1e9),
        on_gpu=machine.on_gpu,
        seconds=seconds,
        basis=basis,
        watts=power.watts * (parallel.world_size if machine.on_gpu else 1),
    )


_RECOMPUTE: dict[str, Recompute] = {"none": "none", "selective": "elementwise", "full": "full"}
"""The planner's words: what herd's selective recomputation keeps are the matrix products."""


def _assumptions(*, on_gpu: bool) -> Assumptions:
    return Assumptions() if on_gpu else Assumptions(activations=2.5, reserve_gb=0.5)


def _batches(stage: StageConfig, *, on_gpu: bool) -> Iterator[tuple[int, Batch]]:
    """The steps of each phase, and one of them in the planner's words."""
    narrow: Precision = "fp8" if stage.float8 else "bf16"
    is_wide = compute_dtype(stage, "cuda" if on_gpu else "cpu") == torch.float32
    for phase in step_plan(stage).phases:
        yield (
            phase.end_step - phase.first_step,
            Batch(
                sequence=phase.sequence_length,
                tokens=phase.tokens_per_step,
                micro_batch=phase.micro_batch_size,
                precision="fp32" if is_wide else narrow,
                recompute=_RECOMPUTE[stage.recompute],
            ),
        )


def _mesh(parallel: ParallelConfig) -> Mesh:
    return Mesh(zero=0) if parallel.world_size == 1 else planned_mesh(parallel)


def stage_memory(stage: StageConfig, model: ModelConfig, *, on_gpu: bool, parallel: ParallelConfig | None = None) -> int:
    """Bytes of a stage on its fullest device, by the planner: the largest of its phases."""
    mesh, supposed = _mesh(parallel or ParallelConfig()), _assumptions(on_gpu=on_gpu)
    return max(fullest_bytes(model, mesh, batch, supposed) for _, batch in _batches(stage, on_gpu=on_gpu))


def _planned_seconds(stage: StageConfig, model: ModelConfig, parallel: ParallelConfig, machine: Machine) -> float | None:
    """The planner's time on this machine as it was measured; None where it was not, or is one processor for several processes."""
    here = machine.here
    if here is None or (parallel.world_size > 1 and not machine.on_gpu) or (stage.float8 and here.fp8_tflops is None):
        return None
    supposed, mesh = default_assumptions(here), _mesh(parallel)
    return sum(steps * step_time(model, mesh, batch, here, supposed).total for steps, batch in _batches(stage, on_gpu=machine.on_gpu))


def _measured_speed(folder: Path) -> float | None:
    speeds = [record["tokens_per_s"] for record in read_lines(folder / LOG) if "tokens_per_s" in record]
    return median(speeds) if speeds else None


def describe(estimate: StageEstimate) -> str:
    """A line about a stage."""
    text = f"{estimate.name}: {estimate.num_steps:,} steps, {estimate.num_tokens:,} tokens, {estimate.flops:.3g} FLOP"
    text += f", {gib(estimate.memory_bytes)} on one device"
    if estimate.seconds is None or estimate.step_s is None:
        return text
    energy = f", {estimate.energy_kwh:.3g} kWh at {estimate.watts:g} W" if estimate.watts else ""
    speed = f"{estimate.step_s:.3g} s a step, {estimate.tokens_per_s:,.0f} tokens/s"
    return f"{text}, {duration(estimate.seconds)}{energy} at {speed}, {estimate.basis}"


def duration(seconds: float) -> str:
    """A time in the unit that fits it."""
    for unit, size in (("years", 365.25 * 86400), ("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} seconds"
