"""Training state on disk: weights, optimiser moments, averages and a few counters. Resuming from it is bit-exact.

A state is a folder `step-00001000/` with `model.safetensors`, `optimizer.safetensors`, `average.safetensors` (where weights are averaged)
and `state.json` (the progress, a digest of each file and of the record itself). It is written whole or not at all: a temporary folder,
fsync, one rename. It is checked by digest when read: a damaged one is passed over, with a warning, for the one before it.
What writes states beside the training is `saver`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from herd.base.atomic import atomic_directory
from herd.base.errors import CheckpointError
from herd.base.log import get_logger
from herd.train.averaging import WeightAverage
from herd.train.pieces import read_whole

log = get_logger(__name__)

MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a stage has come: optimiser steps, samples read, counted tokens seen, seconds of training.

    `num_skipped` and `num_rollbacks` are the guard's, `recent_losses` what it compares with; `energy_j` is what the meter counted;
    `finished` that the stage ended before its last step, as a gate may have it.
    """

    step: int = 0
    num_samples: int = 0
    num_counted: int = 0
    seconds: float = 0.0
    num_skipped: int = 0
    num_rollbacks: int = 0
    recent_losses: tuple[float, ...] = ()
    energy_j: float = 0.0
    finished: bool = False


def progress_of(record: Mapping[str, Any]) -> Progress:
    """The progress in a state's record; what an older herd did not write has its default."""
    known = {item.name: record[item.name] for item in fields(Progress) if item.name in record}
    return Progress(**{**known, "recent_losses": tuple(known.get("recent_losses", ()))})


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Everything that a state holds, in tensors that no step changes any more."""

    progress: Progress
    run: str
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def files(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each file; one that would be empty is not written."""
        return {MODEL: self.model, OPTIMIZER: self.optimizer, **({AVERAGE: self.average} if self.average else {})}

    @property
    def size_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensors in self.files().values() for tensor in tensors.values())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(record: dict[str, Any]) -> str:
    """A digest of everything else in the record: a step or a counter with a flipped bit is damage too."""
    return hashlib.sha256(json.dumps({**record, "seal": None}, sort_keys=True).encode()).hexdigest()


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments by parameter name, as they are: not copied."""
    return {
        f"{name}/{key}": value.detach()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimiser copies of the moments in `tensors`, as `optimizer_tensors` names them, and no others."""
    for name, parameter in model.named_parameters():
        prefix = name + "/"
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        optimizer.state.pop(parameter, None)
        if state:
            optimizer.state[parameter] = {key: value.to(parameter.device).clone() for key, value in state.items()}


def take_snapshot(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    run: str,
    average: WeightAverage | None = None,
    into: Snapshot | None = None,
) -> Snapshot:
    """Copy everything to host memory: pinned where it comes from a GPU, and into the buffers of `into` where they fit."""

    def copied(tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: to_host(tensor.detach(), buffers.get(name)) for name, tensor in tensors.items()}

    old = into or Snapshot(progress=progress, run=run, model={}, optimizer={})
    snapshot = Snapshot(
        progress=progress,
        run=run,
        model=copied(model.state_dict(), old.model),
        optimizer=copied(optimizer_tensors(model, optimizer), old.optimizer),
        average=copied(average.tensors() if average else {}, old.average),
    )
    if any(parameter.is_cuda for parameter in model.parameters()):
        torch.cuda.synchronize()
    return snapshot


def to_host(tensor: Tensor, buffer: Tensor | None) -> Tensor:
    """A copy in host memory, in the buffer where it fits."""
    if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
        buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return buffer.copy_(tensor, non_blocking=tensor.is_cuda)


