"""The log of a stage: JSON lines, one object a record, and where else they go (TensorBoard, Weights & Biases).

`log.jsonl` is the log of the run as if it had never been interrupted: a resumed or rolled-back run trims it to its state. What a clock or
the machine measures is under `machine`, so that the rest is equal, bit for bit, between runs. `events.jsonl` is the log of what really
happened: every start, end and rollback with its time. Knows numbers and files only.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from herd.base.atomic import atomic_file
from herd.base.errors import ConfigError
from herd.base.log import get_logger

log = get_logger(__name__)

LOG, EVENTS = "log.jsonl", "events.jsonl"


@runtime_checkable
class Sink(Protocol):
    """Somewhere else that numbers go to."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Take named numbers of a step."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a record by its path, as `heldout/en`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, float(value)


class TensorBoardSink:
    """TensorBoard's event files in `folder`; steps past `done` that an interrupted run wrote are hidden."""

    def __init__(self, folder: Path, *, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Add scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and end."""
        self._writer.close()


class WandbSink:
    """Weights & Biases: the run is named by its folder; their own variables (WANDB_PROJECT, WANDB_MODE) set the rest."""

    def __init__(self, folder: Path) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError("wandb=true, and the package wandb is not installed", hint="pip install 'llama-herd[wandb]'") from error
        self._run: Any = wandb.init(name=f"{folder.parent.name}-{folder.name}", dir=str(folder), resume="allow")

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Flush and end."""
        self._run.finish()


class RunLog:
    """The two files of a stage's folder, and the sinks while it trains."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sinks: list[Sink] = []
        self._pending: dict[str, str] = {LOG: "", EVENTS: ""}

    @property
    def path(self) -> Path:
        """The log."""
        return self.folder / LOG

    def open_sinks(self, *, tensorboard: bool, wandb: bool, done: int) -> None:
        """Begin to write elsewhere too."""
        if tensorboard:
            self.sinks.append(TensorBoardSink(self.folder / "tensorboard", done=done))
        if wandb:
            self.sinks.append(WandbSink(self.folder))

    def close_sinks(self) -> None:
        """End what `open_sinks` began."""
        for sink in self.sinks:
            sink.close()
        self.sinks.clear()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record, which has a `step`."""
        self._append(LOG, record)
        values = {name: value for name, value in flat(record) if name != "step"}
        for sink in self.sinks:
            sink.write(values, int(record["step"]))

    def event(self, name: str, **values: Any) -> None:
        """Append what happened to `events.jsonl`, with the time."""
        self._append(EVENTS, {"event": name, "time": round(time.time(), 3), **values})

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        """Append a line. What a full disk refuses is kept and written with the next one: no log is worth a run."""
        told = bool(self._pending[name])
        self._pending[name] += json.dumps(record) + "\n"
        path = self.folder / name
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(self._pending[name])
        except OSError as error:
            if path.exists():
                os.truncate(path, size)
            if not told:
                log.warning("%s cannot be written: %s; its lines are kept and tried again with the next", path, error.strerror)
        else:
            self._pending[name] = ""

    def first_start(self) -> float | None:
        """When the run was started for the first time, in seconds of the epoch."""
        events = read_lines(self.folder / EVENTS)
        return events[0]["time"] if events else None

    def trim(self, step: int) -> None:
        """Drop records past `step`, which will be trained again, and what an interruption cut short."""
        self._pending[LOG] = ""
        for stale in self.folder.glob(f".{LOG}.*"):
            stale.unlink()
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= step]
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole records of a file of JSON lines; none where there is no file. A last line that was cut short is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]


def effective_time(folder: Path, productive_s: float) -> float | None:
    """The share of the time since the first start that went into steps that count; None before anything was logged.

    Lost are: starting, saving, evaluating, steps trained twice, and the time between an end and the next start.
    """
    events = read_lines(folder / EVENTS)
    if not events:
        return None
    last = [record["machine"]["time"] for record in read_lines(folder / LOG)[-1:] if "time" in record.get("machine", {})]
    elapsed = max([events[-1]["time"], *last]) - events[0]["time"]
    return min(1.0, productive_s / elapsed) if elapsed > 0 else None
