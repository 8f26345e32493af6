"""Training runs as the page shows them: the folders that `herd train` left in one place, and the curves of each. Read-only.

A run is a folder with a `config.toml`; its stages are the folders below it that hold a `log.jsonl` (see `train.run_log`). What a request
names is looked up among the folders that were found, never joined to a path. However long a log is, so many points come of it: every n-th
record, n doubling as it grows, and the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from herd.base.errors import did_you_mean
from herd.stack.answers import json_response
from herd.stack.config import ServerConfig
from herd.stack.errors import RequestError
from herd.stack.guard import Context
from herd.train.run_log import EVENTS, LOG, flat, read_lines

MAX_RUNS = 100
MAX_SERIES = 40
MAX_EVENTS_BYTES = 4 * 2**20
SILENT_S = 1800
_LEFT_OUT = ("step", "num_counted")


@dataclass
class Thinned:
    """At most twice `points` records of a stream, evenly spread, and the last one."""

    points: int
    every: int = 1
    seen: int = 0
    kept: list[bytes] = field(default_factory=list[bytes])
    last: bytes = b""

    def take(self, line: bytes) -> None:
        """The next record."""
        self.last = line
        if self.seen % self.every == 0:
            self.kept.append(line)
            if len(self.kept) >= 2 * self.points:
                self.kept, self.every = self.kept[::2], self.every * 2
        self.seen += 1

    def records(self) -> Iterator[dict[str, Any]]:
        """Those that were kept, in order."""
        lines = self.kept if not self.last or self.kept[-1:] == [self.last] else [*self.kept, self.last]
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield cast("dict[str, Any]", record)


def training_routes(config: ServerConfig) -> APIRouter:
    """The routes. Of a server's keys only those with `admin=1` may read: runs belong to whoever runs the machine, not to tenants."""
    router = APIRouter()
    place = Path(config.runs_dir) if config.runs_dir else None

    def check(request: Request) -> None:
        key = cast("Context", request.scope["herd"]).key
        if key is not None and not key.admin:
            message = f"the key {key.name!r} may not see training runs"
            raise RequestError("forbidden", message, hint="write admin=1 behind it in the key file, and start the server anew")

    @router.get("/v1/herd/training-runs", summary="Training runs on this machine, the newest first", response_model=None)
    async def runs(request: Request) -> Response:
        """At most 100; `has_more` tells of others."""
        check(request)
        told, has_more = await asyncio.to_thread(_listed, place)
        return json_response({"object": "list", "data": told, "has_more": has_more})

    @router.get("/v1/herd/training-runs/{run_id}/metrics", summary="The curves of a training run, stage by stage", response_model=None)
    async def metrics(run_id: str, request: Request, points: Annotated[int, Query(ge=2, le=2000)] = 300) -> Response:
        """`points` is about how many of each curve come."""
        check(request)
        stages = await asyncio.to_thread(_curves, place, run_id, points)
        return json_response({"object": "training_run.metrics", "id": run_id, "stages": stages})

    return router


def _listed(place: Path | None) -> tuple[list[dict[str, Any]], bool]:
    """The newest runs, and whether there are more. One that is deleted meanwhile, as `herd train --restart` does, is left out."""
    found, told = _found(place), []
    for name, folder in list(found.items())[:MAX_RUNS]:
        with contextlib.suppress(FileNotFoundError):
            told.append(run_object(name, folder))
    return told, len(found) > MAX_RUNS


def _curves(place: Path | None, run_id: str, points: int) -> list[dict[str, Any]]:
    """The curves of a run's stages. Raises RequestError where there is none of this id, or none any more."""
    found = _found(place)
    if run_id in found:
        with contextlib.suppress(FileNotFoundError):
            return [stage_curves(folder, points) for folder in stages_of(found.pop(run_id))]
    hint = did_you_mean(run_id, list(found), otherwise="GET /v1/herd/training-runs lists what there is")
    raise RequestError("not_found", f"there is no training run {run_id!r:.100}", hint=hint)


def _found(place: Path | None) -> dict[str, Path]:
    """The runs by the names of their folders, the one that was written to last first."""
    if place is None or not place.is_dir():
        return {}
    runs = [folder for folder in place.iterdir() if (folder / "config.toml").is_file() and not folder.name.startswith(".")]
    return {folder.name: folder for folder in sorted(runs, key=_changed, reverse=True)}


def _changed(run: Path) -> float:
    """When something was written to a run last; 0 of one that is gone."""
    times = [0.0]
    for path in (run / "config.toml", *run.glob(f"*/{LOG}")):
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)


def stages_of(run: Path) -> list[Path]:
    """The folders of a run's stages, in the order in which they began."""
    return sorted((log.parent for log in run.glob(f"*/{LOG}")), key=lambda folder: (_began(folder), folder.name))


def _events(folder: Path) -> list[dict[str, Any]]:
    path = folder / EVENTS
    return read_lines(path) if path.is_file() and path.stat().st_size <= MAX_EVENTS_BYTES else []


def _began(folder: Path) -> float:
    events = _events(folder)
    return float(events[0].get("time", math.inf)) if events else math.inf


def run_object(name: str, run: Path) -> dict[str, Any]:
    """What the list tells of a run."""
    config = _config(run / "config.toml")
    stages = [_stage(folder, config) for folder in stages_of(run)]
    # A run is what its last stage is; before any began, it has only been prepared.
    state = stages[-1]["state"] if stages else "prepared"
    return {
        "id": name,
        "object": "training_run",
        "recipe": str(config.get("name", name)),
        "method": str(config.get("method", "pretrain")),
        "status": state,
        "updated_at": int(_changed(run)),
        "has_model": (run / "model" / "config.json").is_file(),
        "stages": stages,
    }


def _stage(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    record = _last_record(folder / LOG)
    events = _events(folder)
    marks = [event for event in events if event.get("event") in ("start", "end")]
    if not marks or marks[-1]["event"] == "end":
        state = str(marks[-1].get("reason", "done")) if marks else "unknown"
    else:
        # A process that was killed wrote no end.
        state = "running" if time.time() - (folder / LOG).stat().st_mtime < SILENT_S else "silent"
    told = config.get(folder.name)
    planned = told.get("num_steps") if isinstance(told, dict) and not config.get("epochs") else None
    return {"name": folder.name, "state": state, "step": record.get("step"), "num_steps": planned, "loss": _number(record.get("loss"))}


def _config(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _last_record(path: Path) -> dict[str, Any]:
    """The last whole record of a log, read from its end."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 65536))
        lines = file.read().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"}\n")]
    return next(iter(Thinned(points=1, kept=whole[-1:]).records()), {})


def stage_curves(folder: Path, points: int) -> dict[str, Any]:
    """The numbers that a stage logged, as curves of (step, value). Scores of held-out text, which few records have, are thinned apart."""
    often, seldom = Thinned(points=points), Thinned(points=points)
    with (folder / LOG).open("rb") as file:
        for line in file:
            if line.endswith(b"}\n"):
                (seldom if b'"heldout"' in line else often).take(line)
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in (*often.records(), *seldom.records()):
        step = record.get("step")
        if isinstance(step, int):
            record.pop("machine", None)
            for name, value in flat(record):
                if name not in _LEFT_OUT and math.isfinite(value) and (name in curves or len(curves) < MAX_SERIES):
                    curves.setdefault(name, []).append((step, value))
    return {"name": folder.name, "num_records": often.seen + seldom.seen, "series": {name: sorted(curves[name]) for name in sorted(curves)}}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
