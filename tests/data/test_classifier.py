"""The linear classifier: it learns what is there to learn, the same file from the same labels, and refuses what is no classifier."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from herd.base.errors import ConfigError, FormatError, NotFoundError
from herd.data.classifier import ClassifierConfig, load_classifier, train_classifier
from herd.data.stages.quality import QualityFilter
from herd.data.stages.stage import Drop

GOOD = ["river", "meadow", "herd", "mountain", "village", "morning", "shepherd", "stone", "winter", "grass"]
BAD = ["click", "buy", "cheap", "discount", "winner", "offer", "free", "now", "deal", "subscribe"]
CONFIG = ClassifierConfig(buckets=2**12)


def examples(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts of which a third of the words tell their label."""
    rng = random.Random(seed)
    both = [f"word{number}" for number in range(50)]
    labelled = [("good", GOOD), ("bad", BAD)]
    return [
        (" ".join(rng.choice(own) if rng.random() < 0.3 else rng.choice(both) for _ in range(30)), label)
        for label, own in (labelled[number % 2] for number in range(count))
    ]


def test_it_learns_and_tells_how_well() -> None:
    steps: list[int] = []
    classifier, report = train_classifier(examples(600), CONFIG, on_step=steps.append)
    assert report.accuracy > 0.97 and report.majority < 0.65
    assert report.num_train + report.num_heldout == 600 and 30 < report.num_heldout < 100
    assert set(report.labels) == {"good", "bad"} and report.labels["good"]["recall"] > 0.9
    assert classifier.scores("the herd in the meadow by the river")["good"] > 0.9
    assert classifier.scores("buy now cheap offer")["bad"] > 0.9
    assert sum(classifier.scores("").values()) == pytest.approx(1)
    assert steps[-1] == report.num_train * CONFIG.epochs


def test_nothing_is_learned_where_nothing_is_to_be_learned() -> None:
    rng = random.Random(1)
    shuffled = [(text, rng.choice(["good", "bad"])) for text, _ in examples(600)]
    assert train_classifier(shuffled, CONFIG)[1].accuracy < 0.75


def test_three_labels_are_told_apart() -> None:
    three = [
        (f"{text} third third third", "third") if number % 3 == 0 else (text, label) for number, (text, label) in enumerate(examples(600))
    ]
    _, report = train_classifier(three, CONFIG)
    assert report.accuracy > 0.95 and len(report.labels) == 3


def test_the_same_labels_give_the_same_file_and_it_reads_back(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        train_classifier(examples(200), CONFIG)[0].save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    read = load_classifier(str(tmp_path / "a.npz"))
    assert read.labels == ("bad", "good") and read.config == CONFIG
    text = examples(1)[0][0]
    assert read.scores(text) == train_classifier(examples(200), CONFIG)[0].scores(text)


def test_what_cannot_be_trained_on_is_refused() -> None:
    with pytest.raises(ConfigError, match="label"):
        train_classifier([("text", "good")] * 20, CONFIG)
    with pytest.raises(ConfigError, match="too few"):
        train_classifier(examples(2), ClassifierConfig(heldout_one_in=1_000_000))
    for wrong in ({"buckets": 1000}, {"epochs": 0}, {"lr": 0.0}, {"heldout_one_in": 1}):
        with pytest.raises(ConfigError):
            ClassifierConfig(**wrong)  # pyright: ignore[reportArgumentType]


def test_a_file_that_is_no_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.npz"):
        load_classifier(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_bytes(b"no arrays")
    np.savez(tmp_path / "other.npz", weights=np.zeros((2, 2)))
    np.savez(tmp_path / "pickle.npz", weights=np.array([{}], dtype=object), bias=np.zeros(2), about=np.zeros(2, np.uint8))
    classifier, _ = train_classifier(examples(100), CONFIG)
    classifier.weights = classifier.weights[:10]
    classifier.save(tmp_path / "short.npz")
    for name in ("text", "other", "pickle", "short"):
        with pytest.raises(FormatError):
            load_classifier(str(tmp_path / f"{name}.npz"))


def test_the_stage_scores_drops_and_sends_on(tmp_path: Path) -> None:
    train_classifier(examples(400), CONFIG)[0].save(tmp_path / "quality.npz")
    path = str(tmp_path / "quality.npz")
    stage = QualityFilter(model=path, label="good")
    kept = stage.apply({"text": "a herd on the mountain"}, lambda what, count: None)
    assert isinstance(kept, dict) and kept["quality"] > 0.5
    dropped = stage.apply({"text": "click here buy cheap"}, lambda what, count: None)
    assert isinstance(dropped, Drop) and dropped.reason == "low quality"
    sent = QualityFilter(model=path, label="good", route="maths").apply({"text": "a herd on the mountain"}, lambda what, count: None)
    assert isinstance(sent, dict) and sent["route"] == "maths"
    with pytest.raises(ConfigError, match="no label 'goood'") as caught:
        QualityFilter(model=path, label="goood").apply({"text": "x"}, lambda what, count: None)
    assert "good" in str(caught.value.hint)
