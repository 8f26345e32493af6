"""The loop of a stage: what it reads, logs and saves, and that an interrupted run, resumed, is the uninterrupted one bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_run import (  # pyright: ignore[reportMissingImports]
    NUM_STEPS,
    as_batch,
    assert_same_run,
    folders_of,
    log_of,
    small_model,
    small_rows,
    small_trainer,
    tensors_of,
    whole_run,
)

from herd.train import state as state_module
from herd.train.schedule import learning_rate
from herd.train.state import find_state
from herd.train.step import StepResult
from herd.train.trainer import DivergedError, HeldOut, Trainer, bits_per_byte


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """The run that every resumed one has to equal."""
    return whole_run(tmp_path_factory.mktemp("runs") / "whole")


class Interrupt(BaseException):
    """An interruption at a chosen moment, as Ctrl-C is one."""


def run_until(folder: Path, step: int, **changes: object) -> None:
    """Resume the run in `folder` as a new process would, and interrupt it right after step `step`, before that step's state is saved."""
    trainer = small_trainer(folder, **changes)
    trainer.resume()

    def interrupt(done: int, _result: StepResult, _rate: float) -> None:
        if done == step:
            raise Interrupt

    trainer.on_step = interrupt
    with pytest.raises(Interrupt):
        trainer.fit()


def finish(folder: Path, **changes: object) -> Trainer:
    """Resume the run in `folder` and train it to its end."""
    trainer = small_trainer(folder, **changes)
    trainer.resume()
    trainer.fit()
    return trainer


@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))
def test_a_run_interrupted_after_any_step_and_resumed_is_the_uninterrupted_one(tmp_path: Path, uninterrupted: Trainer, step: int) -> None:
    run_until(tmp_path, step)
    assert_same_run(finish(tmp_path), uninterrupted)


def test_a_run_interrupted_again_and_again_is_the_uninterrupted_one(tmp_path: Path, uninterrupted: Trainer) -> None:
    for step in (1, 3, 3, 4, 7, 12, 12):
        run_until(tmp_path, step)
    assert_same_run(finish(tmp_path), uninterrupted)
    # Once it is done, resuming does nothing more.
    assert_same_run(finish(tmp_path), uninterrupted)


def test_a_run_in_bfloat16_resumes_bit_for_bit_too(tmp_path: Path) -> None:
    whole = whole_run(tmp_path / "whole", compute_dtype="bfloat16")
    run_until(tmp_path / "parts", 7, compute_dtype="bfloat16")
    assert_same_run(finish(tmp_path / "parts", compute_dtype="bfloat16"), whole)


