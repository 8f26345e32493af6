"""Distillation: the divergences against whole distributions, and the file that a teacher leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from objective_rows import taught, text_columns  # pyright: ignore[reportMissingImports]
from safetensors.numpy import load_file
from small_run import VOCAB, small_model, small_stage  # pyright: ignore[reportMissingImports]
from torch import Tensor

from herd.base.errors import CheckpointError, ConfigError, NotFoundError
from herd.train.callback import measure
from herd.train.objectives.config import DistillConfig
from herd.train.objectives.distill import Distillation, divergence
from herd.train.step import train_step
from herd.train.teacher import FORMAT, read_teacher, write_teacher

LOGITS = torch.randn(7, 20, generator=torch.Generator().manual_seed(0)) * 2
TEACHER = (torch.randn(7, 20, generator=torch.Generator().manual_seed(1)) * 2).log_softmax(-1)


def top(k: int) -> tuple[Tensor, Tensor]:
    found = TEACHER.topk(k)
    return found.indices, found.values


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_with_the_whole_vocabulary_stored_the_divergences_are_the_exact_ones(tail: Any) -> None:
    student = LOGITS.log_softmax(-1)
    forward = F.kl_div(student, TEACHER, log_target=True, reduction="none").sum(-1)
    reverse = F.kl_div(TEACHER, student, log_target=True, reduction="none").sum(-1)
    for name, expected in (("forward", forward), ("reverse", reverse), ("symmetric", (forward + reverse) / 2)):
        config = DistillConfig(divergence=name, tail=tail)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(divergence(config, LOGITS, *top(20)), expected, rtol=1e-4, atol=2e-5)


def test_a_temperature_softens_both_and_scales_by_its_square() -> None:
    config = DistillConfig(tail="renormalise", temperature=3.0)
    expected = 9 * F.kl_div((LOGITS / 3).log_softmax(-1), (TEACHER / 3).log_softmax(-1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(divergence(config, LOGITS, *top(20)), expected, rtol=1e-4, atol=1e-5)


def test_the_bucket_is_one_more_outcome_and_never_above_the_whole_divergence() -> None:
    ids, values = top(4)
    p = torch.cat([values.exp(), 1 - values.exp().sum(-1, keepdim=True)], -1)
    picked = LOGITS.softmax(-1).gather(1, ids)
    q = torch.cat([picked, 1 - picked.sum(-1, keepdim=True)], -1)
    found = divergence(DistillConfig(), LOGITS, ids, values)
    torch.testing.assert_close(found, (p * (p / q).log()).sum(-1), rtol=1e-4, atol=1e-6)
    whole = F.kl_div(LOGITS.log_softmax(-1), TEACHER, log_target=True, reduction="none").sum(-1)
    assert bool((found <= whole + 1e-6).all()) and bool((found >= 0).all())


@pytest.mark.parametrize("config", [DistillConfig(), DistillConfig(divergence="reverse"), DistillConfig(tail="renormalise")])
def test_a_student_that_agrees_has_no_divergence(config: DistillConfig) -> None:
    ids, values = top(20 if config.tail == "renormalise" else 4)
    assert float(divergence(config, TEACHER, ids, values).abs().max()) < 1e-5


def test_a_student_comes_near_its_teacher(tmp_path: Path) -> None:
    columns = taught(tmp_path, top_k=8)
    objective = Distillation(config=DistillConfig(ce_weight=0.0))
    assert measure(small_model(seed=8), objective, columns)["divergence"] < 2e-3  # the teacher itself, but for float16
    student = small_model(seed=3)
    before = measure(student, objective, columns)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    stage = small_stage(batch_size=len(columns["tokens"]), micro_batch_size=len(columns["tokens"]))
    for _ in range(40):
        train_step(student, optimizer, columns, stage, lr=3e-3, objective=objective)
    after = measure(student, objective, columns)
    assert after["loss"] < before["loss"] / 2 and after["loss"] == pytest.approx(after["divergence"], rel=1e-5)


def test_the_mix_is_of_divergence_and_cross_entropy(tmp_path: Path) -> None:
    columns, model = taught(tmp_path), small_model()
    found = {weight: measure(model, Distillation(config=DistillConfig(ce_weight=weight)), columns) for weight in (0.0, 0.3, 1.0)}
    assert found[0.3]["loss"] == pytest.approx(0.7 * found[0.0]["loss"] + 0.3 * found[1.0]["loss"], rel=1e-5)
    assert found[1.0]["loss"] == pytest.approx(found[1.0]["ce"], rel=1e-6)


@torch.no_grad()
def test_a_file_holds_the_teachers_prediction_of_the_token_at_the_same_place(tmp_path: Path) -> None:
    columns = taught(tmp_path, top_k=5)
    teacher = small_model(seed=8)
    for row in range(3):
        inside = columns["documents"][row] == 1
        logprobs = teacher(torch.from_numpy(columns["tokens"][row][inside]).long()[None])[0].log_softmax(-1).topk(5)
        np.testing.assert_array_equal(columns["teacher_ids"][row][inside][1:], logprobs.indices[:-1].numpy())
        np.testing.assert_allclose(columns["teacher_logprobs"][row][inside][1:], logprobs.values[:-1].numpy(), rtol=2e-3, atol=2e-3)
    assert columns["teacher_logprobs"].dtype == np.float16 and columns["teacher_ids"].dtype == np.int32
    assert int(columns["teacher_ids"].max()) < VOCAB and not columns["teacher_ids"][:, 0].any()


def write(folder: Path, columns: dict[str, Any], **changes: Any) -> None:
    settings: dict[str, Any] = {"top_k": 3, "teacher": "small", "tokenizer": "t", "rows_per_file": 4} | changes
    write_teacher(small_model(seed=8), columns, folder, **settings)


def test_an_interrupted_teacher_goes_on_after_its_last_file(tmp_path: Path) -> None:
    columns = text_columns()
    write(tmp_path / "whole", columns)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(names) > 2

    def stop(done: int, _: str) -> None:
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut", columns, advance=stop, micro_batch_size=2)
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == names[:2]
    with pytest.raises(CheckpointError, match=f"holds 2 of {len(names)} files"):
        read_teacher(tmp_path / "cut")
    write(tmp_path / "cut", columns)
    for name in names:
        left, right = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        for column in ("tokens", "documents", "counts", "teacher_ids"):
            np.testing.assert_array_equal(left[column], right[column])
        np.testing.assert_allclose(left["teacher_logprobs"], right["teacher_logprobs"], atol=1e-2)


def test_files_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    columns = text_columns()
    write(tmp_path / "a", columns)
    for changes in ({"top_k": 4}, {"teacher": "other"}, {"tokenizer": "u"}):
        with pytest.raises(CheckpointError, match=f"{next(iter(changes))} "):
            write(tmp_path / "a", columns, **changes)
    with pytest.raises(CheckpointError, match="rows"):
        write(tmp_path / "a", {**columns, "tokens": columns["tokens"] * 0})
    with pytest.raises(CheckpointError, match="another tokenizer"):
        read_teacher(tmp_path / "a", tokenizer="u")
    with pytest.raises(NotFoundError):
        read_teacher(tmp_path)
    first = tmp_path / "a" / "teacher-00000.safetensors"
    assert FORMAT.encode() in first.read_bytes()[:2000]
    first.write_bytes(first.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a sound safetensors file"):
        read_teacher(tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"temperature": 2.0}, "temperature 2.0 cannot soften the tail"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"ce_weight": 1.5}, "ce_weight is 1.5"),
        ({"top_k": 0}, "top_k is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_too(changes: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ConfigError) as refused:
        DistillConfig(**changes)
    assert fragment in refused.value.message and refused.value.hint
