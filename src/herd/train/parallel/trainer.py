"""The loop of a stage on a mesh: `train.trainer` with its steps, scores and states made by all ranks together.

The first rank writes the log; every rank beats and watches, takes signals, and writes its pieces of a state. What a rank decides by itself
(a signal) is agreed on before it counts, so that none waits in a collective for one that has left. Data order, guard, schedule and resuming
are those of one process; a run may go on on another mesh.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from herd.base.errors import ConfigError, HerdError
from herd.data.rows import Rows
from herd.kernels.torch_compat import local_tensor
from herd.train.batch import AnyBatch
from herd.train.config import StageConfig
from herd.train.heartbeat import Heartbeat
from herd.train.mixing import cut_rows
from herd.train.objectives.by_source import KnowsSources, with_sources
from herd.train.objectives.next_token import NextToken
from herd.train.parallel.model import ShardedTransformer
from herd.train.parallel.state import ShardedSaver, load_sharded
from herd.train.parallel.step import ParallelStep
from herd.train.profiling import StepProfiler
from herd.train.replicas import odd_replicas, tensor_hash
from herd.train.run_log import RunLog
from herd.train.schedule import Phase as StepPhase
from herd.train.state import Progress
from herd.train.step import StepResult
from herd.train.trainer import HeldOut, Trainer
from herd.train.update import Accept


class ReplicasDifferError(HerdError):
    """Ranks that have to hold the same weights do not."""

    code = "replicas_differ"


class _SilentLog(RunLog):
    """The log of a rank that is not the first."""

    def open_sinks(self, *, tensorboard: bool, wandb: bool, done: int) -> None:
        """Nothing."""

    def write(self, record: Any) -> None:
        """Nothing."""

    def event(self, name: str, **values: Any) -> None:
        """Nothing."""

    def trim(self, step: int) -> None:
        """Nothing."""


class ParallelTrainer(Trainer):
    """`Trainer` for a `ShardedTransformer`; every rank of its mesh makes one and calls the same methods."""

    model: ShardedTransformer

    def __init__(self, model: ShardedTransformer, stage: StageConfig, mixture: Any, *, folder: Path, run: str, **rest: Any) -> None:
        super().__init__(model, stage, mixture, folder=folder, run=run, **rest)
        if not isinstance(self.objective, NextToken):
            raise ConfigError("a mesh trains on the loss of the next token alone", hint="run this method in one process")
        self.mesh = model.mesh
        self.num_devices = self.mesh.config.world_size
        for phase in self.plan.phases:
            check_phase(self.mesh.config, phase)
        names = mixture.names if isinstance(mixture, KnowsSources) and len(mixture.names) > 1 else ()
        self.steps = ParallelStep(model, z_loss=stage.z_loss, source_names=names)
        self.heartbeat = Heartbeat(folder, limit_s=stage.hang_timeout_s, rank=self.mesh.rank)
        self.saver = ShardedSaver(
            self.states,
            timeout_s=self.mesh.config.timeout_s,
            run=run,
            keep=stage.keep_states,
            keep_every=stage.keep_every,
            background=stage.save_async,
            max_failures=stage.max_failed_saves,
        )
        if self.mesh.rank:
            self.log = _SilentLog(folder)
            self.profiler = StepProfiler((), folder / "profile")

    def _restore(self) -> Progress | None:
        progress = load_sharded(self.states, self.model, self.optimizer, run=self.run, average=self.average)
        if progress is not None:
            self.guard.losses = list(progress.recent_losses)
        return progress

    def _batch(self, first: int, phase: StepPhase) -> AnyBatch:
        count = phase.num_samples // self.mesh.config.dp
        first += self.mesh.dp_index * count
        return cut_rows(with_sources(self.mixture, self.mixture.batch(first, count), first=first), phase.sequence_length)

    def _train_step(self, batch: AnyBatch, stage: StageConfig, *, lr: float, accept: Accept) -> StepResult:
        return self.steps(self.optimizer, batch, stage, lr=lr, accept=accept)

    def _score(self, heldout: HeldOut) -> float:
        """Bits per byte; each data parallel rank takes its share of the rows, filled up with rows that do not count."""
        config, rows = self.mesh.config, heldout.rows
        micro = min(8, max(1, len(rows) // config.dp))
        share = (
            -(-len(rows) // config.dp // micro) * micro if len(rows) % config.dp == 0 else -(-(len(rows) // config.dp + 1) // micro) * micro
        )
        part = _filled(rows, self.mesh.dp_index * share, share)
        length = part[0].shape[1] - 1
        piece = (2 * config.cp if config.cp > 1 else 1) * config.tp
        total = self.steps.loss_sum(_widened(part, -length % piece), micro_batch_size=micro)
        return total / float(np.log(2)) / heldout.num_bytes

    def _is_asked_to_stop(self) -> bool:
        flag = torch.tensor([int(bool(self.should_stop()))], device=self.model.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def _prune(self) -> None:
        if self.mesh.rank == 0:
            super()._prune()

    def _energy_j(self) -> float:
        """Of all devices where each has a meter of its own; a processor's is the machine's already."""
        mine = self.meter.lap()
        return self.mesh.sum([mine])[0] if self.model.device.type == "cuda" else mine

    def _was_averaged(self) -> bool:
        found = [super()._was_averaged() if self.mesh.rank == 0 else None]
        dist.broadcast_object_list(found, src=0)
        return bool(found[0])

    def _parameter_hash(self) -> str:
        """One hash of all ranks'. Raises ReplicasDifferError where replicas of the same part are not equal."""
        digest = hashlib.blake2b(digest_size=16)
        for name, parameter in sorted(self.model.named_parameters()):
            digest.update(f"{name}:{tensor_hash(local_tensor(parameter)):016x}\n".encode())
        found: list[Any] = [None] * self.num_devices
        dist.all_gather_object(found, (self.mesh.place, digest.hexdigest()))
        check_replicas(found)
        return hashlib.blake2b("\n".join(value for _, value in found).encode(), digest_size=16).hexdigest()