@pytest.mark.parametrize(("name", "call"), [("save_file", 5), ("save_file", 6), ("_digest", 6)])
def test_a_run_interrupted_within_a_save_is_the_uninterrupted_one(
    tmp_path: Path, uninterrupted: Trainer, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    real, calls = getattr(state_module, name), 0

    def fail(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Interrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(Interrupt):
        patch.setattr(state_module, name, fail)
        small_trainer(tmp_path).fit()
    assert folders_of(tmp_path / "states") == ["step-00000002", "step-00000004"]
    assert_same_run(finish(tmp_path), uninterrupted)


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_run_resumed_past_damaged_states_is_the_uninterrupted_one(tmp_path: Path, uninterrupted: Trainer, damaged: int) -> None:
    run_until(tmp_path, 9)
    states = sorted((tmp_path / "states").iterdir())
    assert [state.name for state in states] == ["step-00000006", "step-00000008"]
    for state in states[-damaged:]:
        path = state / "optimizer.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    trainer = small_trainer(tmp_path)
    assert trainer.resume() is (damaged == 1)
    assert trainer.progress.step == (6 if damaged == 1 else 0)
    trainer.fit()
    assert_same_run(trainer, uninterrupted)
    assert folders_of(tmp_path / "states") == ["step-00000010", "step-00000012"]


def test_a_run_that_was_told_to_stop_early_goes_on_where_it_stopped(tmp_path: Path, uninterrupted: Trainer) -> None:
    first = small_trainer(tmp_path)
    assert first.fit(until_step=5).step == 5
    found = find_state(first.states)
    assert found is not None and found[0].name == "step-00000005"
    assert_same_run(finish(tmp_path), uninterrupted)


@pytest.mark.parametrize("until", [0, 99])
def test_stopping_before_the_first_step_or_after_the_last_is_what_it_says(tmp_path: Path, until: int) -> None:
    assert small_trainer(tmp_path).fit(until_step=until).step == min(until, NUM_STEPS)


def test_resume_says_whether_there_was_a_state(tmp_path: Path) -> None:
    assert small_trainer(tmp_path).resume() is False
    small_trainer(tmp_path).fit(until_step=2)
    trainer = small_trainer(tmp_path)
    assert trainer.resume() is True
    assert (trainer.progress.step, trainer.progress.num_samples) == (2, 8)


def test_resuming_trims_the_log_to_the_state_and_drops_a_line_cut_short(tmp_path: Path) -> None:
    run_until(tmp_path, 5)
    log = tmp_path / "log.jsonl"
    whole = log.read_text()
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [1, 2, 3, 4, 5]
    log.write_text(whole[:-10])
    (tmp_path / ".log.jsonl.partial-ab12").write_text("what a kill while trimming leaves")
    small_trainer(tmp_path).resume()
    assert log.read_text() == "".join(whole.splitlines(keepends=True)[:4])
    assert folders_of(tmp_path) == ["events.jsonl", "log.jsonl", "states"]


def test_a_line_without_its_end_is_dropped_even_where_its_step_is_kept(tmp_path: Path) -> None:
    small_trainer(tmp_path).fit(until_step=4)
    log = tmp_path / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3]) + lines[3].rstrip("\n"))
    small_trainer(tmp_path).resume()
    assert log.read_text() == "".join(lines[:3])


def test_without_a_state_the_log_begins_anew(tmp_path: Path, uninterrupted: Trainer) -> None:
    run_until(tmp_path, 1)
    assert len(log_of(tmp_path)) == 1
    assert_same_run(finish(tmp_path), uninterrupted)


def test_only_keep_states_are_left_and_nothing_half_written(tmp_path: Path) -> None:
    whole_run(tmp_path, keep_states=3, save_every=1)
    assert folders_of(tmp_path / "states") == ["step-00000010", "step-00000011", "step-00000012"]
    assert folders_of(tmp_path) == ["events.jsonl", "log.jsonl", "states"]


def test_the_last_step_is_saved_whatever_the_interval(tmp_path: Path) -> None:
    whole_run(tmp_path, save_every=100)
    assert folders_of(tmp_path / "states") == ["step-00000012"]


def test_the_log_has_the_loss_the_rate_and_the_norm_of_the_steps_asked_for(tmp_path: Path) -> None:
    seen: dict[int, StepResult] = {}
    trainer = small_trainer(tmp_path, log_every=5, eval_every=100, heldout=False)
    trainer.on_step = lambda step, result, tokens_per_s: seen.update({step: result}) if tokens_per_s > 0 else None
    trainer.fit()
    assert list(seen) == list(range(1, NUM_STEPS + 1))
    stage, counted = trainer.stage, np.cumsum([result.num_counted for result in seen.values()])
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 5, 10]
    for record in records:
        step = record["step"]
        assert (record["loss"], record["grad_norm"]) == (seen[step].loss, seen[step].grad_norm)
        assert record["num_counted"] == counted[step - 1]
        assert record["tokens_per_s"] > 0
        assert record["lr"] == learning_rate(
            step - 1, peak=stage.lr, warmup_steps=stage.warmup_steps, num_steps=NUM_STEPS, final_fraction=stage.final_lr_fraction
        )


def test_every_sample_is_read_once_and_in_order(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, heldout=False)
    real, reads = trainer.mixture.batch, []

    def batch(first: int, size: int) -> object:
        reads.append((first, size))
        return real(first, size)

    trainer.mixture.batch = batch  # type: ignore[method-assign]
    progress = trainer.fit()
    assert reads == [(4 * step, 4) for step in range(NUM_STEPS)]
    assert progress.num_samples == 4 * NUM_STEPS
    assert progress.num_counted == int(real(0, 4 * NUM_STEPS)[2].sum())
    assert progress.seconds > 0


