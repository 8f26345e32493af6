"""A traced rank beside the planner's closed forms: memory by item, calls and bytes by dimension, and the time of a step.

The planner supposes fused kernels and a mesh that works as the report's did; the trace is what herd's own code does.
Traced step time is the planner's with the traced messages in the place of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from herd.model.config import ModelConfig
from herd.plan.assumptions import Assumptions, default_assumptions
from herd.plan.hardware import Device
from herd.plan.memory import stage_memory
from herd.plan.mesh import Batch, Mesh
from herd.plan.network import Links, mesh_links
from herd.plan.pipeline import in_flight, stages
from herd.plan.step_time import step_time
from herd.plan.traffic import step_traffic
from herd.train.config import StageConfig
from herd.train.parallel.config import ParallelConfig
from herd.train.parallel.simulate import Simulation

RECOMPUTE = {"none": "none", "selective": "elementwise", "full": "full"}
"""The planner's words: herd's selective recomputation repeats no matrix product."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A figure of the trace and of the planner; None where one has no such figure."""

    what: str
    unit: str
    traced: float | int | None
    planned: float | int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RankReport:
    """A rank's trace beside its plan."""

    simulation: Simulation
    device: str
    memory_bytes: int
    reserve_bytes: int
    rows: tuple[Row, ...]

    @property
    def fits(self) -> bool:
        """Whether the traced peak, and what is not for tensors, fit on the device."""
        return self.simulation.peak + self.reserve_bytes <= self.memory_bytes

    def to_dict(self) -> dict[str, Any]:
        """As JSON sends it."""
        rows = [{"what": row.what, "unit": row.unit, "traced": row.traced, "planned": row.planned} for row in self.rows]
        return {
            **self.simulation.to_dict(),
            "hardware": self.device,
            "memory_bytes": self.memory_bytes,
            "reserve_bytes": self.reserve_bytes,
            "fits": self.fits,
            "beside": rows,
        }


def planned_mesh(parallel: ParallelConfig) -> Mesh:
    """The mesh in the planner's words. Torch's pipelines reduce gradients once a step, which the planner calls ZeRO-1."""
    return replace(parallel.mesh, zero=1) if parallel.pp > 1 and parallel.zero == 2 else parallel.mesh


def planned_batch(stage: StageConfig) -> Batch:
    """A step of the stage in the planner's words."""
    return Batch(
        sequence=stage.sequence_length,
        tokens=stage.sequence_length * stage.batch_size,
        micro_batch=stage.micro_batch_size,
        precision="fp32" if stage.compute_dtype == "float32" else "bf16",
        recompute=RECOMPUTE[stage.recompute],  # pyright: ignore[reportArgumentType]
    )


def beside(simulation: Simulation, config: ModelConfig, parallel: ParallelConfig, stage: StageConfig, device: Device) -> RankReport:
    """The report of a traced rank on a device."""
    assumptions, mesh, batch = default_assumptions(device), planned_mesh(parallel), planned_batch(stage)
    part = stages(config, mesh)[simulation.place["pp"]]
    memory = stage_memory(config, mesh, batch, part, assumptions)
    # The rank's own: masters and moments in slices. The planner counts the copy that computes apart from them.
    rows = [
        Row(what="parameters of the stage", unit="", traced=None, planned=memory.num_parameters),
        Row(what="parameters of the rank", unit="", traced=simulation.num_parameters, planned=-(-memory.num_parameters // mesh.shard)),
        Row(
            what="masters and moments",
            unit="B",
            traced=simulation.parameters + simulation.optimizer,
            planned=memory.optimizer + (4 * -(-memory.num_parameters // mesh.shard) if batch.precision == "fp32" else 0),
        ),
        Row(what="gathered parameters", unit="B", traced=None, planned=memory.parameters),
        Row(what="gradients at the end", unit="B", traced=simulation.gradients, planned=memory.gradients),
        Row(what="kept by a chunk and micro-batch", unit="B", traced=simulation.kept, planned=_kept(memory.activations, memory.in_flight)),
        Row(
            what="chunks in flight",
            unit="",
            traced=None,
            planned=in_flight(mesh, part.rank, simulation.num_micro_batches),
        ),
        Row(what="peak memory", unit="B", traced=simulation.peak, planned=memory.total - memory.reserve),
        *_traffic(simulation, config, mesh, batch),
    ]
    planned = step_time(config, mesh, batch, device, assumptions)
    traced = planned.total + _exposed(simulation, mesh_links(device, mesh, assumptions), assumptions) - planned.tensor - planned.context
    rows += [
        Row(what="pipeline bubble over work", unit="%", traced=100 * simulation.bubble, planned=100 * simulation.bubble),
        Row(what="step", unit="s", traced=traced, planned=planned.total),
    ]
    return RankReport(
        simulation=simulation, device=device.name, memory_bytes=int(device.memory_bytes), reserve_bytes=memory.reserve, rows=tuple(rows)
    )


def _kept(activations: int, held: int) -> float:
    return activations / held if held else 0.0


def _traffic(simulation: Simulation, config: ModelConfig, mesh: Mesh, batch: Batch) -> list[Row]:
    planned = {row.dimension: row for row in step_traffic(config, mesh, batch, stages(config, mesh)[simulation.place["pp"]])}
    names = ["tensor", "context", "pipeline", "data", "replicas"]
    rows: list[Row] = []
    for name in names:
        traced = [row for row in simulation.collectives if row.dimension == name]
        if not traced and name not in planned:
            continue
        ours = planned.get(name)
        calls, sent = (None, None) if ours is None else (ours.calls, ours.sent_bytes)
        rows.append(Row(what=f"{name}: calls", unit="", traced=sum(row.calls for row in traced), planned=calls))
        rows.append(Row(what=f"{name}: sent", unit="B", traced=sum(row.sent_bytes for row in traced), planned=sent))
    return rows


def _exposed(simulation: Simulation, links: Links, assumptions: Assumptions) -> float:
    """Seconds of the traced tensor and context messages that do not hide."""
    total = 0.0
    for row in simulation.collectives:
        link = {"tensor": links.tp, "context": links.cp}.get(row.dimension)
        if link is not None:
            hidden = assumptions.tp_overlap if row.dimension == "tensor" else assumptions.cp_overlap
            total += (row.sent_bytes / link.bytes_per_s + row.calls * (link.ranks - 1) * link.latency_s) * (1 - hidden)
    return total
