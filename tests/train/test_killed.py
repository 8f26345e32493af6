"""A real process, killed with SIGKILL at random moments and started again until it is done, leaves the run of one that was left alone.

Moments are chosen inside the loader, inside the step and inside the save. Ten kills by default; `HERD_TEST_FULL=1` makes it fifty.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from small_run import assert_same_run, folders_of, small_trainer, whole_run  # pyright: ignore[reportMissingImports]

from herd.train.trainer import Trainer

NUM_KILLS = 50 if os.environ.get("HERD_TEST_FULL") == "1" else 10
NUM_STEPS = 40
CHANGES = {"num_steps": NUM_STEPS, "save_every": 2, "eval_every": 6, "keep_states": 2, "average_every": 5, "keep_every": 10}
LOADER_S = 0.003
PHASES = ("loader", "step", "save")


def slow_loader(trainer: Trainer) -> None:
    """Reading takes a while, so that a kill can fall into it."""
    read = trainer.mixture.batch

    def batch(first: int, size: int) -> object:
        time.sleep(LOADER_S)
        return read(first, size)

    trainer.mixture.batch = batch  # type: ignore[method-assign]


def train(folder: Path, phases: Connection, background: bool) -> None:
    """What a process does: resume, go on to the end, tell every phase that it enters."""
    torch.set_num_threads(1)
    trainer = small_trainer(folder, **CHANGES, save_async=background)
    slow_loader(trainer)
    trainer.resume()
    trainer.on_phase = lambda phase, step: phases.send((phase, step))
    trainer.fit()


Start = Callable[[Path, bool], tuple[BaseProcess, Connection]]


@pytest.fixture
def start() -> Start:
    """Start a process that trains; a server that has torch loaded forks it, so that a start takes no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "herd.train.trainer", "torch._dynamo"])

    def start_one(folder: Path, background: bool) -> tuple[BaseProcess, Connection]:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=train, args=(folder, sending, background))
        process.start()
        sending.close()
        return process, receiving

    return start_one


def killed_in(start: Start, folder: Path, phase: str, turn: int, delay_s: float, *, background: bool) -> bool:
    """Kill a process a moment after it entered `phase` the `turn`-th time. False if it was done before that."""
    process, phases = start(folder, background)
    seen = 0
    with phases:
        try:
            while seen < turn:
                seen += phases.recv()[0] == phase
        except EOFError:
            process.join()
            assert process.exitcode == 0
            return False
        time.sleep(delay_s)
        process.kill()
        process.join()
    assert process.exitcode in (-signal.SIGKILL, 0)
    return process.exitcode != 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """The run that was left alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return whole_run(tmp_path_factory.mktemp("whole"), **CHANGES)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("background", [True, False])
def test_runs_killed_in_loader_step_and_save_are_the_uninterrupted_one(
    tmp_path: Path, start: Start, whole: Trainer, background: bool
) -> None:
    rng = random.Random(31)
    kills: Counter[str] = Counter()
    run = 0
    while sum(kills.values()) < NUM_KILLS // 2:
        run += 1
        folder = tmp_path / f"run-{run}"
        # Kills without progress between them are kills at the same place again: a few turns let states be written.
        for _ in range(8):
            phase = PHASES[sum(kills.values()) % len(PHASES)]
            turn = rng.randint(1, 3) if phase == "save" else rng.randint(3, 8)
            delay_s = rng.random() * {"loader": LOADER_S, "step": 0.008, "save": 0.006}[phase]
            if not killed_in(start, folder, phase, turn, delay_s, background=background):
                break
            kills[phase] += 1
        process, phases = start(folder, background)
        while process.is_alive() or phases.poll():
            try:
                phases.recv()
            except EOFError:
                break
        process.join()
        phases.close()
        assert process.exitcode == 0
        resumed = small_trainer(folder, **CHANGES)
        assert resumed.resume() and resumed.progress.step == NUM_STEPS
        resumed.average.apply(resumed.model)
        assert_same_run(resumed, whole)
        assert folders_of(folder) == folders_of(whole.folder) == ["events.jsonl", "log.jsonl", "states"]
        assert folders_of(folder / "states") == folders_of(whole.folder / "states")
    assert set(kills) == set(PHASES)


def test_a_run_killed_after_its_last_state_and_before_the_old_are_deleted(tmp_path: Path) -> None:
    changes = {**CHANGES, "average_every": 0, "keep_every": 0}
    left_alone = whole_run(tmp_path / "run", **changes)
    states = tmp_path / "run" / "states"
    kept = folders_of(states)
    shutil.copytree(states / kept[0], states / "step-00000001")
    (states / ".step-00000030.partial").mkdir()

    resumed = small_trainer(tmp_path / "run", **changes)
    assert resumed.resume()
    resumed.fit()
    assert_same_run(resumed, left_alone)
    assert folders_of(states) == kept