def heldout_records(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    return ((record["step"], record["heldout"]) for record in log_of(folder) if "heldout" in record)


def test_held_out_sets_are_scored_at_every_interval_and_at_the_end(tmp_path: Path) -> None:
    trainer = whole_run(tmp_path)
    scores = dict(heldout_records(tmp_path))
    assert list(scores) == [5, 10, 12]
    assert all(list(table) == ["en", "th"] for table in scores.values())
    exact = {name: bits_per_byte(trainer.model, heldout, dtype=torch.float32) for name, heldout in trainer.heldout.items()}
    assert scores[12] == {name: round(value, 4) for name, value in exact.items()}
    assert scores[5] != scores[12]
    assert trainer.model.training


def test_evaluating_does_not_change_what_is_learned(tmp_path: Path, uninterrupted: Trainer) -> None:
    without = whole_run(tmp_path, heldout=False)
    left, right = tensors_of(without), tensors_of(uninterrupted)
    assert all(torch.equal(left[name], right[name]) for name in right)
    assert not list(heldout_records(tmp_path))


def test_how_often_a_run_is_saved_does_not_change_what_is_learned(tmp_path: Path, uninterrupted: Trainer) -> None:
    left, right = tensors_of(whole_run(tmp_path, save_every=5)), tensors_of(uninterrupted)
    assert all(torch.equal(left[name], right[name]) for name in right)


@torch.no_grad()
def test_bits_per_byte_are_the_rows_cross_entropy_in_bits_over_the_bytes_of_their_text() -> None:
    model, rows = small_model(), small_rows(30, seed=6)
    nats = 0.0
    for tokens, documents, counts in zip(*as_batch(rows), strict=True):
        for number in range(documents.max() + 1):
            ids, counted = torch.from_numpy(tokens[documents == number]).long(), torch.from_numpy(counts[documents == number])[1:]
            nats += F.cross_entropy(model(ids[None, :-1])[0][counted], ids[1:][counted], reduction="sum").item()
    heldout = HeldOut(rows=rows, num_bytes=1234)
    assert bits_per_byte(model, heldout, dtype=torch.float32) == pytest.approx(nats / math.log(2) / 1234, rel=1e-5)
    assert bits_per_byte(model, heldout, dtype=torch.float32, batch_size=3) == pytest.approx(nats / math.log(2) / 1234, rel=1e-5)


def test_a_model_that_guesses_evenly_has_the_bits_of_its_vocabulary() -> None:
    model, rows = small_model(), small_rows(30, seed=6)
    with torch.no_grad():
        model.head_weight.zero_()
    bits = bits_per_byte(model, HeldOut(rows=rows, num_bytes=100), dtype=torch.float32)
    assert bits == pytest.approx(int(rows.counts.sum()) * math.log2(96) / 100, rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_spares_its_last_state(tmp_path: Path, value: float) -> None:
    trainer = small_trainer(tmp_path)
    trainer.fit(until_step=4)
    with torch.no_grad():
        trainer.model.head_weight[3, 3] = value
    with pytest.raises(DivergedError, match=r"^step 5: loss (nan|inf), gradient norm") as caught:
        trainer.fit()
    assert caught.value.code == "diverged"
    assert "lower the learning rate (now 0.003)" in str(caught.value.hint)
    assert folders_of(tmp_path / "states") == ["step-00000002", "step-00000004"]
    assert trainer.progress.step == 4
    assert [record["step"] for record in log_of(tmp_path)] == [1, 2, 3, 4]
    again = small_trainer(tmp_path)
    assert again.resume()
    assert all(bool(parameter.isfinite().all()) for parameter in again.model.parameters())


def test_a_gradient_that_overflows_is_divergence_too(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path)
    trainer.model.model.norm.weight.register_hook(lambda gradient: gradient * 1e30 * 1e30)
    with pytest.raises(DivergedError, match=r"^step 1: loss 4\.\d+, gradient norm (nan|inf)"):
        trainer.fit()
