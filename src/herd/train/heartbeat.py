"""A heartbeat for each process of a run, and a watchdog that names the one that hangs.

Every process writes `heartbeat/rank-00003.json` (step, phase, host, process, time), renamed into place; a thread beats the file on while
the training moves. When the training of a process has not moved for the limit, its watchdog reads all heartbeats, names the ranks that
are furthest behind (in a collective all wait: the culprit is the one that never came), writes every thread's stack beside them and ends the
process with `HUNG_EXIT_CODE`, so that torchrun or Slurm starts it again. Knows files and clocks, nothing of models.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from herd.base.log import get_logger

log = get_logger(__name__)

Phase = Literal["loader", "step", "evaluate", "save", "idle"]
"""Where in a step a process is; the order is that of a step."""

PHASES: tuple[Phase, ...] = ("loader", "step", "evaluate", "save", "idle")
HUNG_EXIT_CODE = 76
FOLDER = "heartbeat"


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """What a process told last.

    `moved_at` is when it last entered a phase, `written_at` when the file was written; seconds of the epoch.
    """

    rank: int
    step: int
    phase: Phase
    host: str
    pid: int
    moved_at: float
    written_at: float

    @property
    def place(self) -> tuple[int, int]:
        """How far it is: a later place is a later phase or step."""
        return self.step, PHASES.index(self.phase)


def process_rank() -> int:
    """This process's rank, as torchrun and Slurm give it; 0 alone."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def read_beats(folder: Path) -> list[Beat]:
    """The heartbeats in a folder, by rank; a file that is being replaced or is none is left out."""
    beats: list[Beat] = []
    for path in sorted(folder.glob("rank-*.json")):
        try:
            beats.append(Beat(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue
    return beats


def find_culprits(beats: list[Beat], *, now: float, limit_s: float) -> list[Beat]:
    """The processes to blame when a run stands still: those that died (a stale file), else those furthest behind.

    Empty while any process has moved within the limit.
    """
    if not beats or any(now - beat.moved_at <= limit_s for beat in beats):
        return []
    dead = [beat for beat in beats if now - beat.written_at > limit_s]
    furthest_behind = min(beat.place for beat in beats)
    return dead or [beat for beat in beats if beat.place == furthest_behind]


def describe(beat: Beat) -> str:
    """A process in words."""
    return f"rank {beat.rank} (process {beat.pid} on {beat.host}) in {beat.phase} of step {beat.step}"


class Heartbeat:
    """Beats for this process below `folder` and watches it. `limit_s` 0 beats without watching."""

    def __init__(
        self,
        folder: Path,
        *,
        limit_s: float,
        rank: int | None = None,
        on_hang: Callable[[str], None] | None = None,
        interval_s: float = 5.0,
    ) -> None:
        self.folder = folder / FOLDER
        self.limit_s = limit_s
        self.interval_s = min(interval_s, limit_s / 4) if limit_s else interval_s
        self.on_hang = on_hang or self._die
        now = time.time()
        self._beat = Beat(
            rank=process_rank() if rank is None else rank,
            step=0,
            phase="idle",
            host=socket.gethostname(),
            pid=os.getpid(),
            moved_at=now,
            written_at=now,
        )
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def path(self) -> Path:
        """This process's file."""
        return self.folder / f"rank-{self._beat.rank:05d}.json"

    def enter(self, phase: Phase, step: int) -> None:
        """The training has come to a phase of a step. Cheap: the file is written by the thread."""
        self._beat = replace(self._beat, phase=phase, step=step, moved_at=time.time())

    def __enter__(self) -> Heartbeat:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.enter("idle", self._beat.step)
        self.write()
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="herd-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for path in (self.path, self.path.with_suffix(".partial")):
            path.unlink(missing_ok=True)
        # Other ranks may be leaving too, or still be at work.
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def write(self) -> None:
        """Write the file. What the disk refuses is left for the next beat: a full disk must not stop a run that could go on."""
        self._beat = replace(self._beat, written_at=time.time())
        temporary = self.path.with_suffix(".partial")
        try:
            temporary.write_text(json.dumps(asdict(self._beat)), encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError as error:
            log.debug("no heartbeat written: %s", error)

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s):
            self.write()
            if self.limit_s and time.time() - self._beat.moved_at > self.limit_s:
                culprits = find_culprits(read_beats(self.folder), now=time.time(), limit_s=self.limit_s)
                if culprits:
                    self.on_hang(self._hung(culprits))
                    return

    def _hung(self, culprits: list[Beat]) -> str:
        names = ", ".join(describe(beat) for beat in culprits[:8]) + (f" and {len(culprits) - 8} more" if len(culprits) > 8 else "")
        stacks = self.folder / f"stacks-{self._beat.rank:05d}.txt"
        try:
            with stacks.open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            return f"nothing has moved for {self.limit_s:g} s: {names}"
        return f"nothing has moved for {self.limit_s:g} s: {names}; the stacks of rank {self._beat.rank} are in {stacks}"

    def _die(self, message: str) -> None:
        log.error("%s; this process ends with %d", message, HUNG_EXIT_CODE)
        # The main thread hangs in something that no exception reaches.
        os._exit(HUNG_EXIT_CODE)
