"""A real process, killed with SIGKILL at random moments and started again until it is done, leaves the run of one that was left alone."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from small_run import assert_same_run, folders_of, small_trainer, whole_run  # pyright: ignore[reportMissingImports]

NUM_STEPS = 30
CHANGES = {"num_steps": NUM_STEPS, "save_every": 2, "eval_every": 6, "keep_states": 2}


def train(folder: Path, steps: Connection) -> None:
    """What a process does: resume, go on to the end, tell every step."""
    torch.set_num_threads(1)
    trainer = small_trainer(folder, **CHANGES)
    trainer.resume()
    trainer.on_step = lambda step, result, rate: steps.send(step)
    trainer.fit()


Start = Callable[[Path], tuple[BaseProcess, Connection]]


@pytest.fixture
def start() -> Start:
    """Start a process that trains; a server that has torch loaded forks it, so that a start takes no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "herd.train.trainer", "torch._dynamo"])

    def start_one(folder: Path) -> tuple[BaseProcess, Connection]:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=train, args=(folder, sending))
        process.start()
        sending.close()
        return process, receiving

    return start_one


def killed_after(start: Start, folder: Path, num_steps: int, delay_s: float) -> int:
    """Let a process make some steps and a moment more, then kill it. Returns the last step that it told."""
    process, steps = start(folder)
    with steps:
        step = 0
        for _ in range(num_steps):
            step = steps.recv()
        time.sleep(delay_s)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    process.close()
    return step


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_run_killed_at_random_moments_is_the_uninterrupted_one(tmp_path: Path, start: Start, seed: int) -> None:
    rng = random.Random(seed)
    reached = 0
    # Saves come every other step and take longer than a step: a moment after a step is often within one.
    # The last kill leaves at least seven steps undone, more than the longest moment lets through.
    while reached < NUM_STEPS - 12:
        reached = killed_after(start, tmp_path / "killed", rng.randint(3, 6), rng.random() * 0.02)
    process, steps = start(tmp_path / "killed")
    process.join()
    steps.close()
    assert process.exitcode == 0
    process.close()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = whole_run(tmp_path / "whole", **CHANGES)
    finally:
        torch.set_num_threads(threads)
    resumed = small_trainer(tmp_path / "killed", **CHANGES)
    assert resumed.resume()
    assert_same_run(resumed, whole)
    assert folders_of(tmp_path / "killed") == folders_of(tmp_path / "whole") == ["log.jsonl", "states"]
    assert folders_of(tmp_path / "killed" / "states") == folders_of(tmp_path / "whole" / "states")


def test_a_run_killed_after_its_last_state_and_before_the_old_are_deleted(tmp_path: Path) -> None:
    whole = whole_run(tmp_path / "run", **CHANGES)
    states = tmp_path / "run" / "states"
    kept = folders_of(states)
    shutil.copytree(states / kept[0], states / "step-00000001")
    (states / ".step-00000030.partial").mkdir()

    resumed = small_trainer(tmp_path / "run", **CHANGES)
    assert resumed.resume()
    resumed.fit()
    assert_same_run(resumed, whole)
    assert folders_of(states) == kept
