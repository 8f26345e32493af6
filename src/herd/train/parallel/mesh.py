"""The device mesh of a run, and where this process sits in it.

`dp_shard` and `cp` together are the dimension `shard` along which FSDP cuts: context parallel ranks have the same parameters and add up
their gradients as data parallel ranks do. Knows process groups, nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from herd.base.errors import ConfigError
from herd.kernels.torch_compat import flatten_mesh
from herd.train.parallel.config import DIMENSIONS, ParallelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMesh:
    """The mesh as one rank sees it: its dimensions, those of `DIMENSIONS` and `shard`, each as a mesh, and what FSDP takes."""

    config: ParallelConfig
    meshes: dict[str, Any]
    fsdp_mesh: Any
    device: torch.device
    rank: int
    place: dict[str, int]

    def group(self, name: str) -> Any:
        """The process group of this rank along a dimension."""
        return self.meshes[name].get_group()

    def submesh(self, name: str) -> Any:
        """One dimension as a mesh."""
        return self.meshes[name]

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP is at work: several ranks have the same stage and slice of the model."""
        return self.config.dp * self.config.cp > 1

    @property
    def dp_index(self) -> int:
        """Which part of a batch's rows is this rank's."""
        return self.place["dp_replicate"] * self.config.dp_shard + self.place["dp_shard"]

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank has the head."""
        return self.place["pp"] == self.config.pp - 1

    def sum(self, values: list[float]) -> list[float]:
        """Numbers added up over all ranks, in float64."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()


def build_mesh(config: ParallelConfig, device: torch.device | str) -> RankMesh:
    """The mesh over the default process group. Raises ConfigError where its size is not the number of processes."""
    world = dist.get_world_size()
    if world != config.world_size:
        sizes = " x ".join(f"{name} {getattr(config, name)}" for name in DIMENSIONS)
        raise ConfigError(
            f"the mesh has {config.world_size} ranks ({sizes}), there are {world} processes",
            hint=f"start {config.world_size} processes, or set parallel.dp_shard so that the product is {world}",
        )
    kind = torch.device(device)
    shape = tuple(getattr(config, name) for name in DIMENSIONS)
    mesh = init_device_mesh(kind.type, shape, mesh_dim_names=DIMENSIONS)
    rank = dist.get_rank()
    shard = flatten_mesh(mesh["dp_shard", "cp"], "shard")
    return RankMesh(
        config=config,
        meshes={**{name: mesh[name] for name in DIMENSIONS}, "shard": shard},
        fsdp_mesh=shard if config.dp_replicate == 1 else mesh["dp_replicate", "shard"],
        device=kind,
        rank=rank,
        place=config.coordinates(rank),
    )


def all_equal(tensor: Tensor) -> bool:
    """Whether an integer tensor is the same on every rank."""
    low, high = tensor.clone(), tensor.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN)
    dist.all_reduce(high, op=dist.ReduceOp.MAX)
    return bool(torch.equal(low, high))
