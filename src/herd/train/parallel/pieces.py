"""Which part of a whole tensor a rank has: a box of consecutive indices. The words in which sharded states and initial values are told.

Tensor parallel ranks cut first, FSDP ranks cut what is left; both cut as `torch.chunk` does. Knows DTensors, nothing of models or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from herd.kernels.torch_compat import local_tensor


@dataclass(frozen=True, slots=True)
class Box:
    """The first index and the length along every dimension of the whole."""

    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """For indexing the whole tensor."""
        return tuple(slice(start, start + size) for start, size in zip(self.starts, self.sizes, strict=True))

    @property
    def is_empty(self) -> bool:
        """Whether a rank beyond the last index has it."""
        return 0 in self.sizes

    def overlap(self, other: Box) -> Box | None:
        """What both have."""
        starts = tuple(map(max, self.starts, other.starts))
        ends = [min(a + n, b + m) for a, n, b, m in zip(self.starts, self.sizes, other.starts, other.sizes, strict=True)]
        sizes = tuple(end - start for start, end in zip(starts, ends, strict=True))
        return Box(starts, sizes) if all(size > 0 for size in sizes) else None

    def within(self, whole: Box) -> tuple[slice, ...]:
        """For indexing a tensor that holds `whole`."""
        return tuple(
            slice(start - first, start - first + size) for start, first, size in zip(self.starts, whole.starts, self.sizes, strict=True)
        )


def whole_box(shape: tuple[int, ...]) -> Box:
    """Everything."""
    return Box((0,) * len(shape), tuple(shape))


def _cut(start: int, size: int, parts: int, index: int) -> tuple[int, int]:
    step = -(-size // parts)
    first = min(index * step, size)
    return start + first, min(step, size - first)


def box_of(tensor: Tensor) -> Box:
    """The part of a tensor that this rank has; everything for a tensor that is not distributed."""
    if not isinstance(tensor, DTensor):
        return whole_box(tuple(tensor.shape))
    starts, sizes = [0] * tensor.dim(), list(tensor.shape)
    mesh: Any = tensor.device_mesh
    names, place = mesh.mesh_dim_names or (), mesh.get_coordinate()
    order = sorted(range(mesh.ndim), key=lambda number: names[number] != "tp")
    for number in order:
        placement: Any = tensor.placements[number]
        if placement.is_shard() or hasattr(placement, "split_factor"):
            dim = placement.dim
            starts[dim], sizes[dim] = _cut(starts[dim], sizes[dim], mesh.size(number), place[number])
    return Box(tuple(starts), tuple(sizes))


def is_first_copy(tensor: Tensor, place: dict[str, int]) -> bool:
    """Whether, of the ranks that have this very part, this one speaks for it. `place` is that of the rank in the mesh."""
    if not isinstance(tensor, DTensor):
        return all(place[name] == 0 for name in ("dp_replicate", "dp_shard", "cp", "tp"))
    mesh: Any = tensor.device_mesh
    cut = {
        name
        for name, placement in zip(mesh.mesh_dim_names or (), tensor.placements, strict=True)
        if placement.is_shard() or hasattr(placement, "split_factor")
    }
    inside = cut | ({"dp_shard", "cp"} if "shard" in cut else set())
    return all(place[name] == 0 for name in ("dp_replicate", "dp_shard", "cp", "tp") if name not in inside)


def local_part(tensor: Tensor) -> Tensor:
    """The values that this rank has, sharing memory."""
    return local_tensor(tensor.detach())
