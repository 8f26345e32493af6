"""Training runs over HTTP: what `herd train` logs becomes curves, for those who may see them, however long a log is."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import HerdError
from herd.stack.config import ServerConfig
from herd.stack.errors import status_of
from herd.stack.guard import Context
from herd.stack.keys import ApiKey
from herd.stack.training_runs import Thinned, run_object, stage_curves, training_routes
from herd.train.run_log import RunLog

CONFIG = 'name = "{name}"\n\n[pretrain]\nnum_steps = 40\n'


def run_of(place: Path, name: str, *, steps: int = 20, stage: str = "pretrain", done: bool = True) -> RunLog:
    """A run, as the trainer's own log writes it."""
    (place / name / stage).mkdir(parents=True)
    (place / name / "config.toml").write_text(CONFIG.format(name=name))
    log = RunLog(place / name / stage)
    log.event("start", step=0)
    for step in range(1, steps + 1):
        record: dict[str, Any] = {"step": step, "num_counted": 10 * step, "loss": 5.0 / step, "lr": 1e-3, "machine": {"seconds": 1.0}}
        log.write({**record, "heldout": {"en": 2.0 / step, "de": 3.0}} if step % 10 == 0 else record)
    if done:
        log.event("end", step=steps, reason="done", seconds=1.0)
    return log


async def get(place: Path | None, path: str, key: ApiKey | None = None) -> httpx.Response:
    """Ask the routes as the guard lets someone in."""
    app = FastAPI()
    app.include_router(training_routes(ServerConfig(model_name="tiny", runs_dir=None if place is None else str(place))))

    async def told(request: Any, error: Exception) -> Any:
        from starlette.responses import JSONResponse

        assert isinstance(error, HerdError)
        return JSONResponse({"message": error.message, "hint": error.hint}, status_code=status_of(error))

    app.add_exception_handler(HerdError, told)

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        scope["herd"] = Context(request_id="req", key=key)
        await app(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded), base_url="http://localhost") as client:
        return await client.get(path)


def asked(place: Path | None, path: str, key: ApiKey | None = None) -> httpx.Response:
    import asyncio

    return asyncio.run(get(place, path, key))


def test_runs_are_listed_with_their_stages(tmp_path: Path) -> None:
    run_of(tmp_path, "old")
    os.utime(tmp_path / "old" / "config.toml", (1, 1))
    os.utime(tmp_path / "old" / "pretrain" / "log.jsonl", (2, 2))
    run_of(tmp_path, "new", done=False)
    (tmp_path / "not-a-run").mkdir()
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "config.toml").write_text("damaged = [")
    os.utime(tmp_path / "prepared" / "config.toml", (1, 1))
    answer = asked(tmp_path, "/v1/herd/training-runs").json()
    assert [(run["id"], run["status"]) for run in answer["data"]] == [("new", "running"), ("old", "done"), ("prepared", "prepared")]
    assert answer["data"][0]["stages"] == [{"name": "pretrain", "state": "running", "step": 20, "num_steps": 40, "loss": 0.25}]
    assert answer["data"][1]["updated_at"] == 2 and answer["has_more"] is False and answer["data"][0]["has_model"] is False
    assert asked(None, "/v1/herd/training-runs").json()["data"] == [] == asked(tmp_path / "gone", "/v1/herd/training-runs").json()["data"]


def test_the_curves_of_a_run_are_what_it_logged(tmp_path: Path) -> None:
    log = run_of(tmp_path, "mine")
    answer = asked(tmp_path, "/v1/herd/training-runs/mine/metrics").json()
    (stage,) = answer["stages"]
    assert (answer["id"], stage["name"], stage["num_records"]) == ("mine", "pretrain", 20)
    assert set(stage["series"]) == {"loss", "lr", "heldout/en", "heldout/de"}
    assert stage["series"]["loss"] == [[step, 5.0 / step] for step in range(1, 21)]
    assert stage["series"]["heldout/en"] == [[10, 0.2], [20, 0.1]]
    # What is being written is not read, what is no number is left out, and the next record is there at once.
    log.write({"step": 21, "num_counted": 210, "loss": math.nan})
    log.write({"step": 22, "num_counted": 220, "loss": 0.5})
    with log.path.open("a") as file:
        file.write('{"step": 23, "loss": 0.')
    assert asked(tmp_path, "/v1/herd/training-runs/mine/metrics").json()["stages"][0]["series"]["loss"][-2:] == [[20, 0.25], [22, 0.5]]


