"""The plan of a training run: memory of every rank, time of a step, and what the whole run takes in days, energy, money and carbon.

    plan = train_plan("405b", "h100-80gb", mesh=Mesh(tp=8, pp=16, dp=128, virtual_stages=8), tokens=15.6e12)
    plan.fits, plan.tflops, plan.step.bound, plan.run.wall_s

All of it is arithmetic on the config; nothing is allocated and torch is not needed. `search.best_meshes` looks for the mesh.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from herd.base.errors import ConfigError, DoesNotFitError
from herd.model.config import ModelConfig
from herd.plan.accounting import Account, Power, account
from herd.plan.assumptions import Assumptions, default_assumptions
from herd.plan.failures import Effective, Reliability, effective_time, save_s
from herd.plan.flops import flops_per_token
from herd.plan.hardware import Device, find_device
from herd.plan.memory import RankMemory, train_memory
from herd.plan.mesh import RECOMPUTE, Batch, Mesh
from herd.plan.models import find_shape
from herd.plan.pipeline import stages
from herd.plan.precision import STATE_BYTES
from herd.plan.step_time import StepTime, step_time
from herd.plan.traffic import Traffic, step_traffic


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """What training so many tokens takes."""

    tokens: float | int
    num_steps: int
    compute_s: float
    wall_s: float
    effective: Effective
    account: Account

    @property
    def num_interruptions(self) -> float:
        """Expected over the run, of both kinds."""
        return self.wall_s / self.effective.mean_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a run measured, as far as it did: tokens a second of all devices, seconds of a step, peak bytes of the fullest device."""

    tokens_per_s: float | int | None = None
    step_s: float | int | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """A planned figure and the measured one."""

    what: str
    planned: float
    measured: float

    @property
    def difference(self) -> float:
        """Planned over measured, less 1."""
        return self.planned / self.measured - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainPlan:
    """A training run, planned. `memory` has a row for every pipeline rank."""

    model: str
    config: ModelConfig
    device: Device
    mesh: Mesh
    batch: Batch
    assumptions: Assumptions
    power: Power
    memory: tuple[RankMemory, ...]
    step: StepTime
    run: RunPlan | None = None

    @property
    def fullest(self) -> RankMemory:
        """The rank with the most."""
        return max(self.memory, key=lambda rank: rank.total)

    @property
    def fits(self) -> bool:
        """Whether every rank's memory does."""
        return self.fullest.total <= self.device.memory_bytes

    def traffic(self, rank: int) -> tuple[Traffic, ...]:
        """Calls and bytes of a device of a pipeline rank in a step, by dimension."""
        return step_traffic(self.config, self.mesh, self.batch, stages(self.config, self.mesh)[rank])

    @property
    def num_micro_batches(self) -> int:
        """Of each replica in a step."""
        return self.batch.num_micro_batches(self.mesh)

    @property
    def flops_per_token(self) -> int:
        """In the report's convention."""
        return flops_per_token(self.config, self.batch.sequence)

    @property
    def tokens_per_s(self) -> float:
        """Of all devices."""
        return self.batch.tokens / self.step.total

    @property
    def tflops(self) -> float:
        """10^12 operations a second and device, in the report's convention."""
        return self.flops_per_token * self.tokens_per_s / self.mesh.size / 1e12

    @property
    def mfu(self) -> float:
        """Share of the device's peak."""
        return self.tflops / self.device.tflops(STATE_BYTES[self.batch.precision].dtype)

    def require_fit(self) -> TrainPlan:
        """The plan itself. Raises DoesNotFitError, with the figures of the fullest rank, where it does not fit."""
        if self.fits:
            return self
        rank = self.fullest
        largest = max(rank.items(), key=lambda name: rank.items()[name])
        raise DoesNotFitError(
            f"pipeline rank {rank.rank} of {self.mesh} needs {rank.total / 1e9:.1f} GB, {self.device.name} has "
            f"{self.device.memory_gb:,.4g} GB; most of it is {largest}, {rank.items()[largest] / 1e9:.1f} GB",
            hint=_remedy(largest, self),
        )

    def beside(self, measured: Measured) -> tuple[Beside, ...]:
        """The plan's figures beside what a run measured, for its report; what was not measured is left out."""
        rate = None if measured.tokens_per_s is None else measured.tokens_per_s * self.flops_per_token / self.mesh.size / 1e12
        pairs = (
            ("tokens_per_s", self.tokens_per_s, measured.tokens_per_s),
            ("tflops_per_device", self.tflops, rate),
            ("step_s", self.step.total, measured.step_s),
            ("peak_bytes", float(self.fullest.total), measured.peak_bytes),
        )
        return tuple(Beside(what=what, planned=planned, measured=float(found)) for what, planned, found in pairs if found)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON sends it."""
        return {
            "model": self.model,
            "num_parameters": self.config.num_parameters,
            "hardware": self.device.to_dict(),
            "mesh": {**asdict(self.mesh), "devices": self.mesh.size},
            "batch": {**asdict(self.batch), "num_micro_batches": self.num_micro_batches},
            "assumptions": self.assumptions.to_dict(),
            "fits": self.fits,
            "memory_bytes": [
                {"rank": rank.rank, "num_layers": rank.num_layers, "in_flight": rank.in_flight, **rank.items(), "total": rank.total}
                for rank in self.memory
            ],
            "traffic": [asdict(row) for row in self.traffic(self.fullest.rank)],
            "step_s": {**self.step.parts(), "total": self.step.total},
            "bound": self.step.bound,
            "flops_per_token": self.flops_per_token,
            "tokens_per_s": self.tokens_per_s,
            "tokens_per_s_per_device": self.tokens_per_s / self.mesh.size,
            "tflops_per_device": self.tflops,
            "mfu": self.mfu,
            "run": None if self.run is None else {**asdict(self.run), "num_interruptions": self.run.num_interruptions},
        }


def _remedy(largest: str, plan: TrainPlan) -> str:
    """What to change where the largest item is this one."""
    mesh, batch = plan.mesh, plan.batch
    if largest == "activations":
        later = RECOMPUTE[RECOMPUTE.index(batch.recompute) + 1 :]
        return (
            f"recompute more (--recompute {later[0]}), or raise --cp or --tp"
            if later
            else "raise --cp or --tp, or lower --sequence or --micro-batch"
        )
    if largest in ("parameters", "gradients", "optimizer"):
        return (
            f"share more (--zero {mesh.zero + 1}), or raise --tp or --pp"
            if mesh.zero < 3 and mesh.shard > 1
            else "raise --tp, --pp or --gpus"
        )
    return "lower --micro-batch or --sequence, or raise --cp or --tp"


def resolve(
    model: ModelConfig | str, device: Device | str, assumptions: Assumptions | None, name: str | None
) -> tuple[str, ModelConfig, Device, Assumptions]:
    """Names and defaults made good."""
    found = find_device(device) if isinstance(device, str) else device
    title, config = find_shape(model) if isinstance(model, str) else (name or "model", model)
    return title, config, found, assumptions or default_assumptions(found)


def train_plan(
    model: ModelConfig | str,
    device: Device | str,
    *,
    mesh: Mesh | None = None,
    batch: Batch | None = None,
    tokens: float | int | None = None,
    assumptions: Assumptions | None = None,
    power: Power | None = None,
    price_per_hour: float | int | None = None,
    reliability: Reliability | None = None,
    name: str | None = None,
) -> TrainPlan:
    """Plan a training run. It is planned whether it fits or not: ask `fits`, or call `require_fit`.

    Args:
        model: a config, or a name as `405b`.
        device: of the catalogue, by name, or one of your own; `here` is this machine as `herd doctor --measure` left it.
        mesh: how the run is cut up; one device by default.
        batch: sequence, global batch, precision and recomputation.
        tokens: to train on; None plans a step alone.
        assumptions: shares of the nameplate; the device's usual ones by default.
        power: nameplate, PUE and grid; the device's watts in an average building by default.
        price_per_hour: of a device; the catalogue's by default.
        reliability: how often runs are interrupted.
        name: of a model that is given as a config.

    Raises:
        ConfigError: a mesh that the model, or a batch that the mesh, cannot have; more devices than the cluster has.
        NotFoundError: a name that is not known.
    """
    title, config, found, supposed = resolve(model, device, assumptions, name)
    cut, load = mesh or Mesh(), batch or Batch()
    if found.num_devices is not None and cut.size > found.num_devices:
        raise ConfigError(f"{cut.size:,} devices are more than the {found.num_devices:,} of {found.name}", hint="choose a smaller mesh")
    plan = TrainPlan(
        model=title,
        config=config,
        device=found,
        mesh=cut,
        batch=load,
        assumptions=supposed,
        power=power or Power(watts=found.watts),
        memory=train_memory(config, cut, load, supposed),
        step=step_time(config, cut, load, found, supposed),
    )
    return plan if tokens is None else with_run(plan, tokens, price_per_hour=price_per_hour, reliability=reliability)


def with_run(
    plan: TrainPlan, tokens: float | int, *, price_per_hour: float | int | None = None, reliability: Reliability | None = None
) -> TrainPlan:
    """The plan with what training so many tokens takes. Raises ConfigError for no tokens."""
    if not tokens > 0:
        raise ConfigError(f"tokens is {tokens}, it must be over 0", hint="Llama 3.1 405B saw 15.6e12")
    device, size = plan.device, plan.mesh.size
    compute = tokens / plan.tokens_per_s
    effective = effective_time(size, save_s(plan.config, device, size, plan.batch.precision), reliability)
    wall = compute / effective.share
    price = device.price_per_hour if price_per_hour is None else price_per_hour
    run = RunPlan(
        tokens=tokens,
        num_steps=-int(-tokens // plan.batch.tokens),
        compute_s=compute,
        wall_s=wall,
        effective=effective,
        account=account(wall / 3600 * size, plan.power, price_per_hour=price),
    )
    return replace(plan, run=run)
