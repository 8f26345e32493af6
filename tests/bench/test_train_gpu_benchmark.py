"""The training benchmark of GPUs, without one: what it measures in which order, what it takes to fit, and that its step trains."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from herd.model.presets import preset

ROOT = str(Path(__file__).resolve().parents[2])
GB = 10**9


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_the_most_telling_comes_first() -> None:
    from benchmarks.train_gpu import variants

    names = [variant.name for variant in variants(["1b", "3b"], float8=True)]
    assert names == ["1b compiled", "1b eager", "1b compiled float8", "3b compiled", "3b compiled float8", "3b eager"]
    assert [variant.name for variant in variants(["3b"], float8=False)] == ["3b compiled", "3b eager"]


def test_what_is_in_memory_at_once_follows_from_the_card() -> None:
    from benchmarks.train_gpu import SHAPES, Room, choose_room, row_bytes, state_bytes

    one, eight = preset(SHAPES["1b"]), preset(SHAPES["8b"])
    assert choose_room(one, 8, 150 * GB, compiled=True) == Room(micro=8, recompute="none")
    assert choose_room(one, 8, 150 * GB, compiled=False) == Room(micro=4, recompute="none")
    assert choose_room(one, 8, 32 * GB, compiled=False) == Room(micro=1, recompute="full"), "nothing fits: the least is tried"
    assert choose_room(eight, 2, 150 * GB, compiled=True) == Room(micro=1, recompute="full")
    full = Room(micro=1, recompute="full")
    for config in (one, eight):
        assert row_bytes(config, full, compiled=False) < row_bytes(config, replace(full, recompute="none"), compiled=True)
        assert row_bytes(config, full, compiled=False, length=4096) * 2 == row_bytes(config, full, compiled=False)
        assert state_bytes(config) > 16 * config.num_parameters


def test_what_does_not_fit_is_tried_with_less_until_nothing_is_less() -> None:
    from benchmarks.train_gpu import Room

    seen, room = [], Room(micro=4, recompute="none")
    while room is not None:
        seen.append((room.micro, room.recompute))
        room = room.less()
    assert seen == [(4, "none"), (2, "none"), (1, "none"), (1, "full")]


def test_the_step_trains_and_its_figures_follow_from_its_time() -> None:
    from benchmarks.train_gpu import Room, Variant, line, make_step, problems, rates, run_steps

    config = replace(preset("cria-tiny"), num_hidden_layers=2)
    losses = {}
    for recompute in ("none", "full"):
        step = make_step(config, Variant(shape="1b", compiled=False), Room(micro=1, recompute=recompute), 2, device="cpu", length=32)
        found = run_steps(step, repeats=2, wait=lambda: None)
        losses[recompute] = found["losses"]
        assert len(found["steps_s"]) == 2 and found["step_s"] > 0
        assert problems("it", found["losses"], found["losses"][0], float8=False) == []
    assert losses["none"] == losses["full"] and losses["none"][0] == pytest.approx(math.log(config.vocab_size), rel=0.02)
    figures = rates(config, 2, 0.5, {"measured": 1e12, "nameplate": None}, length=32)
    assert figures["tokens_per_s"] == 128 and "mfu_nameplate" not in figures
    assert figures["mfu_measured"] == pytest.approx(128 * config.training_flops_per_token(32) / 1e12)
    told = line("it", found | figures | {"rows": 2, "micro_batch_size": 1, "recompute": "full", "peak_bytes": 5 * GB})
    assert told.startswith("it: 128 tokens/s, mfu_measured 0.0%") and "2 rows, 1 at once, recompute=full, peak 5.0 GB" in told


def test_losses_that_are_wrong_are_told() -> None:
    from benchmarks.train_gpu import problems

    assert problems("it", [2.0, 1.9], 2.005, float8=False) == []
    assert "its first loss is 2.0000, not 2.0200" in problems("it", [2.0, 1.9], 2.02, float8=False)[0]
    assert problems("it", [2.0, 1.9], 2.02, float8=True) == [], "8 bits have more noise"
    assert "does not fall: 2.0000 to 2.0000" in problems("it", [2.0, 2.0], 2.0, float8=False)[0]
    assert "no numbers" in problems("it", [2.0, math.nan], 2.0, float8=False)[0]


def test_the_loss_check_sees_no_difference_where_both_are_torchs() -> None:
    from benchmarks.train_gpu import check_loss

    assert set(check_loss("cpu", rows=50, dim=16, vocab=99).values()) == {0.0}


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import train_gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["train_gpu"])
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU that torch sees, and there is none here: nothing was measured"):
        train_gpu.main()


def run_main(monkeypatch: pytest.MonkeyPatch, path: Path, measured: Any, *arguments: str) -> dict[str, Any]:
    """The whole run with a card that is not there: what it would measure is given."""
    from benchmarks import train_gpu

    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    for name, value in {"is_available": True, "get_device_name": "NVIDIA H200", "mem_get_info": (1, 150 * GB)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    for name, value in {"roofs": {"bf16_flops": 8e14}, "check_loss": {"loss": 1e-6}, "largest": {"8b": {"fits": True}}}.items():
        monkeypatch.setattr(train_gpu, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(train_gpu, "measure", measured)
    monkeypatch.setattr("sys.argv", ["train_gpu", "--json", str(path), *arguments])
    train_gpu.main()
    return json.loads(path.read_text())["results"]


def figures(variant: Any, peaks: Any, *, repeats: int) -> dict[str, Any]:
    assert peaks == {"measured": 8e14, "nameplate": pytest.approx(9.895e14, rel=0.01)} and repeats == 5
    losses = [11.8 + 0.001 * variant.compiled, 11.0]
    made = {"tokens_per_s": 1e5, "mfu_measured": 0.5, "step_s": 1.0, "first_step_s": 9.0, "losses": losses}
    return made | {"rows": 8, "micro_batch_size": 8, "recompute": "none", "peak_bytes": GB}


def test_a_whole_run_is_written_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_main(monkeypatch, tmp_path / "a.json", figures, "--shapes", "1b", "3b", "--float8", "--largest")
    assert len(found["variants"]) == 6 and found["skipped"] == found["wrong"] == [] and found["largest"] == {"8b": {"fits": True}}
    assert "1b compiled: 100,000 tokens/s, mfu_measured 50.0%" in capsys.readouterr().out
    found = run_main(monkeypatch, tmp_path / "b.json", figures, "--seconds", "-1", "--largest")
    assert found["variants"] == {} and found["skipped"] == ["1b compiled", "1b eager", "largest"]


def test_a_variant_that_fails_is_told_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(variant: Any, peaks: Any, *, repeats: int) -> dict[str, Any]:
        if variant.compiled:
            raise ValueError("no compiler")
        return figures(variant, peaks, repeats=repeats)

    with pytest.raises(SystemExit) as ended:
        run_main(monkeypatch, tmp_path / "c.json", failing)
    said = capsys.readouterr()
    assert ended.value.code == 1 and "ValueError: no compiler" in said.out and "error: 1b compiled failed" in said.err
    found = json.loads((tmp_path / "c.json").read_text())["results"]
    assert list(found["variants"]) == ["1b eager"] and found["wrong"] == ["1b compiled failed"]


def test_a_variant_that_does_not_fit_is_tried_with_less(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import train_gpu
    from benchmarks.train_gpu import Room, Variant, measure

    seen: list[Room] = []

    def step_of(config: Any, variant: Any, room: Room, rows: int, *, device: str) -> Any:
        seen.append(room)
        if room.micro > 2 or not fits:
            raise torch.OutOfMemoryError("no room")
        return iter([11.8, 11.7, 11.6, 11.5]).__next__

    monkeypatch.setattr(train_gpu, "make_step", step_of)
    monkeypatch.setattr(train_gpu, "_clear", lambda: None)
    for name, value in {"mem_get_info": (1, 150 * GB), "max_memory_allocated": 3, "max_memory_reserved": 4, "synchronize": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    fits, variant = True, Variant(shape="1b", compiled=True)
    found = measure(variant, {"measured": 8e14, "nameplate": None}, repeats=2)
    assert [room.micro for room in seen] == [8, 4, 2] and found["micro_batch_size"] == 2 and found["losses"] == [11.8, 11.7, 11.6, 11.5]
    assert "1b compiled: 8 rows with recompute=none do not fit" in capsys.readouterr().out
    fits = False
    with pytest.raises(RuntimeError, match="1b compiled: not one row of 8192 fits on this card"):
        measure(variant, {"measured": 8e14}, repeats=2)
    assert seen[-1] == Room(micro=1, recompute="full")
