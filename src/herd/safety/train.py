"""Train the detectors that ship and write weights, figures and model card: `herd guard train`.

Every head is fitted on the training groups, and its threshold is chosen on the tuning groups; `measuring` has what the figures are of.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from herd.base.atomic import atomic_directory
from herd.base.progress import track_steps
from herd.safety.corpus import Example, read_corpus
from herd.safety.detectors import CATEGORY_SIZE, HEADS, SIZES, Detectors, Head, windows_of
from herd.safety.features import rows_of
from herd.safety.figures import threshold_at_fpr
from herd.safety.linear import FitConfig, Linear, fit
from herd.safety.measuring import evaluate, label_of


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How the detectors are trained. A limit is a share of benign tuning texts that may be flagged: of ordinary ones, of look-alikes."""

    harm: FitConfig = field(default_factory=lambda: FitConfig(num_steps=90, l2=5e-7))
    attack: FitConfig = field(default_factory=lambda: FitConfig(num_steps=120, l2=1e-7))
    embedded: FitConfig = field(default_factory=lambda: FitConfig(num_steps=70, l2=1e-7))
    category: FitConfig = field(default_factory=lambda: FitConfig(num_steps=60, l2=1e-6))
    harm_fpr: float = 0.02
    harm_lookalike_fpr: float = 0.25
    attack_fpr: float = 0.005
    embedded_fpr: float = 0.01


def train(examples: Sequence[Example], config: TrainConfig | None = None) -> Detectors:
    """Fit all heads and choose their thresholds."""
    config = config or TrainConfig()
    heads: dict[Head, Linear] = {}
    with track_steps("heads", total=len(HEADS) + 1) as advance:
        for number, head in enumerate(HEADS):
            heads[head] = _fit_head([example for example in examples if example.part == "train"], head, getattr(config, head))
            advance(number + 1, head)
        categories = _fit_categories(examples, config.category)
        advance(len(HEADS) + 1, "categories")
    untuned = Detectors(heads=heads, thresholds=dict.fromkeys(HEADS, 0.5), categories=categories)
    shifted = {head: _shift(heads[head], _threshold(untuned, examples, head, config)) for head in HEADS}
    return replace(untuned, heads=shifted)


def _shift(head: Linear, threshold: float) -> Linear:
    """The same order of texts, with the chosen threshold at a half: a score says on which side a text is, for every head alike."""
    inside = min(max(threshold, 1e-9), 1 - 1e-9)
    return replace(head, bias=head.bias - float(np.log(inside / (1 - inside))))


def _fit_head(examples: Sequence[Example], head: Head, config: FitConfig) -> Linear:
    """Fit on windows, as texts are judged. Where an order is planted in a longer text only the order itself is known to be one."""
    texts: list[str] = []
    labels: list[float] = []
    weights: list[float] = []
    for example in examples:
        label = label_of(example, head)
        windows = windows_of(example.text, head)
        if label is None or (label and head == "embedded" and example.planted):
            continue
        texts += windows
        labels += [float(label)] * len(windows)
        weights += [example.weight / len(windows)] * len(windows)
    return fit(rows_of(texts, SIZES[head]), np.array(labels), np.array(weights), SIZES[head], config)


def _fit_categories(examples: Sequence[Example], config: FitConfig) -> dict[str, Linear]:
    known = [example for example in examples if example.part == "train" and example.category is not None]
    # Hate fills most of the data with a few hundred templates: it is thinned, so that the other categories have a voice.
    known = [example for index, example in enumerate(known) if example.source not in ("hatecheck", "davidson") or index % 8 == 0]
    rows = rows_of([example.text for example in known], CATEGORY_SIZE)
    found: dict[str, Linear] = {}
    for code in sorted({str(example.category) for example in known}, key=lambda code: int(code[1:])):
        labels = np.array([float(example.category == code) for example in known])
        found[code] = fit(rows, labels, np.ones(len(known)), CATEGORY_SIZE, config)
    return found


def _threshold(detectors: Detectors, examples: Sequence[Example], head: Head, config: TrainConfig) -> float:
    """The lowest threshold that keeps to the limits on benign tuning texts."""
    tuning = [example for example in examples if example.part == "tune" and label_of(example, head) is False]
    scores = detectors.scores([example.text for example in tuning], head)
    alike = np.array([example.lookalike for example in tuning])
    if head != "harm":
        return threshold_at_fpr(scores, config.attack_fpr if head == "attack" else config.embedded_fpr)
    return max(threshold_at_fpr(scores[~alike], config.harm_fpr), threshold_at_fpr(scores[alike], config.harm_lookalike_fpr))


def run(data: Path, output: Path, *, overwrite: bool = False, config: TrainConfig | None = None) -> dict[str, Any]:
    """Train on a data folder and write detectors.npz, figures.json and MODEL_CARD.md into `output`; returns the figures.

    Raises NotFoundError without safety data, UsageError if `output` is not empty and `overwrite` is false.
    """
    from herd.safety.card import write_card

    examples = read_corpus(data)
    detectors = train(examples, config)
    report = evaluate(detectors, examples)
    with atomic_directory(output, overwrite=overwrite) as folder:
        detectors.save(folder / "detectors.npz")
        (folder / "figures.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (folder / "MODEL_CARD.md").write_text(write_card(report), encoding="utf-8")
    return report
