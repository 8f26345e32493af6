"""Batch and length by tokens seen, the decay's shapes, and the published numbers of the 405B."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_run import as_batch, small_rows, small_sources, small_stage, small_trainer  # pyright: ignore[reportMissingImports]

from herd.base.config_io import apply_overrides, from_toml, to_toml
from herd.base.errors import ConfigError
from herd.train.batch import as_columns
from herd.train.config import MixChange, RampPhase, SourceConfig, SourceWeight, StageConfig
from herd.train.mixing import cut_rows, stage_mixture
from herd.train.schedule import learning_rate, stage_learning_rate, step_plan, steps_for_tokens
from herd.train.trainer import Trainer

SOURCE = SourceConfig(name="a", path="a.jsonl")
M = 2**20


def published(**changes: Any) -> StageConfig:
    """The 405B's pre-training: 4M tokens of 4,096, 8M of 8,192 after 252M, 16M after 2.87T."""
    fields: dict[str, Any] = {
        "sources": (SOURCE,),
        "num_steps": 1_100_928,
        "sequence_length": 8192,
        "batch_size": 2048,
        "micro_batch_size": 16,
        "lr": 8e-5,
        "warmup_steps": 8000,
        "horizon_steps": 1_200_000,
        "ramp": (
            RampPhase(until_tokens=252_000_000, sequence_length=4096, batch_size=1024),
            RampPhase(until_tokens=2_870_000_000_000, sequence_length=8192, batch_size=1024),
        ),
    }
    return StageConfig(**(fields | changes))


def test_the_published_ramp_has_the_steps_that_its_tokens_make() -> None:
    stage = published()
    phases = step_plan(stage).phases
    assert [phase.end_step - phase.first_step for phase in phases] == [60, 342_101, 758_767]
    assert [phase.tokens_per_step for phase in phases] == [4 * M, 8 * M, 16 * M]
    assert [phase.sequence_length for phase in phases] == [4096, 8192, 8192]
    assert steps_for_tokens(15_600_000_000_000, stage) == 1_100_928
    assert abs(stage.num_tokens - 15.6e12) < 16 * M


def test_the_published_rate_warms_up_over_8000_steps_and_would_end_at_1_200_000() -> None:
    stage = published()
    assert stage_learning_rate(stage, 0) == pytest.approx(1e-8)
    assert stage_learning_rate(stage, 7999) == stage_learning_rate(stage, 8000) == pytest.approx(8e-5)
    assert stage_learning_rate(stage, 1_199_999) == pytest.approx(8e-7)
    # At 15.6T tokens the printed cosine is not over: the doubt that the field documents.
    assert stage_learning_rate(stage, 1_100_927) == pytest.approx(2.142e-6, rel=1e-3)
    assert stage_learning_rate(published(horizon_steps=0), 1_100_927) == pytest.approx(8e-7)


def test_annealing_is_a_straight_line_to_zero_and_constant_is_constant() -> None:
    line = [learning_rate(step, peak=4.0, warmup_steps=0, num_steps=5, final_fraction=0.0, decay="linear") for step in range(5)]
    assert line == [4.0, 3.0, 2.0, 1.0, 0.0]
    flat = [learning_rate(step, peak=4.0, warmup_steps=2, num_steps=5, final_fraction=0.0, decay="constant") for step in range(5)]
    assert flat == [2.0, 4.0, 4.0, 4.0, 4.0]


