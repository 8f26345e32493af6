"""The processes of a run: joined as torchrun or Slurm started them, doing what one of them has to do first in that order.

Knows environment variables and process groups; what the processes do together is the trainer's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from herd.base.errors import ConfigError, UsageError
from herd.kernels.torch_compat import kill_process_group
from herd.train.parallel.config import ParallelConfig


def started_processes() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes what one process writes: the only one, or rank 0."""
    return not dist.is_initialized() or dist.get_rank() == 0


def local_device(device: str) -> str:
    """This process's device: one GPU each where they run on GPUs."""
    if device != "cuda":
        return device
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise UsageError(
            f"process {number} of this machine has no GPU: there are {torch.cuda.device_count()}", hint="start one process a GPU"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"


@contextmanager
def joined(config: ParallelConfig, device: str) -> Iterator[None]:
    """Join the other processes for the time of the block; nothing for a mesh of one.

    Raises UsageError where there is no launcher, ConfigError where it started another number than the mesh has.
    """
    started = started_processes()
    if config.world_size == started == 1:
        yield
        return
    if started == 1:
        raise UsageError(
            f"the mesh has {config.world_size} ranks, and this is one process",
            hint=f"herd launch RECIPE parallel... starts torchrun (--nproc-per-node {config.world_size} on one machine)",
        )
    if started != config.world_size:
        raise ConfigError(
            f"the mesh has {config.world_size} ranks, {started} processes were started",
            hint=f"set parallel.dp_shard={started} for plain FSDP, or start {config.world_size} processes",
        )
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    wait = timedelta(seconds=config.timeout_s)
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=wait)))  # pyright: ignore[reportPrivateImportUsage]
    # torchrun's store outlives a restart: under the same names gloo would look for the processes that died.
    named = dist.PrefixStore(f"herd/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(backend, store=named, rank=rank, world_size=size, timeout=wait)
    try:
        yield
    finally:
        kill_process_group()


@contextmanager
def first_rank_first() -> Iterator[None]:
    """The first rank runs the block before the others: it makes files that they then find."""
    if not dist.is_initialized():
        yield
        return
    if dist.get_rank():
        dist.barrier()
    yield
    # After an error the first rank leaves, and its launcher ends those that wait.
    if dist.get_rank() == 0:
        dist.barrier()


def wait_for_all() -> None:
    """Go on when all ranks have come here."""
    if dist.is_initialized():
        dist.barrier()
