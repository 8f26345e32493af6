"""The best mesh for a number of devices: all that make sense are planned, and the fastest that fits comes first.

Tensor parallel stays within a node. For each mesh the mildest recomputation that fits is taken, since each milder one is faster. Meshes of
equal speed are ordered by their simplicity: fewer dimensions, less sharing, less full memory. Every place after the first says what it
loses by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from herd.base.errors import ConfigError, DoesNotFitError
from herd.model.config import ModelConfig
from herd.plan.assumptions import Assumptions
from herd.plan.hardware import Device
from herd.plan.memory import fullest_bytes
from herd.plan.mesh import RECOMPUTE, Batch, Mesh, Recompute
from herd.plan.step_time import BOUNDS, step_time
from herd.plan.train import TrainPlan, resolve, train_plan

_MICRO_BATCHES = (1, 2, 4, 8)
_CHUNKS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A mesh that was found, and what it loses by against the best one; the best one says what holds it up."""

    plan: TrainPlan
    why: str


def divisors(number: int) -> list[int]:
    """All of them, in order."""
    small = [value for value in range(1, int(number**0.5) + 1) if number % value == 0]
    return sorted({*small, *(number // value for value in small)})


def _splits(config: ModelConfig, device: Device, num_devices: int, fixed: Mapping[str, int]) -> Iterator[tuple[int, int, int, int]]:
    """Every (tp, cp, pp, dp) of so many devices that keeps tensor parallel within a node, and what is fixed."""
    for tp in divisors(num_devices):
        if tp > max(device.devices_per_node, fixed.get("tp", 1)):
            break
        for pp in divisors(num_devices // tp):
            if pp > config.num_hidden_layers + 2:
                break
            for cp in divisors(num_devices // tp // pp):
                split = (tp, cp, pp, num_devices // tp // pp // cp)
                if all(fixed.get(name, size) == size for name, size in zip(("tp", "cp", "pp", "dp"), split, strict=True)):
                    yield split


def meshes(
    config: ModelConfig, device: Device, num_devices: int, batch: Batch, fixed: Mapping[str, int] | None = None
) -> Iterator[tuple[Mesh, Batch]]:
    """Every mesh of so many devices that model, node and batch allow, with every micro-batch that comes out even."""
    given = fixed or {}
    micro_batches = (given["micro_batch"],) if "micro_batch" in given else _MICRO_BATCHES
    for tp, cp, pp, dp in _splits(config, device, num_devices, given):
        chunks = (given["virtual_stages"],) if "virtual_stages" in given else _CHUNKS
        sharing = (1, 2, 3) if pp == 1 else (1, 2)  # gathering parameters for every micro-batch of a pipeline never pays
        if dp * cp == 1:
            sharing = (0,)
        if "zero" in given:
            sharing = (given["zero"],)
        if pp == 1 and chunks[0] > 1:
            continue
        for virtual in chunks if pp > 1 else (1,):
            for micro_batch in micro_batches:
                load = replace(batch, micro_batch=micro_batch)
                made = [Mesh(tp=tp, cp=cp, pp=pp, dp=dp, virtual_stages=virtual, zero=zero) for zero in sharing]
                if _possible(config, made[0], load):
                    yield from ((mesh, load) for mesh in made)


def _possible(config: ModelConfig, mesh: Mesh, batch: Batch) -> bool:
    try:
        mesh.check(config)
        count = batch.num_micro_batches(mesh)
    except ConfigError:
        return False
    # Torch's and Megatron's interleaved schedules need whole rounds of micro-batches, and no rank should idle for most of a step.
    return mesh.pp == 1 or (count >= mesh.pp and (mesh.virtual_stages == 1 or count % mesh.pp == 0))


def mildest(
    config: ModelConfig, mesh: Mesh, batch: Batch, device: Device, assumptions: Assumptions, policies: tuple[Recompute, ...] = RECOMPUTE
) -> Batch | None:
    """The batch with the least recomputation that fits; None where none does."""
    for policy in policies:
        load = replace(batch, recompute=policy)
        if fullest_bytes(config, mesh, load, assumptions) <= device.memory_bytes:
            return load
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    """A mesh with its batch, and what it is ordered by."""

    mesh: Mesh
    batch: Batch
    standing: tuple[float, int, int, int]


def _candidate(config: ModelConfig, mesh: Mesh, batch: Batch, device: Device, assumptions: Assumptions) -> _Candidate:
    seconds = step_time(config, mesh, batch, device, assumptions).total
    dimensions = sum(size > 1 for size in (mesh.tp, mesh.cp, mesh.pp, mesh.virtual_stages))
    return _Candidate(mesh=mesh, batch=batch, standing=(round(seconds, 4), dimensions, mesh.zero, RECOMPUTE.index(batch.recompute)))


def why_slower(best: TrainPlan, other: TrainPlan) -> str:
    """What `other` loses by against `best`, in the parts of a step; parts of a percent are left out."""
    first, second = best.step.parts(), other.step.parts()
    losses = sorted(((second[name] - first[name], name) for name in first), reverse=True)
    told = [f"{seconds:.2f} s more of {BOUNDS[name]}" for seconds, name in losses[:2] if seconds > 0.002 * best.step.total]
    gains = [f"{-seconds:.2f} s less of {BOUNDS[name]}" for seconds, name in losses[-1:] if seconds < -0.002 * best.step.total]
    slower = other.step.total / best.step.total - 1
    if not told:
        return "as fast" if slower < 0.002 else f"{slower:.1%} slower in all parts together"
    return f"{slower:.1%} slower: " + ", ".join(told) + (f", for {gains[0]}" if gains else "")


def why_best(plan: TrainPlan) -> str:
    """What holds the fastest one up."""
    part = plan.step.bound
    return f"held up by {BOUNDS[part]}, {plan.step.parts()[part] / plan.step.total:.0%} of the step"


def best_meshes(
    model: ModelConfig | str,
    device: Device | str,
    num_devices: int,
    *,
    batch: Batch | None = None,
    assumptions: Assumptions | None = None,
    recompute: Recompute | None = None,
    fixed: Mapping[str, int] | None = None,
    top: int = 5,
    name: str | None = None,
) -> list[Found]:
    """The fastest meshes of so many devices, best first, one for each split of the devices.

    Args:
        model: a config, or a name as `405b`.
        device: of the catalogue, by name, or one of your own.
        num_devices: all of them are used.
        batch: sequence, global batch and precision; micro-batch and recomputation are chosen.
        assumptions: shares of the nameplate.
        recompute: the one policy to consider; None takes the mildest that fits.
        fixed: sizes that are not to be searched: tp, cp, pp, dp, virtual_stages, zero, micro_batch.
        top: how many.
        name: of a model that is given as a config.

    Raises:
        ConfigError: no mesh makes even batches out of so many devices.
        DoesNotFitError: none fits; the message has the figures of the one that lacks least.
    """
    title, config, found, supposed = resolve(model, device, assumptions, name)
    if num_devices < 1:
        raise ConfigError(f"the devices are {num_devices}, they must be at least 1", hint="set --gpus")
    if found.num_devices is not None and num_devices > found.num_devices:
        raise ConfigError(f"{num_devices:,} devices are more than the {found.num_devices:,} of {found.name}", hint="choose fewer")
    load = batch or Batch()
    fastest: dict[tuple[int, int, int, int], _Candidate] = {}
    crowded: list[tuple[Mesh, Batch]] = []
    policies = RECOMPUTE if recompute is None else (recompute,)
    for mesh, candidate in meshes(config, found, num_devices, load, fixed):
        chosen = mildest(config, mesh, candidate, found, supposed, policies)
        if chosen is None:
            crowded.append((mesh, replace(candidate, recompute=policies[-1])))
            continue
        one, split = _candidate(config, mesh, chosen, found, supposed), (mesh.tp, mesh.cp, mesh.pp, mesh.dp)
        if split not in fastest or one.standing < fastest[split].standing:
            fastest[split] = one
    if not fastest:
        raise _none_fits(title, config, found, num_devices, load, crowded, supposed)
    ranking = sorted(fastest.values(), key=lambda one: one.standing)[:top]
    plans = [train_plan(config, found, mesh=one.mesh, batch=one.batch, assumptions=supposed, name=title) for one in ranking]
    return [Found(plan=plan, why=why_best(plan) if plan is plans[0] else why_slower(plans[0], plan)) for plan in plans]


def _none_fits(
    title: str, config: ModelConfig, device: Device, count: int, batch: Batch, crowded: list[tuple[Mesh, Batch]], assumptions: Assumptions
) -> ConfigError | DoesNotFitError:
    """Why the search found nothing."""
    if not crowded:
        fewer = 2 ** (count.bit_length() - 1)
        some = fewer != count and next(meshes(config, device, fewer, batch), None) is not None
        return ConfigError(
            f"no mesh of {count:,} devices makes even batches of {batch.tokens:,} tokens in sequences of {batch.sequence:,}",
            hint=(f"{fewer:,} devices do; or choose " if some else "choose a number of devices with small divisors, ")
            + "a batch that their replicas divide, or fewer fixed sizes",
        )
    needed, mesh = min(((fullest_bytes(config, mesh, load, assumptions), mesh) for mesh, load in crowded), key=lambda pair: pair[0])
    return DoesNotFitError(
        f"{title} does not fit {count:,} x {device.name} of {device.memory_gb:,.4g} GB: {mesh} lacks least, and needs "
        f"{needed / 1e9:.1f} GB a device",
        hint="add devices, or choose hardware with more memory",
    )
