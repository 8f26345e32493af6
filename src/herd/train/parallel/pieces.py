"""Which part of a whole tensor a rank has: a box of consecutive indices. The words in which sharded states and initial values are told.

Tensor parallel ranks cut first, FSDP ranks cut what is left; both cut as `torch.chunk` does. Knows DTensors, nothing of models or files.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from herd.kernels.torch_compat import local_tensor
from herd.train.pieces import Box, whole_box


def _cut(start: int, size: int, parts: int, index: int) -> tuple[int, int]:
    step = -(-size // parts)
    first = min(index * step, size)
    return start + first, min(step, size - first)


def _is_cut(placement: Any) -> bool:
    # FSDP over a tensor parallel cut has a placement of its own, which says no to is_shard() in some versions.
    return placement.is_shard() or hasattr(placement, "split_factor")


def box_of(tensor: Tensor) -> Box:
    """The part of a tensor that this rank has; everything for a tensor that is not distributed."""
    if not isinstance(tensor, DTensor):
        return whole_box(tensor.shape)
    starts, sizes = [0] * tensor.dim(), list(tensor.shape)
    mesh: Any = tensor.device_mesh
    names, place = mesh.mesh_dim_names or (), mesh.get_coordinate()
    for number in sorted(range(mesh.ndim), key=lambda number: names[number] != "tp"):
        placement: Any = tensor.placements[number]
        if _is_cut(placement):
            dim = placement.dim
            starts[dim], sizes[dim] = _cut(starts[dim], sizes[dim], mesh.size(number), place[number])
    return Box(tuple(starts), tuple(sizes))


def is_first_copy(tensor: Tensor, place: dict[str, int]) -> bool:
    """Whether, of the ranks that have this very part, this one speaks for it. `place` is that of the rank in the mesh."""
    cut: set[str] = set()
    if isinstance(tensor, DTensor):
        mesh: Any = tensor.device_mesh
        cut = {name for name, placement in zip(mesh.mesh_dim_names or (), tensor.placements, strict=True) if _is_cut(placement)}
    if "shard" in cut:
        cut |= {"dp_shard", "cp"}
    return all(place[name] == 0 for name in ("dp_replicate", "dp_shard", "cp", "tp") if name not in cut)


def local_part(tensor: Tensor) -> Tensor:
    """The values that this rank has, sharing memory."""
    return local_tensor(tensor.detach())
