"""Saving beside the training: one in flight, failures told and survived, and the last good state never touched."""

from __future__ import annotations

import errno
import logging
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from small_run import assert_same_run, folders_of, small_trainer, whole_run  # pyright: ignore[reportMissingImports]

from herd.train import saver as saver_module
from herd.train import state as state_module
from herd.train.saver import StateNotSavedError, StateSaver
from herd.train.state import find_state, prune_states, take_snapshot
from herd.train.trainer import Trainer


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is warned of, also where another test has made herd's log its own."""
    logger = logging.getLogger("herd")
    before = logger.propagate
    logger.propagate = True
    with caplog.at_level(logging.WARNING, logger="herd"):
        yield caplog
    logger.propagate = before


def full_disk(*_: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def read_only(*_: object, **__: object) -> str:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


BROKEN: dict[str, tuple[Any, str, Callable[..., object], str]] = {
    "a full disk": (state_module, "save_file", full_disk, "No space left on device"),
    "a read-only disk": (sys.modules["tempfile"], "mkdtemp", read_only, "Read-only file system"),
}


def failing(calls: range, broken: Callable[..., object], real: Callable[..., object]) -> Callable[..., object]:
    """A function that fails in some of its calls, counted from 1."""
    number = 0

    def call(*args: Any, **rest: Any) -> object:
        nonlocal number
        number += 1
        return broken(*args, **rest) if number in calls else real(*args, **rest)

    return call


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_save_that_fails_is_told_and_the_run_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture, kind: str, background: bool
) -> None:
    module, name, broken, words = BROKEN[kind]
    whole = whole_run(tmp_path / "whole")
    trainer = small_trainer(tmp_path / "run", save_async=background)
    # The first state is written in one call of mkdtemp, or two of save_file; the second and third fail.
    first = 2 if name == "mkdtemp" else 3
    monkeypatch.setattr(module, name, failing(range(first, first + 2), broken, getattr(module, name)))
    trainer.fit()
    told = [record.getMessage() for record in warnings.records if "could not be written" in record.getMessage()]
    assert len(told) == 2 and all(words in text for text in told)
    assert "tries again at the next interval (1 of 3)" in told[0] and "(2 of 3)" in told[1]
    assert_same_run(trainer, whole)
    assert folders_of(trainer.states) == ["step-00000010", "step-00000012"]


@pytest.mark.parametrize("kind", BROKEN)
def test_too_many_failures_stop_the_run_and_the_last_good_state_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    module, name, broken, words = BROKEN[kind]
    whole = whole_run(tmp_path / "whole")
    trainer = small_trainer(tmp_path / "run")
    trainer.fit(until_step=4)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, broken)
        with pytest.raises(StateNotSavedError, match=rf"{words}.*\(3 times in a row\)$") as caught:
            trainer.fit()
    assert caught.value.code == "state_not_saved" and "newest whole state" in str(caught.value.hint)
    assert folders_of(trainer.states) == ["step-00000002", "step-00000004"]
    resumed = small_trainer(tmp_path / "run")
    assert resumed.resume() and resumed.progress.step == 4
    resumed.fit()
    assert_same_run(resumed, whole)


def test_the_last_state_of_a_run_has_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = small_trainer(tmp_path, save_every=100)
    monkeypatch.setattr(state_module, "save_file", full_disk)
    with pytest.raises(StateNotSavedError, match=r"No space left on device$"):
        trainer.fit()


LIMITED = """
import resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from small_run import small_trainer
from herd.train.saver import StateNotSavedError
trainer = small_trainer(Path(sys.argv[1]), max_failed_saves=2)
trainer.fit(until_step=4)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    trainer.fit()
except StateNotSavedError as error:
    print(error.message)
"""


def test_a_write_that_the_system_cuts_short_leaves_the_states_before_it(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "run"), str(Path(__file__).parent)], capture_output=True, text=True, check=False
    )
    assert "File too large (2 times in a row)" in done.stdout, done.stderr
    assert folders_of(tmp_path / "run" / "states") == ["step-00000002", "step-00000004"]
    resumed = small_trainer(tmp_path / "run")
    assert resumed.resume() and resumed.progress.step == 4
    resumed.fit()
    assert_same_run(resumed, whole_run(tmp_path / "whole"))


