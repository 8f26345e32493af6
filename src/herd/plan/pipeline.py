"""The interleaved pipeline: which layers each rank has, how many micro-batches it holds at once, and how long it idles.

Embedding, layers and head are slots in a row that are cut into PP x V chunks as evenly as they go; chunk c is rank c mod PP's. The head
counts as as many slots as it has layers' worth of parameters, at least one. So the 405B, 126 layers and two ends on 16 ranks of 8 chunks,
has one slot a chunk: the first chunk is the embedding alone, the last the head alone, as the report says.
Idle share of a step: (PP - 1) / (V M) of its work, M micro-batches. Llama 3 report, section 3.3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from herd.base.errors import ConfigError
from herd.model.config import ModelConfig
from herd.plan.mesh import Mesh


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What one pipeline rank has: layers of each of its chunks, and perhaps the ends."""

    rank: int
    chunks: tuple[int, ...]
    has_embedding: bool
    has_head: bool

    @property
    def num_layers(self) -> int:
        """Of all its chunks."""
        return sum(self.chunks)


def stages(config: ModelConfig, mesh: Mesh) -> tuple[Stage, ...]:
    """Every pipeline rank's part. Raises ConfigError where a chunk would be too small for the head."""
    if mesh.pp == 1:
        return (Stage(rank=0, chunks=(config.num_hidden_layers,), has_embedding=True, has_head=True),)
    head = max(1, round(config.vocab_size * config.hidden_size / config.num_parameters_layer))
    count = mesh.pp * mesh.virtual_stages
    slots = 1 + config.num_hidden_layers + head
    if count > slots or slots // count < head:
        head = 1
        slots = 2 + config.num_hidden_layers
    if count > slots:
        raise ConfigError(f"{count} chunks are more than the {slots} slots of the model", hint="choose fewer pipeline or virtual stages")
    sizes = [slots // count + (1 if index < slots % count else 0) for index in range(count)]
    sizes[0] -= 1
    sizes[-1] -= head
    last = mesh.pp - 1
    return tuple(
        Stage(rank=rank, chunks=tuple(sizes[rank :: mesh.pp]), has_embedding=rank == 0, has_head=rank == last) for rank in range(mesh.pp)
    )


def run_length(mesh: Mesh, num_micro_batches: int) -> int:
    """Micro-batches that a chunk computes in a row before the next chunk of its rank, N of the report: as many as stages, or all."""
    if mesh.pp == 1:
        return 1
    return num_micro_batches // max(1, num_micro_batches // mesh.pp)


def in_flight(mesh: Mesh, rank: int, num_micro_batches: int) -> int:
    """Chunks whose activations a rank holds at most: what it computes forward before its first backward, and one more."""
    if mesh.pp == 1:
        return 1
    if mesh.virtual_stages == 1:
        return min(mesh.pp - rank, num_micro_batches)
    warm_up = 2 * (mesh.pp - rank - 1) + (mesh.virtual_stages - 1) * run_length(mesh, num_micro_batches)
    return min(warm_up + 1, num_micro_batches * mesh.virtual_stages)


def bubble_share(mesh: Mesh, num_micro_batches: int) -> float:
    """Idle time over working time."""
    return (mesh.pp - 1) / (mesh.virtual_stages * num_micro_batches)