def test_a_run_that_was_killed_falls_silent(tmp_path: Path) -> None:
    run_of(tmp_path, "killed", done=False)
    long_ago = time.time() - 86_400
    os.utime(tmp_path / "killed" / "pretrain" / "log.jsonl", (long_ago, long_ago))
    assert run_object("killed", tmp_path / "killed")["status"] == "silent"


@pytest.mark.parametrize("name", ["..%2Fsecret", "%2e%2e", "mine%2Fpretrain", "mine%00", "nobody", ".hidden"])
def test_a_name_that_is_no_run_reads_nothing(tmp_path: Path, name: str) -> None:
    place = tmp_path / "runs"
    run_of(place, "mine")
    run_of(tmp_path, "secret")
    run_of(place, ".hidden")
    answer = asked(place, f"/v1/herd/training-runs/{name}/metrics")
    assert answer.status_code == 404 and "loss" not in answer.text


def test_a_run_that_is_deleted_while_it_is_read_is_as_if_it_had_never_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of(tmp_path, "stays"), run_of(tmp_path, "goes")

    def begun(folder: Path) -> float:  # called after runs are found, before their logs are read
        if folder.parent.name == "goes":
            shutil.rmtree(folder.parent, ignore_errors=True)
        return 0.0

    monkeypatch.setattr("herd.stack.training_runs._began", begun)
    assert [run["id"] for run in asked(tmp_path, "/v1/herd/training-runs").json()["data"]] == ["stays"]
    run_of(tmp_path, "goes")
    answer = asked(tmp_path, "/v1/herd/training-runs/goes/metrics")
    assert answer.status_code == 404 and "no training run 'goes'" in answer.json()["message"]


def test_only_an_admins_key_sees_runs(tmp_path: Path) -> None:
    run_of(tmp_path, "mine")
    anna, chief = (ApiKey(name=name, digest=b"", admin=admin) for name, admin in (("anna", 0), ("chief", 1)))
    for path in ("/v1/herd/training-runs", "/v1/herd/training-runs/mine/metrics"):
        refused = asked(tmp_path, path, anna)
        assert refused.status_code == 403 and "'anna' may not see" in refused.json()["message"] and "admin=1" in refused.json()["hint"]
        assert asked(tmp_path, path, chief).status_code == 200 == asked(tmp_path, path).status_code


def test_a_long_log_gives_so_many_points_and_its_last(tmp_path: Path) -> None:
    log = run_of(tmp_path, "long", steps=1)
    lines = [json.dumps({"step": step, "num_counted": step, "loss": 1.0 / step}) for step in range(2, 5001)]
    with log.path.open("a") as file:
        file.write("\n".join(lines) + "\n")
    curve = stage_curves(tmp_path / "long" / "pretrain", 50)["series"]["loss"]
    assert 50 <= len(curve) <= 101 and curve[0] == (1, 5.0) and curve[-1] == (5000, 1.0 / 5000)
    assert asked(tmp_path, "/v1/herd/training-runs/long/metrics?points=1").status_code == 422


@given(count=st.integers(0, 3000), points=st.integers(1, 60))
def test_thinning_keeps_order_bounds_and_the_ends(count: int, points: int) -> None:
    thinned = Thinned(points=points)
    for number in range(count):
        thinned.take(b'{"n": %d}\n' % number)
    kept = [record["n"] for record in thinned.records()]
    assert kept == sorted(set(kept)) and len(kept) <= 2 * points and (count == 0) == (not kept)
    if kept:
        assert (kept[0], kept[-1]) == (0, count - 1)
