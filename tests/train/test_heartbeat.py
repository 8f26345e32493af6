"""Heartbeats and the watchdog: whom it names, what a hung process leaves, and signals that end a run in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_run import assert_same_run, folders_of, log_of, small_trainer, whole_run  # pyright: ignore[reportMissingImports]

from herd.train.heartbeat import HUNG_EXIT_CODE, PHASES, Beat, Heartbeat, Phase, describe, find_culprits, read_beats
from herd.train.preemption import PreemptedError, stop_on_signal

NOW = 1_000_000.0


def beat(rank: int, step: int, phase: Phase, *, moved: float = 100.0, written: float = 1.0) -> Beat:
    return Beat(rank=rank, step=step, phase=phase, host="node", pid=10 + rank, moved_at=NOW - moved, written_at=NOW - written)


def test_in_a_run_that_stands_still_the_rank_that_never_came_is_named() -> None:
    beats = [beat(0, 8, "step"), beat(1, 8, "step"), beat(2, 8, "loader"), beat(3, 8, "step")]
    assert [culprit.rank for culprit in find_culprits(beats, now=NOW, limit_s=30.0)] == [2]
    assert describe(beats[2]) == "rank 2 (process 12 on node) in loader of step 8"


def test_a_process_that_died_is_named_before_one_that_waits() -> None:
    beats = [beat(0, 8, "loader"), beat(1, 9, "step", written=90.0)]
    assert [culprit.rank for culprit in find_culprits(beats, now=NOW, limit_s=30.0)] == [1]


def test_while_anyone_moves_nobody_is_named() -> None:
    beats = [beat(0, 8, "step"), beat(1, 8, "save", moved=5.0)]
    assert find_culprits(beats, now=NOW, limit_s=30.0) == [] and find_culprits([], now=NOW, limit_s=30.0) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(PHASES)), min_size=1, max_size=9))
def test_those_named_are_exactly_those_furthest_behind(places: list[tuple[int, Phase]]) -> None:
    beats = [beat(rank, step, phase) for rank, (step, phase) in enumerate(places)]
    named = find_culprits(beats, now=NOW, limit_s=30.0)
    assert named and all(other.place > named[0].place for other in beats if other not in named)
    assert all(other.place == named[0].place for other in named)


def test_heartbeats_are_written_read_back_and_cleared_away(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, limit_s=0.0, rank=3) as heart:
        heart.enter("save", 17)
        heart.write()
        (tmp_path / "heartbeat" / "rank-00009.json").write_text("{half")
        (found,) = read_beats(tmp_path / "heartbeat")
        assert (found.rank, found.step, found.phase, found.pid) == (3, 17, "save", os.getpid())
        (tmp_path / "heartbeat" / "rank-00009.json").unlink()
    assert folders_of(tmp_path) == []


def test_a_hang_is_told_once_with_its_name_and_stacks(tmp_path: Path) -> None:
    told: list[str] = []
    hung = threading.Event()

    def on_hang(message: str) -> None:
        told.append(message)
        hung.set()

    with Heartbeat(tmp_path, limit_s=0.5, rank=0, on_hang=on_hang) as heart:
        heart.enter("loader", 4)
        # Another rank that is alive, and waits in the step.
        waiting = replace(beat(1, 4, "step"), moved_at=time.time() - 100, written_at=time.time() + 1000)
        (tmp_path / "heartbeat" / "rank-00001.json").write_text(json.dumps(asdict(waiting)))
        assert hung.wait(60)
    assert len(told) == 1 and "nothing has moved for 0.5 s: rank 0" in told[0] and "in loader of step 4" in told[0]
    stacks = (tmp_path / "heartbeat" / "stacks-00000.txt").read_text()
    assert "test_a_hang_is_told_once" in stacks


HANGS = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from small_run import small_trainer
trainer = small_trainer(Path(sys.argv[1]), hang_timeout_s=600.0)
trainer.heartbeat.interval_s = 0.1
read = trainer.mixture.batch
def batch(first, size):
    if first >= 20:
        trainer.heartbeat.limit_s = 0.5  # now, so that a slow machine's first steps are no hang
        time.sleep(600)
    return read(first, size)
trainer.mixture.batch = batch
trainer.fit()
"""