@given(
    marks=st.lists(st.integers(1, 5000), min_size=0, max_size=4, unique=True),
    batches=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=5, max_size=5),
    lengths=st.lists(st.sampled_from([8, 16]), min_size=5, max_size=5),
    num_steps=st.integers(1, 300),
)
def test_every_step_has_one_phase_and_positions_add_up(marks: list[int], batches: list[int], lengths: list[int], num_steps: int) -> None:
    ramp = tuple(
        RampPhase(until_tokens=mark, batch_size=2 * batch, sequence_length=length)
        for mark, batch, length in zip(sorted(marks), batches, lengths, strict=False)
    )
    stage = StageConfig(
        sources=(SOURCE,), num_steps=num_steps, warmup_steps=0, sequence_length=16, batch_size=8, micro_batch_size=1, ramp=ramp
    )
    plan = step_plan(stage)
    assert plan.phases[0].first_step == 0 and plan.phases[-1].end_step == num_steps
    assert all(earlier.end_step == later.first_step for earlier, later in zip(plan.phases, plan.phases[1:], strict=False))
    tokens = samples = 0
    for step in range(num_steps):
        assert (plan.tokens_before(step), plan.samples_before(step)) == (tokens, samples)
        phase = plan.at(step)
        assert phase.first_step <= step < phase.end_step
        tokens, samples = tokens + phase.tokens_per_step, samples + phase.num_samples
    assert stage.num_tokens == tokens == 16 * samples


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([(100, 24, 4), (100, 24, 4)], "a ramp phase until 100 tokens follows one until 100"),
        ([(100, 10, 4)], "a ramp's 4 rows of 10 are no whole number of rows of 24"),
        ([(100, 12, 3)], "a ramp's batch_size 3 is not a multiple of its micro_batch_size 2"),
        ([(100, 8, 2)], "a ramp's 2 rows of 8 are no whole number of rows of 24"),
    ],
)
def test_an_impossible_ramp_is_refused(phases: list[tuple[int, int, int]], message: str) -> None:
    ramp = tuple(RampPhase(until_tokens=until, sequence_length=length, batch_size=rows) for until, length, rows in phases)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        small_stage(ramp=ramp)
    assert caught.value.hint


def test_cut_rows_keep_every_target_once_and_in_order() -> None:
    rows = small_rows(40, seed=3)
    batch = as_batch(rows, 0, 4)
    cut = as_columns(cut_rows(batch, 8))
    tokens, documents, counts = (cut[name] for name in ("tokens", "documents", "counts"))
    assert tokens.shape == documents.shape == counts.shape == (12, 9)
    assert np.array_equal(tokens[:, 1:].reshape(4, 24), batch[0][:, 1:])
    assert np.array_equal(counts[:, 1:].reshape(4, 24), batch[2][:, 1:])
    assert cut_rows(batch, 24) is batch


RAMP = (RampPhase(until_tokens=150, sequence_length=12, batch_size=4, micro_batch_size=2),)


def test_a_ramped_run_reads_every_row_once_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path / "whole", ramp=RAMP)
    assert [(phase.first_step, phase.end_step) for phase in trainer.plan.phases] == [(0, 3), (3, 12)]
    real, reads = trainer.mixture.batch, []

    def batch(first: int, size: int) -> object:
        reads.append((first, size))
        return real(first, size)

    trainer.mixture.batch = batch  # type: ignore[method-assign]
    trainer.fit()
    assert reads == [(0, 2), (2, 2), (4, 2), *((6 + 4 * number, 4) for number in range(9))]
    parts = small_trainer(tmp_path / "parts", ramp=RAMP)
    parts.fit(until_step=2)
    again = small_trainer(tmp_path / "parts", ramp=RAMP)
    assert again.resume()
    again.fit()
    left, right = dict(again.model.named_parameters()), dict(trainer.model.named_parameters())
    assert all(torch.equal(left[name], right[name]) for name in right)


def changed_mix(*changes: tuple[int, dict[str, float]]) -> tuple[MixChange, ...]:
    return tuple(
        MixChange(from_tokens=tokens, weights=tuple(SourceWeight(name=name, weight=weight) for name, weight in weights.items()))
        for tokens, weights in changes
    )


def mixture(**changes: Any) -> Any:
    return stage_mixture(small_sources(), small_stage(num_steps=200, **changes), seed=7)


def test_a_mix_change_takes_effect_at_its_tokens_and_repeats_no_row() -> None:
    plain = mixture()
    changed = mixture(mix_changes=changed_mix((24 * 100, {"a": 0.0}), (24 * 300, {"a": 5.0, "b": 0.0})))
    numbers = changed.source_numbers(0, 800)
    assert set(numbers[:100]) == set(plain.source_numbers(0, 100)) == {0, 1}
    assert set(numbers[100:300]) == {1} and set(numbers[300:]) == {0}
    sources, rows = changed.rows_of(0, 800)
    for source, name in enumerate(changed.names):
        picks = rows[sources == source].tolist()
        size = len(changed.sources[name])
        for start in range(0, len(picks) - size, size):
            assert sorted(picks[start : start + size]) == list(range(size)), "every epoch reads every row once"


