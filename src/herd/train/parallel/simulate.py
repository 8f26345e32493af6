"""One rank of any mesh, traced without its hardware: the real model, the real parallel plan, the real schedule, tensors without values.

Torch's fake process group stands for the other ranks, so a rank of 16,384 runs in one process. Every operator of a step is seen
(`memory_tracker`): bytes alive at every moment, and calls and bytes of each collective by dimension. What a kernel takes in one operator,
the driver's memory and the allocator's gaps are not in it. Documents are taken to be as long as rows, which is what attention costs most.
`plan` has the closed forms of the same; the command line shows both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from herd.base.errors import ConfigError
from herd.kernels import dispatch
from herd.kernels.torch_compat import fake_tensors, init_fake_process_group, kill_process_group, local_tensor
from herd.model.config import ModelConfig
from herd.plan.pipeline import bubble_share
from herd.train.attention import training_core
from herd.train.config import StageConfig
from herd.train.numerics import prepare_model
from herd.train.parallel.config import ParallelConfig
from herd.train.parallel.context import ContextCore
from herd.train.parallel.memory_tracker import Collective, MemoryTracker
from herd.train.parallel.mesh import RankMesh, build_mesh
from herd.train.parallel.model import ShardedTransformer
from herd.train.parallel.pipeline import chunk_names
from herd.train.parallel.step import ParallelStep
from herd.train.precision import compute_dtype

NAMES = {"tp": "tensor", "cp": "context", "pp": "pipeline", "shard": "data", "dp_replicate": "replicas"}
"""Dimensions in the planner's words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulation:
    """What a rank of a mesh does in a step of a stage.

    `parameters`, `gradients` and `optimizer` are bytes that the rank has from one step to the next (gradients: at the end of a backward);
    `kept` what a chunk's forward keeps of one micro-batch for its backward, of its largest chunk; `peak` the most bytes alive at once.
    """

    rank: int
    place: dict[str, int]
    chunks: tuple[str, ...]
    num_parameters: int
    num_micro_batches: int
    parameters: int
    gradients: int
    optimizer: int
    kept: int
    peak: int
    collectives: tuple[Collective, ...]
    bubble: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON sends it."""
        return asdict(self)


@contextmanager
def _pretended(parallel: ParallelConfig, rank: int) -> Iterator[RankMesh]:
    """The mesh of a world that is not there."""
    if dist.is_initialized():
        raise ConfigError("a simulation cannot run in a process that trains on a mesh", hint="run it by itself")
    parallel.coordinates(rank)
    init_fake_process_group(rank, parallel.world_size)
    try:
        yield build_mesh(parallel, "cpu")
    finally:
        kill_process_group()


class _Pretended(ShardedTransformer):
    """A model whose rows are single documents, known beforehand: tensors without values have no documents to read."""

    known_core: Any = None

    def core(self, documents_BT: Tensor) -> Any:
        return self.known_core


def _core(mesh: RankMesh, rows: int, length: int) -> Any:
    config = mesh.config
    documents = torch.zeros(rows, length, dtype=torch.int16)
    if config.cp == 1:
        return training_core(documents)
    return ContextCore(documents, group=mesh.group("cp"), ranks=config.cp, rank=mesh.place["cp"])


def simulate_rank(config: ModelConfig, parallel: ParallelConfig, stage: StageConfig, rank: int, *, device: str = "cuda") -> Simulation:
    """Trace a step of one rank, by the kernels of a kind of device ("cuda", "cpu").

    Raises ConfigError for a mesh, a batch or a rank that cannot be.
    """
    parallel.check(config)
    count = parallel.check_rows(length=stage.sequence_length, batch_size=stage.batch_size, micro_batch_size=stage.micro_batch_size)
    with _pretended(parallel, rank) as mesh:
        core = _core(mesh, stage.micro_batch_size, stage.sequence_length)
        groups = {mesh.group(name).group_name: (said, dist.get_world_size(mesh.group(name))) for name, said in NAMES.items()}
        with fake_tensors(), dispatch.traced_for(device):
            model = _Pretended(config, mesh, compute_dtype=compute_dtype(stage, device), build_on="cpu")
            model.known_core = core
            model.split()
            prepare_model(model, _plain(stage))
            return _trace(model, stage, count, groups)


def _plain(stage: StageConfig) -> StageConfig:
    """The stage without what cannot be traced: compiled code keeps less than this trace says."""
    from dataclasses import replace

    return replace(stage, compile=False, float8=False)


def _trace(model: ShardedTransformer, stage: StageConfig, count: int, groups: dict[str, tuple[str, int]]) -> Simulation:
    step = ParallelStep(model, z_loss=stage.z_loss)
    parameters = [local_tensor(parameter) for parameter in model.parameters()]
    # As fused AdamW makes them: two moments of the masters' shape, and a count.
    moments = [torch.empty_like(part) for part in parameters for _ in range(2)] + [torch.empty(()) for _ in parameters]
    kept = max(_kept(model, chunk, stage) for chunk in model.chunks)
    tracker = MemoryTracker(groups)
    tracker.add([*parameters, *moments])
    tokens, documents, targets = _rows(model, stage, count * stage.micro_batch_size)
    pipeline = step.pipeline(count, stage.micro_batch_size, stage.sequence_length)
    step.total = count * stage.micro_batch_size * stage.sequence_length
    with tracker:
        pipeline.run(tokens, documents, targets)
        step.settle_gradients()
    gradients = sum(local_tensor(parameter.grad).nbytes for parameter in model.parameters() if parameter.grad is not None)
    parallel = model.mesh.config
    return Simulation(
        rank=model.mesh.rank,
        place=model.mesh.place,
        chunks=tuple(chunk_names(model.chunks)),
        num_parameters=sum(part.numel() for part in parameters),
        num_micro_batches=count,
        parameters=sum(part.nbytes for part in parameters),
        gradients=gradients,
        optimizer=sum(part.nbytes for part in moments),
        kept=kept,
        peak=tracker.peak,
        collectives=tracker.collectives(),
        bubble=bubble_share(parallel.mesh, count),
    )


def _rows(model: ShardedTransformer, stage: StageConfig, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    local = stage.sequence_length // model.mesh.config.cp
    tokens = torch.zeros(rows, local, dtype=torch.int64)
    return tokens, torch.zeros(rows, stage.sequence_length, dtype=torch.int16), torch.zeros_like(tokens)


def _kept(model: ShardedTransformer, chunk: Any, stage: StageConfig) -> int:
    """Bytes that the forward of one micro-batch leaves for the backward, its output among them; gathered parameters are not counted."""
    config = model.mesh.config
    tokens, documents, _ = _rows(model, stage, stage.micro_batch_size)
    x = tokens
    if not chunk.is_first:
        shape = (stage.micro_batch_size, stage.sequence_length // config.cp // config.tp, model.config.hidden_size)
        x = torch.empty(shape, dtype=model.stream_dtype, requires_grad=True)
    own = {id(local_tensor(parameter).untyped_storage()) for parameter in model.parameters()}
    tracker = MemoryTracker()
    with tracker:
        out = chunk(x, documents)
        kept = tracker.live
    # What FSDP has gathered is the parameters of the moment.
    storages = {id(part.untyped_storage()): part for part in map(local_tensor, model.parameters())}
    gathered = sum(part.untyped_storage().nbytes() for key, part in storages.items() if key not in own)
    del out
    model.forget_gathered()
    return kept - gathered