def write_snapshot(root: Path, snapshot: Snapshot, *, keep: int, keep_every: int = 0) -> Path:
    """Write a snapshot below `root` as the state of its step, then prune as `prune_states` does."""
    progress = snapshot.progress
    target = root / f"step-{progress.step:08d}"
    with atomic_directory(target, overwrite=True) as folder:
        files = snapshot.files()
        for name, tensors in files.items():
            save_file(tensors, folder / name)
        record = {**asdict(progress), "run": snapshot.run, "sha256": {name: _digest(folder / name) for name in files}}
        record = json.loads(json.dumps(record))
        (folder / "state.json").write_text(json.dumps({**record, "seal": seal(record)}, indent=1), encoding="utf-8")
    prune_states(root, keep=keep, keep_every=keep_every, newest=progress.step)
    return target


def save_state(
    root: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    run: str,
    keep: int,
    keep_every: int = 0,
    average: WeightAverage | None = None,
) -> Path:
    """Write the state of `progress.step` below `root` and wait for it; `run` names the config it belongs to."""
    snapshot = take_snapshot(model, optimizer, progress, run=run, average=average)
    return write_snapshot(root, snapshot, keep=keep, keep_every=keep_every)


def _step_of(folder: Path) -> int:
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def prune_states(root: Path, *, keep: int, keep_every: int = 0, newest: int | None = None) -> None:
    """Delete what is not to be kept below `root`.

    Kept are the newest `keep` states and those of every `keep_every`-th step. Deleted are all others, what a killed run left half
    written, and states past step `newest`: a damaged one that was passed over, or one that a rollback went behind.
    """
    states = sorted(root.glob("step-*"))
    later = [] if newest is None else [folder for folder in states if _step_of(folder) > newest]
    kept = [folder for folder in states if folder not in later]
    old = [folder for folder in kept[:-keep] if not keep_every or _step_of(folder) % keep_every]
    for folder in [*old, *later, *root.glob(".step-*")]:
        shutil.rmtree(folder)


def _read_state(folder: Path) -> dict[str, Any] | None:
    """The state's record if every file is there and whole, else None."""
    try:
        record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        # None: a state written before records were sealed.
        sealed = record.get("seal") in (None, seal(record))
        whole = sealed and (bool(record.get("pieces")) or {MODEL, OPTIMIZER} <= set(record["sha256"]))
        whole = whole and all(_digest(folder / name) == digest for name, digest in record["sha256"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if whole else None


def find_state(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest state below `root` whose files are whole, or None."""
    for folder in sorted(root.glob("step-*"), reverse=True):
        record = _read_state(folder)
        if record is not None:
            return folder, record
        log.warning("%s is damaged and is passed over", folder)
    return None


def set_aside(root: Path, *, newer_than: int) -> None:
    """Hide the damaged states that were passed over, so that they count as none; the next state that is written deletes them."""
    for folder in root.glob("step-*"):
        if _step_of(folder) > newer_than:
            try:
                folder.rename(folder.with_name(f".{folder.name}.damaged"))
            except OSError as error:
                log.warning("%s cannot be set aside: %s", folder, error.strerror)


def _tensors(folder: Path, record: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    """The tensors of one of a state's files; put together where the ranks of a mesh wrote them in pieces."""
    if record.get("pieces"):
        return read_whole(folder, record, kind)
    return load_file(folder / kind) if kind in record["sha256"] else {}


def load_state(
    root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, run: str, average: WeightAverage | None = None
) -> Progress | None:
    """Restore the newest whole state into the model, the optimiser and the average. None where there is none.

    Raises CheckpointError if it was written by a run of another configuration.
    """
    found = find_state(root)
    if found is None:
        return None
    folder, record = found
    if record["run"] != run:
        raise CheckpointError(
            f"{folder} was written by a run of another configuration ({record['run'][:12]}, this one is {run[:12]})",
            hint="choose another output folder, or pass --restart to begin anew",
        )
    set_aside(root, newer_than=_step_of(folder))
    model.load_state_dict(_tensors(folder, record, MODEL))
    restore_optimizer(model, optimizer, _tensors(folder, record, OPTIMIZER))
    if average is not None:
        average.restore(_tensors(folder, record, AVERAGE), model)
    return progress_of(record)
