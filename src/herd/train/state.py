"""Training state on disk: weights, optimiser moments and one counter. Resuming from it is bit-exact.

A state is a folder `step-00001000/` with `model.safetensors`, `optimizer.safetensors` and `state.json` (step, loader counter, a digest of
each file and of the record itself). It is written whole or not at all, and checked by digest when read: a damaged one is passed over,
with a warning, for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from herd.base.atomic import atomic_directory
from herd.base.errors import CheckpointError
from herd.base.log import get_logger

log = get_logger(__name__)

_FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a stage has come: optimiser steps, samples read, counted tokens seen, seconds of training."""

    step: int = 0
    num_samples: int = 0
    num_counted: int = 0
    seconds: float = 0.0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(record: dict[str, Any]) -> str:
    """A digest of everything else in the record: a step or a counter with a flipped bit is damage too."""
    return hashlib.sha256(json.dumps({**record, "seal": None}, sort_keys=True).encode()).hexdigest()


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.detach().clone().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def save_state(root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, *, run: str, keep: int) -> Path:
    """Write the state of `progress.step` below `root`; `run` names the config it belongs to.

    Deletes all but the newest `keep` states, as `prune_states` does.
    """
    target = root / f"step-{progress.step:08d}"
    with atomic_directory(target, overwrite=True) as folder:
        save_file({name: value.detach().contiguous() for name, value in model.state_dict().items()}, folder / _FILES[0])
        save_file(_optimizer_tensors(model, optimizer), folder / _FILES[1])
        record = {
            "step": progress.step,
            "num_samples": progress.num_samples,
            "num_counted": progress.num_counted,
            "seconds": progress.seconds,
            "run": run,
            "sha256": {name: _digest(folder / name) for name in _FILES},
        }
        (folder / "state.json").write_text(json.dumps({**record, "seal": _seal(record)}, indent=1), encoding="utf-8")
    prune_states(root, keep=keep)
    return target


def prune_states(root: Path, *, keep: int) -> None:
    """Delete all but the newest `keep` states below `root`, and what a killed run left half written."""
    for old in [*sorted(root.glob("step-*"))[:-keep], *root.glob(".step-*")]:
        shutil.rmtree(old)


def _read_state(folder: Path) -> dict[str, Any] | None:
    """The state's record if every file is there and whole, else None."""
    try:
        record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        # None: a state written before records were sealed.
        whole = record.get("seal") in (None, _seal(record)) and all(_digest(folder / name) == record["sha256"][name] for name in _FILES)
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


def load_state(root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, run: str) -> Progress | None:
    """Restore the newest whole state into the model and optimiser. None where there is none.

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
    model.load_state_dict(load_file(folder / _FILES[0]))
    moments = load_file(folder / _FILES[1])
    for name, parameter in model.named_parameters():
        prefix = name + "/"
        state = {key.removeprefix(prefix): value.to(parameter.device) for key, value in moments.items() if key.startswith(prefix)}
        if state:
            optimizer.state[parameter] = state
    return Progress(step=record["step"], num_samples=record["num_samples"], num_counted=record["num_counted"], seconds=record["seconds"])
