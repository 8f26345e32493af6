"""A guard model by name and its figures: the threshold that its checkpoint brings, the one that tuning texts choose, the report."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from guard_reader import Reader  # pyright: ignore[reportMissingImports]

from herd.base.errors import FormatError
from herd.safety.corpus import Example
from herd.safety.guard_model import choose_threshold, guard_report, judge_all, measured_threshold
from herd.safety.llama_guard import LlamaGuard


def example(score: float, mark: str, *, harm: bool, source: str = "talk", lookalike: bool = False) -> Example:
    return Example(
        text=f"text {score}",
        source=source,
        lang="en",
        group=f"{mark}:{score}",
        harm=harm,
        category="S2" if harm else None,
        lookalike=lookalike,
    )


def test_verdicts_come_in_the_order_of_the_texts() -> None:
    texts = [f"text {number / 200:.3f}" for number in range(1, 200)]
    verdicts = asyncio.run(judge_all(LlamaGuard(Reader()), texts))
    assert [round(verdict.score or 0.0, 3) for verdict in verdicts] == [number / 200 for number in range(1, 200)]


def test_the_threshold_keeps_to_both_limits() -> None:
    ordinary = [example(number / 1000, "tune", harm=False) for number in range(1, 501)]
    alike = [example(0.5 + number / 1000, "tune", harm=False, lookalike=True) for number in range(1, 101)]
    others = [example(0.99, "held", harm=False), example(0.98, "train", harm=False), example(0.97, "tune", harm=True)]
    chosen = asyncio.run(choose_threshold(Reader(), [*ordinary, *alike, *others]))
    assert 0.575 < chosen <= 0.576, "a quarter of the look-alikes are above; the two hundredths of the others bind less"


def test_the_report_counts_by_the_threshold() -> None:
    harmful = [example(score, "held", harm=True, source="ailuminate") for score in (0.9, 0.8, 0.3)]
    benign = [example(score, "held", harm=False) for score in (0.1, 0.2, 0.7)]
    train = [example(0.5, "train", harm=True), example(0.4, "train", harm=False)]
    tune = [example(0.6, "tune", harm=True), example(0.4, "tune", harm=False)]
    report = asyncio.run(guard_report(Reader(), 0.75, [*harmful, *benign, *train, *tune]))
    told = report["harm"]["held_back"]
    assert (told["num_positive"], told["num_negative"], told["recall"], told["precision"], told["fpr"]) == (3, 3, 0.6667, 1.0, 0.0)
    assert report["harm"]["threshold"] == 0.75
    assert report["categories"] == {"accuracy": 0.6667, "num": 3, "recall_by_category": {"S2": 0.6667}}


def test_a_checkpoint_brings_its_threshold(tmp_path: Path) -> None:
    assert measured_threshold(tmp_path) == 0.5
    (tmp_path / "guard.json").write_text('{"threshold": 0.62}')
    assert measured_threshold(tmp_path) == 0.62
    for wrong in ('{"threshold": 1.5}', '{"threshold": true}', "{}", '{"threshold": "high"}'):
        (tmp_path / "guard.json").write_text(wrong)
        with pytest.raises(FormatError, match="must be a number from 0 to 1") as caught:
            measured_threshold(tmp_path)
        assert "threshold" in (caught.value.hint or "")