def check_replicas(found: list[tuple[dict[str, int], str]]) -> None:
    """Raise ReplicasDifferError, naming the ranks, where ranks that differ in `dp_replicate` alone have different hashes."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for rank, (place, _) in enumerate(found):
        groups.setdefault(tuple(place[name] for name in ("dp_shard", "pp", "cp", "tp")), []).append(rank)
    odd = [ranks[place] for ranks in groups.values() for place in odd_replicas([found[rank][1] for rank in ranks])]
    if odd:
        raise ReplicasDifferError(
            f"the weights of ranks {', '.join(map(str, sorted(odd)))} are not those of their replicas",
            hint="a device may be computing wrong: take these out, and run the same command to go on from the last state",
        )


def check_phase(config: Any, phase: StepPhase) -> None:
    """Raises ConfigError for a phase whose rows the mesh cannot share out."""
    config.check_rows(length=phase.sequence_length, batch_size=phase.batch_size, micro_batch_size=phase.micro_batch_size)
    if phase.num_samples % config.dp:
        raise ConfigError(
            f"{phase.num_samples} rows a step are no multiple of {config.dp} data parallel ranks", hint="choose another batch or dp"
        )


def _filled(rows: Rows, first: int, count: int) -> tuple[Any, Any, Any]:
    """Rows first..first+count-1; past the end come copies of the first row in which nothing counts."""
    places = np.arange(first, first + count)
    taken = np.where(places < len(rows), places, 0)
    return rows.tokens[taken], rows.documents[taken], rows.counts[taken] & (places < len(rows))[:, None]


def _widened(part: tuple[Any, Any, Any], more: int) -> tuple[Any, Any, Any]:
    """Rows with `more` tokens at their end, in which nothing counts."""
    if not more:
        return part
    tokens, documents, counts = part
    return (
        np.pad(tokens, ((0, 0), (0, more))),
        np.pad(documents, ((0, 0), (0, more)), constant_values=-1),
        np.pad(counts, ((0, 0), (0, more))),
    )
