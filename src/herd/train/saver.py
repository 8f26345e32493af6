"""Writes states beside the training: a copy in host memory is taken between two steps, a thread writes it, and one is in flight at most.

A save that fails (a full disk, a read-only one) is told at once and tried again at the next interval; the states before it stay. After
`max_failures` in a row, or when the last state of a run cannot be written, it is an error. Knows snapshots and folders, nothing of steps.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from herd.base.errors import CheckpointError, HerdError
from herd.base.log import get_logger
from herd.train.averaging import WeightAverage
from herd.train.state import Progress, Snapshot, take_snapshot, write_snapshot

log = get_logger(__name__)


class StateNotSavedError(CheckpointError):
    """A training state could not be written; the ones before it are untouched."""

    code = "state_not_saved"


class StateSaver:
    """Saves the states of one run below `root`. Use as a context manager: leaving it waits for what is in flight."""

    def __init__(self, root: Path, *, run: str, keep: int, keep_every: int = 0, background: bool = True, max_failures: int = 3) -> None:
        self.root, self.run = root, run
        self.keep, self.keep_every = keep, keep_every
        self.background, self.max_failures = background, max_failures
        self.num_failures = 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._buffers: Snapshot | None = None

    def __enter__(self) -> StateSaver:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # On the way out of an error the error of a save would hide the first one.
        self._join()
        if kind is None:
            self._check(last=False)
        elif self._error is not None:
            log.warning("the training state in flight could not be written below %s: %s", self.root, _reason(self._error))
        self._buffers = None

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        *,
        average: WeightAverage | None = None,
        last: bool = False,
    ) -> None:
        """Save the present state. `last` waits until it is on the disk.

        Raises StateNotSavedError when a last state, or too many in a row, could not be written.
        """
        self.wait()
        snapshot = self.snapshot(model, optimizer, progress, average=average)
        self._buffers = snapshot
        if self.background and not last:
            # Not a daemon: a process that ends meanwhile lets the write end.
            self._thread = threading.Thread(target=self._write, args=(snapshot,), name="herd-state-saver")
            self._thread.start()
        else:
            self._write(snapshot)
            self._check(last=last)

    def snapshot(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, *, average: WeightAverage | None = None
    ) -> Snapshot:
        """A copy of the present state, in the buffers of the one before it."""
        return take_snapshot(model, optimizer, progress, run=self.run, average=average, into=self._buffers)

    def write(self, snapshot: Snapshot) -> None:
        """Write a copy to the disk; in the thread of the saver, unless it is the last one."""
        write_snapshot(self.root, snapshot, keep=self.keep, keep_every=self.keep_every)

    def wait(self) -> None:
        """Wait for the state in flight. Raises what `save` does."""
        self._join()
        self._check(last=False)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, snapshot: Snapshot) -> None:
        try:
            self.write(snapshot)
        except BaseException as error:  # it belongs to the thread that trains: `_check` raises it there
            self._error = error
        else:
            self.num_failures = 0

    def _check(self, *, last: bool) -> None:
        error, self._error = self._error, None
        if error is None:
            return
        if not isinstance(error, OSError | SafetensorError | HerdError):
            raise error
        self.num_failures += 1
        what = f"the training state could not be written below {self.root}: {_reason(error)}"
        if last or self.num_failures >= self.max_failures:
            times = f" ({self.num_failures} times in a row)" if self.num_failures > 1 else ""
            raise StateNotSavedError(
                what + times, hint="free space or mend the disk, then run the same command: it goes on from the newest whole state"
            ) from error
        log.warning("%s; training goes on and tries again at the next interval (%d of %d)", what, self.num_failures, self.max_failures)


def _reason(error: BaseException) -> str:
    """What the system said, without the library's wrapping."""
    if isinstance(error, HerdError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return re.sub(r"^.*I/O error: |\s*\(os error \d+\)$", "", str(error))
