"""What every rank builds from its spec, rank 0 too: its share of the weights with a runner over it, and the schedule."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from herd.checkpoint.load import as_dtype
from herd.checkpoint.open import open_checkpoint
from herd.engine.blocks import BlockPool
from herd.engine.disk.block_file import BlockFormat
from herd.engine.disk.folder import BlockFolder
from herd.engine.disk.identity import rank_state
from herd.engine.memory import EngineConfig
from herd.engine.parallel.layout import Layout
from herd.engine.parallel.mesh import Mesh
from herd.engine.parallel.replica import Follower
from herd.engine.parallel.shard import Shard
from herd.engine.parallel.shard_runner import ShardRunner
from herd.engine.scheduler import Scheduler
from herd.kernels.dispatch import set_num_threads

LINE_TIMEOUT_S = 600.0
"""The longest that a rank waits for another's tensor: for one that hangs, `workers` is quicker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankSpec:
    """All that a rank is told at its start.

    Attributes:
        rank, tp, pp: its place.
        folder: where the ranks meet.
        path: the checkpoint.
        dtype: of weights and activations, by name.
        sizes: the engine's, context and number of blocks set.
        vocab_size: ids that can be drawn.
        key: the secret of the cache's digests, in hexadecimal; with a `prefix_dir` that folder's.
        threads: of this process.
        log_level: None says nothing.
    """

    rank: int
    tp: int
    pp: int
    folder: str
    path: str
    dtype: str
    sizes: EngineConfig
    vocab_size: int
    key: str
    threads: int
    log_level: str | None = None

    @property
    def layout(self) -> Layout:
        """Who holds what."""
        return Layout(tp=self.tp, pp=self.pp)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RankSpec:
        """The spec of `to_dict`."""
        return cls(**{**data, "sizes": EngineConfig(**data["sizes"])})


def make_runner(spec: RankSpec) -> ShardRunner:
    """Meet the others, then load and pack this rank's share. Raises as `open_checkpoint`, RuntimeError where a rank does not come."""
    if spec.rank:
        torch.set_num_threads(spec.threads)
    set_num_threads(spec.threads)
    dtype = as_dtype(spec.dtype)
    with open_checkpoint(Path(spec.path)) as source:
        mesh = Mesh(
            spec.layout,
            spec.rank,
            Path(spec.folder),
            max_tokens=spec.sizes.token_budget,
            width=source.config.hidden_size,
            dtype=dtype,
            timeout_s=LINE_TIMEOUT_S,
        )
        hashed = spec.sizes.prefix_dir is not None
        shard = Shard(source, spec.layout, spec.rank, dtype=dtype, vocab_size=spec.vocab_size, hashed=hashed)
        return ShardRunner(shard, mesh, spec.sizes, vocab_size=spec.vocab_size)


def schedule_sizes(spec: RankSpec) -> dict[str, Any]:
    """The arguments of a scheduler beside its pool."""
    sizes = spec.sizes
    limits = {"token_budget": sizes.token_budget, "max_sequences": sizes.max_sequences, "max_context": sizes.context}
    return {**limits, "clock": time.monotonic}


def make_pool(spec: RankSpec) -> BlockPool:
    """The cache's blocks."""
    assert spec.sizes.num_blocks is not None
    return BlockPool(spec.sizes.num_blocks, spec.sizes.block_size, key=bytes.fromhex(spec.key))


def open_share(spec: RankSpec, runner: ShardRunner, shares: Sequence[str]) -> BlockFolder:
    """The folder for this rank's shares of blocks, given the name of every rank's share of the model."""
    assert spec.sizes.prefix_dir is not None
    format = BlockFormat(layout=runner.block_layout, content_bytes=runner.block_bytes, key=bytes.fromhex(spec.key))
    most, writers = spec.sizes.prefix_dir_bytes, max(4, spec.layout.size)
    return BlockFolder(Path(spec.sizes.prefix_dir), rank_state(shares, spec.rank), format, max_bytes=most, num_writers=writers)


def make_follower(spec: RankSpec) -> Follower:
    """The schedule of a rank other than 0."""
    return Follower(Scheduler(make_pool(spec), **schedule_sizes(spec)), rank=spec.rank, size=spec.layout.size)