def test_a_source_is_read_no_more_often_than_it_may() -> None:
    sources = (SourceConfig(name="a", path="a", weight=9.0, max_epochs=2.0), SourceConfig(name="b", path="b"))
    epochs = mixture(sources=sources).epochs(3000)
    assert epochs["a"] == 2.0 and epochs["b"] > 20
    with pytest.raises(ConfigError, match="source 'a' has max_epochs -1"):
        SourceConfig(name="a", path="a", max_epochs=-1.0)


def test_a_source_that_begins_later_is_packed_and_one_that_never_does_is_not() -> None:
    sources = (SourceConfig(name="a", path="a"), SourceConfig(name="b", path="b", weight=0.0), SourceConfig(name="c", path="c", weight=0.0))
    stage = small_stage(sources=sources, mix_changes=changed_mix((48, {"b": 1.0})))
    assert [source.name for source in stage.used_sources] == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (((100, {"a": 1.0}), (100, {"a": 2.0})), "a mix change from 100 tokens follows one from 100"),
        (((100, {"z": 1.0}),), "a mix change names 'z', which is no source"),
    ],
)
def test_an_impossible_mix_is_refused(changes: tuple[tuple[int, dict[str, float]], ...], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        small_stage(mix_changes=changed_mix(*changes))
    with pytest.raises(ConfigError, match="the phase from sample 4 has no positive weight"):
        mixture(mix_changes=changed_mix((96, {"a": 0.0, "b": 0.0})))


def test_ramps_and_mixes_go_through_toml_and_are_reached_by_overrides() -> None:
    stage = published(mix_changes=changed_mix((1000, {"a": 2.0})))
    assert from_toml(StageConfig, to_toml(stage)) == stage
    changed = apply_overrides(stage, ["ramp.0.until_tokens=252_000_000_000", "mix_changes.0.weights.a.weight=3"])
    assert changed.ramp[0].until_tokens == 252_000_000_000 and changed.mix_changes[0].weights[0].weight == 3


def test_averaging_ends_the_stage_with_the_mean_of_its_checkpoints(tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    trainer = small_trainer(tmp_path, average_every=4)

    def note(step: int, *_: object) -> None:
        if step % 4 == 0:
            seen.append({name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()})

    trainer.on_step = note
    trainer.fit()
    assert len(seen) == 3
    for name, parameter in trainer.model.named_parameters():
        mean = torch.stack([weights[name].double() for weights in seen]).mean(0)
        torch.testing.assert_close(parameter.detach().double(), mean, rtol=1e-6, atol=1e-7)
    # Taken up again at its end, the run has the mean once more, and says so once.
    again = small_trainer(tmp_path, average_every=4)
    again.resume()
    again.fit()
    assert all(torch.equal(left, right) for left, right in zip(again.model.parameters(), trainer.model.parameters(), strict=True))
    text = (tmp_path / "log.jsonl").read_text()
    assert text.count('"averaged": 3') == 1 and text.count('"heldout"') == 4


def test_a_stage_can_go_on_with_the_moments_of_the_one_before(tmp_path: Path) -> None:
    first = small_trainer(tmp_path / "first")
    first.fit()
    stage = small_stage(num_steps=2, warmup_steps=0)
    second = Trainer(first.model, stage, first.mixture, folder=tmp_path / "second", run="next", moments=first.moments_of())
    assert second.resume() is False
    name = "model.norm.weight"
    ours = second.optimizer.state[dict(second.model.named_parameters())[name]]
    theirs = first.optimizer.state[dict(first.model.named_parameters())[name]]
    assert torch.equal(ours["exp_avg"], theirs["exp_avg"]) and ours["exp_avg"] is not theirs["exp_avg"]
    assert float(ours["step"]) == 12