def test_at_most_one_state_is_in_flight_and_it_holds_the_weights_of_its_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = small_trainer(tmp_path)
    saver = StateSaver(tmp_path / "states", run="run", keep=5)
    may_write, writing = threading.Event(), []
    real = saver_module.write_snapshot

    def slow(root: Path, snapshot: Any, **rest: Any) -> Path:
        writing.append(snapshot.progress.step)
        assert may_write.wait(30)
        return real(root, snapshot, **rest)

    monkeypatch.setattr(saver_module, "write_snapshot", slow)
    trainer._one_step()
    weights = trainer.model.head_weight.detach().clone()
    saver.save(trainer.model, trainer.optimizer, trainer.progress)
    with torch.no_grad():
        trainer.model.head_weight.zero_()
    second = threading.Thread(target=saver.save, args=(trainer.model, trainer.optimizer, trainer.progress))
    second.start()
    second.join(0.2)
    assert second.is_alive() and writing == [1], "the second save waits for the first"
    may_write.set()
    second.join()
    saver.wait()
    assert writing == [1, 1]
    trainer.model.head_weight.data.fill_(9.0)
    with StateSaver(tmp_path / "other", run="run", keep=5) as other:
        trainer.model.head_weight.data.copy_(weights)
        other.save(trainer.model, trainer.optimizer, trainer.progress)
        trainer.model.head_weight.data.zero_()
    from herd.train.state import load_state

    assert load_state(tmp_path / "other", trainer.model, trainer.optimizer, run="run") is not None
    assert torch.equal(trainer.model.head_weight, weights)


def test_a_log_that_cannot_be_written_is_kept_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    real, calls = Path.open, []

    def full(self: Path, mode: str = "r", *args: Any, **rest: Any) -> Any:
        if self.name == "log.jsonl" and mode == "a":
            calls.append(1)
            if 3 <= len(calls) <= 6:
                with real(self, mode, *args, **rest) as file:
                    file.write('{"torn')
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, mode, *args, **rest)

    whole = whole_run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        ours = whole_run(tmp_path / "run")
    assert len(calls) > 10
    assert_same_run(ours, whole)
    told = [record.getMessage() for record in warnings.records if "log.jsonl cannot be written" in record.getMessage()]
    assert len(told) == 1 and "No space left on device" in told[0]


def test_the_copy_in_host_memory_is_made_in_the_same_buffers_again(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path)
    trainer._one_step()
    first = take_snapshot(trainer.model, trainer.optimizer, trainer.progress, run="run")
    trainer._one_step()
    second = take_snapshot(trainer.model, trainer.optimizer, trainer.progress, run="run", into=first)
    for ours, theirs in ((first.model, second.model), (first.optimizer, second.optimizer)):
        assert all(ours[name] is theirs[name] for name in theirs)
    assert torch.equal(second.model["model.norm.weight"], trainer.model.model.norm.weight)
    assert second.size_bytes == sum(t.nbytes for t in (*second.model.values(), *second.optimizer.values()))


def test_every_nth_state_is_kept_besides_the_newest(tmp_path: Path) -> None:
    whole_run(tmp_path, save_every=1, keep_every=4)
    assert folders_of(tmp_path / "states") == ["step-00000004", "step-00000008", "step-00000011", "step-00000012"]


def test_states_past_the_newest_are_no_continuation_and_go(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        (tmp_path / f"step-{step:08d}").mkdir()
    prune_states(tmp_path, keep=2, newest=6)
    assert folders_of(tmp_path) == ["step-00000004", "step-00000006"]


def test_a_damaged_newer_state_does_not_push_a_good_one_out(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, keep_states=2)
    trainer.fit(until_step=7)
    path = tmp_path / "states" / "step-00000007" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    again = small_trainer(tmp_path, keep_states=2)
    assert again.resume() and again.progress.step == 6
    again.fit(until_step=8)
    assert folders_of(again.states) == ["step-00000006", "step-00000008"]
    assert find_state(again.states) is not None


def test_a_flipped_average_is_damage_too(tmp_path: Path) -> None:
    trainer: Trainer = small_trainer(tmp_path, average_every=2)
    trainer.fit(until_step=4)
    path = tmp_path / "states" / "step-00000004" / "average.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
    again = small_trainer(tmp_path, average_every=2)
    assert again.resume() and (again.progress.step, again.average.count) == (2, 1)