def test_a_process_that_hangs_ends_with_its_code_and_is_taken_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGS, str(tmp_path / "run"), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == HUNG_EXIT_CODE, done.stderr
    assert "nothing has moved for 0.5 s: rank 0" in done.stderr and "in loader of step 6" in done.stderr
    assert "time.sleep" not in (text := (tmp_path / "run" / "heartbeat" / "stacks-00000.txt").read_text()) and "batch" in text
    resumed = small_trainer(tmp_path / "run")
    assert resumed.resume() and resumed.progress.step == 4
    resumed.fit()
    assert_same_run(resumed, whole_run(tmp_path / "whole"))


SIGNALLED = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from small_run import small_trainer
from herd.train.preemption import PreemptedError, stop_on_signal
trainer = small_trainer(Path(sys.argv[1]), num_steps=100_000, save_every=50_000, eval_every=50_000)
trainer.on_step = lambda step, *_: print(step, flush=True)
with stop_on_signal() as stop:
    trainer.should_stop = lambda: stop
    try:
        trainer.fit()
    except PreemptedError as error:
        sys.stderr.write(error.message)
        sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_step_saves_it_and_leaves_with_75(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        while process.stdout.readline() != "3\n":
            pass
        process.send_signal(number)
        rest, told = process.communicate(timeout=60)
    last = int(rest.splitlines()[-1]) if rest else 3
    assert process.returncode == 75 == PreemptedError.exit_code
    assert f"stopped after step {last} of 100000" in told
    assert folders_of(tmp_path / "states") == [f"step-{last:08d}"]
    assert log_of(tmp_path)[-1]["step"] == last
    assert json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])["reason"] == "preempted"


def test_a_second_signal_does_what_it_did_before_and_handlers_are_put_back() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        with stop_on_signal() as stop:
            assert not stop
            signal.raise_signal(signal.SIGUSR1)
            assert stop and stop.signal_name == "SIGUSR1" and seen == []
            signal.raise_signal(signal.SIGUSR1)
            assert seen == [signal.SIGUSR1]
        signal.raise_signal(signal.SIGUSR1)
        assert len(seen) == 2
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    found: list[bool] = []

    def inside() -> None:
        with stop_on_signal() as stop:
            found.append(bool(stop))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [False]


def test_a_run_that_was_asked_to_stop_is_taken_up_bit_for_bit(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path / "run", save_every=100)
    trainer.should_stop = lambda: trainer.progress.step == 5
    with pytest.raises(PreemptedError, match="stopped after step 5 of 12"):
        trainer.fit()
    resumed = small_trainer(tmp_path / "run", save_every=100)
    assert resumed.resume() and resumed.progress.step == 5
    resumed.fit()
    assert_same_run(resumed, whole_run(tmp_path / "whole", save_every=100))


def test_the_time_that_counts_is_a_share_of_the_time_that_passed(tmp_path: Path) -> None:
    from herd.train.run_log import effective_time

    assert effective_time(tmp_path, 5.0) is None
    lines = [{"event": "start", "time": NOW}, {"event": "end", "time": NOW + 10}, {"event": "start", "time": NOW + 20}]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert effective_time(tmp_path, 9.0) == pytest.approx(9 / 20)
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 3, "machine": {"time": NOW + 36}}) + "\n" + '{"step": 4, "mach')
    assert effective_time(tmp_path, 9.0) == pytest.approx(9 / 36)
    started = time.time()
    trainer = small_trainer(tmp_path / "run", heldout=False)
    trainer.fit()
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(0 < record["machine"]["effective"] <= 1 for record in records[1:])
    assert trainer.progress.seconds <= time.time() - started
