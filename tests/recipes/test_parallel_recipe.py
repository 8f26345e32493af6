"""`herd train tiny` under torchrun: the run of one process, on a mesh, with its model and card; it may go on in one process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from herd.base.errors import ConfigError, UsageError
from herd.train.parallel.config import ParallelConfig
from herd.train.parallel.processes import joined

TINY = [
    "pretrain.num_steps=4",
    "pretrain.warmup_steps=1",
    "pretrain.eval_every=2",
    "pretrain.save_every=2",
    "pretrain.compute_dtype=float32",
    "pretrain.tensorboard=false",
    "pretrain.log_every=1",
    "pretrain.micro_batch_size=4",
    "sft.num_steps=2",
    "sft.warmup_steps=1",
    "sft.micro_batch_size=4",
    "sft.compute_dtype=float32",
    "sft.tensorboard=false",
    "sample_prompts=Hello!",
]


def herd(output: Path, *overrides: str, processes: int = 1) -> str:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *torchrun, "-m", "herd", "train", "tiny", *TINY, *overrides, "--output", str(output), "--threads", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def heldout(folder: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["heldout"] for line in lines if "heldout" in line][-1]


@pytest.mark.slow
def test_a_recipe_on_two_processes_is_the_recipe_on_one(tmp_path: Path) -> None:
    herd(tmp_path / "two", "parallel.pp=2", "parallel.virtual_stages=2", processes=2)
    herd(tmp_path / "one")
    for stage in ("pretrain", "sft"):
        assert losses(tmp_path / "two" / stage) == pytest.approx(losses(tmp_path / "one" / stage), abs=1e-5)
        assert heldout(tmp_path / "two" / stage) == pytest.approx(heldout(tmp_path / "one" / stage), abs=1e-3)
    files = sorted(path.name for path in (tmp_path / "two" / "model").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "one" / "model").iterdir())
    assert not (tmp_path / "two" / "model-pieces").exists()
    assert not (tmp_path / "two" / "pretrain" / "heartbeat").exists()
    # The finished run is the same run without the mesh: nothing is trained again.
    if os.environ.get("HERD_TEST_FULL"):
        herd(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("HERD_TEST_FULL"), reason="HERD_TEST_FULL=1 kills a process of a run under torchrun")
def test_a_killed_process_is_started_again_and_the_run_ends(tmp_path: Path) -> None:
    output = tmp_path / "run"
    more = ["pretrain.num_steps=60", "pretrain.save_every=5", "parallel.dp_shard=2", "--per-node", "2", "--device", "cpu"]
    command = [sys.executable, "-m", "herd", "launch", "tiny", *TINY, *more, "--output", str(output)]
    log = (tmp_path / "log").open("w")
    running = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        beat, deadline = output / "pretrain" / "heartbeat" / "rank-00001.json", time.monotonic() + 120
        while not (beat.exists() and list((output / "pretrain" / "states").glob("step-*"))):
            assert time.monotonic() < deadline and running.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        os.kill(json.loads(beat.read_text())["pid"], signal.SIGKILL)
        assert running.wait(timeout=200) == 0, (tmp_path / "log").read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        log.close()
    events = [json.loads(line)["event"] for line in (output / "pretrain" / "events.jsonl").read_text().splitlines()]
    assert events.count("start") == 2
    assert len(losses(output / "pretrain")) == 60
    assert (output / "model" / "README.md").exists()


def test_a_mesh_without_a_launcher_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UsageError, match="the mesh has 2 ranks, and this is one process") as raised, joined(ParallelConfig(tp=2), "cpu"):
        pass
    assert "--nproc-per-node 2" in (raised.value.hint or "")


def test_another_number_of_processes_than_the_mesh_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="the mesh has 1 ranks, 4 processes") as raised, joined(ParallelConfig(), "cpu"):
        pass
    assert "parallel.dp_shard=4" in (raised.value.hint or "")
