"""The guard: what is a spike, what is done about it, how often, and that a run with skips and rollbacks resumes bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_run import assert_same_run, folders_of, log_of, small_trainer  # pyright: ignore[reportMissingImports]

from herd.base.errors import ConfigError
from herd.train.config import GuardConfig
from herd.train.guard import LossGuard
from herd.train.trainer import DivergedError, Trainer

NAN, INF = float("nan"), float("inf")


def filled(losses: list[float], **changes: Any) -> LossGuard:
    guard = LossGuard(GuardConfig(**({"on_spike": "skip", "on_nonfinite": "rollback", "window": 8} | changes)))
    for loss in losses:
        guard.accept(loss)
    return guard


def test_a_loss_far_above_the_window_is_a_spike_and_one_within_it_is_not() -> None:
    guard = filled([2.0, 2.1, 1.9, 2.0, 2.1, 1.9, 2.0, 2.0])
    limit = guard.limit()
    assert limit == pytest.approx(2.0 + 6 * 0.0707107, rel=1e-5)
    assert guard.judge(limit + 0.01, 1.0).verdict == "skip"
    assert guard.judge(limit - 0.01, 1.0).verdict == "ok"
    assert "is over 2.4243, the mean of 8 steps and 6 sigma" in guard.judge(5.0, 1.0).reason
    assert filled([2.0] * 7).judge(100.0, 1.0).verdict == "ok", "not before the window is full"
    assert filled([2.0] * 8, on_spike="ignore").judge(100.0, 1.0).verdict == "ok"


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (1.0, NAN), (1.0, INF), (-INF, 1.0)])
def test_what_is_not_finite_is_judged_even_before_the_window_is_full(loss: float, norm: float) -> None:
    assert filled([]).judge(loss, norm).verdict == "rollback"
    assert LossGuard(GuardConfig()).judge(loss, norm).verdict == "stop"


@given(losses=st.lists(st.floats(0.1, 10), min_size=8, max_size=30), loss=st.floats(0.0, 100.0))
def test_a_guard_that_is_given_the_newest_losses_judges_as_the_one_that_saw_all(losses: list[float], loss: float) -> None:
    first = filled(losses)
    second = filled([])
    second.losses = list(first.losses)
    assert first.judge(loss, 1.0) == second.judge(loss, 1.0)
    assert len(first.losses) == 8


@pytest.mark.parametrize(
    ("field", "value"), [("spike_sigma", 0.0), ("spike_sigma", NAN), ("window", 7), ("max_skips", -1), ("max_rollbacks", -1)]
)
def test_an_impossible_guard_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^guard.{field} is ") as caught:
        GuardConfig(**{field: value})
    assert caught.value.hint


def poisoned(folder: Path, samples: set[int], value: float = NAN, **changes: Any) -> Trainer:
    """A run whose loss is spoilt whenever one of these samples is in the batch, whatever the weights: damage that is in the data."""
    trainer = small_trainer(folder, heldout=False, **changes)
    objective, reads = trainer.objective, [0, 0]
    read = trainer.mixture.batch

    def batch(first: int, size: int) -> Any:
        reads[:] = [first, first + size]
        return read(first, size)

    class Poisoned:
        def units(self, columns: Any) -> dict[str, int]:
            return objective.units(columns)

        def prepare(self, *args: Any) -> Any:
            return objective.prepare(*args)

        def sums(self, *args: Any) -> Any:
            found = objective.sums(*args)
            factor = value if any(reads[0] <= sample < reads[1] for sample in samples) else 1.0
            return type(found)(terms={name: term * factor for name, term in found.terms.items()})

    trainer.mixture.batch = batch  # type: ignore[method-assign]
    trainer.objective = Poisoned()
    return trainer


SKIP = GuardConfig(on_nonfinite="skip", on_spike="skip", window=8, max_skips=2)
BACK = GuardConfig(on_nonfinite="rollback", on_spike="rollback", window=8, max_rollbacks=2)


def events_of(folder: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]


def test_a_skipped_step_changes_nothing_and_its_data_are_passed_over(tmp_path: Path) -> None:
    trainer = poisoned(tmp_path, {17}, guard=SKIP)
    trainer.fit(until_step=4)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.fit(until_step=5)
    assert all(torch.equal(left, right) for left, right in zip(before, trainer.model.parameters(), strict=True))
    assert (trainer.progress.step, trainer.progress.num_samples, trainer.progress.num_skipped) == (5, 20, 1)
    trainer.fit()
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters())
    assert [record["step"] for record in log_of(tmp_path) if "skipped" in record] == [5]
    assert [record["step"] for record in log_of(tmp_path) if "loss" in record] == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]
    assert "skipped" in events_of(tmp_path)


def test_a_spike_is_skipped_too(tmp_path: Path) -> None:
    trainer = poisoned(tmp_path, {40}, value=30.0, guard=SKIP)
    trainer.fit()
    assert [record["step"] for record in log_of(tmp_path) if "skipped" in record] == [11]
    assert trainer.progress.num_skipped == 1 and len(trainer.progress.recent_losses) == 8


def test_a_rollback_goes_to_the_newest_state_and_on_with_the_data_after_the_bad(tmp_path: Path) -> None:
    trainer = poisoned(tmp_path, {22}, guard=BACK, save_every=4)
    trainer.fit()
    # Step 6 reads samples 20 to 23 and fails; steps 5 to 12 are made from step 4's state on samples 24 to 55.
    assert (trainer.progress.step, trainer.progress.num_samples, trainer.progress.num_rollbacks) == (12, 56, 1)
    back = [record for record in log_of(tmp_path) if "rolled_back_from" in record]
    assert [(record["step"], record["rolled_back_from"]) for record in back] == [(5, 6)] and back[0]["reason"].startswith("loss nan")
    assert [record["step"] for record in log_of(tmp_path) if "loss" in record] == list(range(1, 13))
    assert events_of(tmp_path) == ["start", "rolled back", "end"]


GUARDED = {"skip": (SKIP, 2), "rollback": (BACK, 2), "rollback far": (BACK, 4)}
BAD = {18, 33}


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trainer]:
    """The guarded runs that nothing interrupts."""
    runs: dict[str, Trainer] = {}
    for name, (guard, save_every) in GUARDED.items():
        runs[name] = poisoned(tmp_path_factory.mktemp("whole"), BAD, guard=guard, save_every=save_every)
        runs[name].fit()
    return runs


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("stop", [4, 6, 7])
def test_a_guarded_run_that_is_interrupted_is_the_uninterrupted_one(
    tmp_path: Path, left_alone: dict[str, Trainer], name: str, stop: int
) -> None:
    whole, (guard, save_every) = left_alone[name], GUARDED[name]

    class Interrupt(BaseException):
        pass

    first = poisoned(tmp_path / "parts", BAD, guard=guard, save_every=save_every)

    def interrupt(step: int, *_: object) -> None:
        if step == stop:
            raise Interrupt

    first.on_step = interrupt
    with pytest.raises(Interrupt):
        first.fit()
    second = poisoned(tmp_path / "parts", BAD, guard=guard, save_every=save_every)
    second.resume()
    second.fit()
    assert_same_run(second, whole)
    assert second.progress.num_skipped == whole.progress.num_skipped and second.progress.num_rollbacks == whole.progress.num_rollbacks


def test_too_many_skips_or_rollbacks_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"step 8: loss nan.*, after 2 skipped steps \(max_skips 2\)$"):
        poisoned(tmp_path / "skip", {20, 25, 30}, guard=SKIP).fit()
    with pytest.raises(DivergedError, match=r"after 2 rollbacks \(max_rollbacks 2\)$"):
        poisoned(tmp_path / "back", set(range(20, 90)), guard=BACK).fit()
    assert folders_of(tmp_path / "back" / "states") == ["step-00000002", "step-00000004"]


def test_a_rollback_without_a_state_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="there is no state to roll back to") as caught:
        poisoned(tmp_path, {1}, guard=BACK).fit()
    assert "save_every" in str(caught.value.hint)
