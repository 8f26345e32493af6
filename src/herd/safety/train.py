"""Train the detectors that ship, measure them on what they have not seen, and write weights, figures and model card.

`herd guard train` runs this. Every head is fitted on the training groups, its threshold is chosen on the tuning groups, its figures are of
the test groups and of sources that were never trained on. The keyword baseline is fair: the words that speak loudest in the same
training data, its own threshold chosen on the same tuning groups.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.base.atomic import atomic_directory
from herd.base.progress import track_steps
from herd.safety.corpus import FOREIGN, Example, languages, read_corpus
from herd.safety.detectors import CATEGORY_SIZE, HEADS, SIZES, Detectors, Head, windows_of
from herd.safety.features import plain, rows_of
from herd.safety.figures import measure, threshold_at_fpr
from herd.safety.linear import FitConfig, Linear, fit

NUM_KEYWORDS = 200


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


def label_of(example: Example, head: Head) -> bool | None:
    """What is known of an example for a head."""
    return getattr(example, head)


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


# Measuring

Scorer = Callable[[Sequence[str]], NDArray[np.float64]]


def keyword_baseline(examples: Sequence[Example], head: Head) -> tuple[Scorer, float]:
    """A scorer that counts words of a list, and its threshold: the best of several lists of training words by the tuning data."""
    tuning = [example for example in examples if example.part == "tune" and label_of(example, head) is not None]
    texts, labels = [example.text for example in tuning], np.array([bool(label_of(example, head)) for example in tuning])
    best: tuple[float, Scorer, float] | None = None
    for listed in _keyword_lists(examples, head):

        def score(texts: Sequence[str], listed: frozenset[str] = listed) -> NDArray[np.float64]:
            return np.array([sum(word in listed for word in plain(text).split()) / 10 for text in texts], dtype=np.float64)

        scores = score(texts)
        threshold = max((0.1, 0.2, 0.3), key=lambda tried: measure(scores, labels, tried).f1 or 0.0)
        quality = measure(scores, labels, threshold).auprc or 0.0
        if best is None or quality > best[0]:
            best = quality, score, threshold
    assert best is not None
    return best[1], best[2]


def _keyword_lists(examples: Sequence[Example], head: Head) -> list[frozenset[str]]:
    """Words with the highest log-odds among those seen a few times, often, very often; and those furthest from chance."""
    counts: tuple[dict[str, float], dict[str, float]] = ({}, {})
    totals = [0.0, 0.0]
    for example in examples:
        label = label_of(example, head)
        if example.part == "train" and label is not None:
            totals[label] += example.weight
            for word in set(plain(example.text).split()):
                counts[label][word] = counts[label].get(word, 0.0) + example.weight
    odds = {
        word: float(np.log((count + 1) / (totals[1] + 2)) - np.log((counts[0].get(word, 0.0) + 1) / (totals[0] + 2)))
        for word, count in counts[1].items()
    }
    surprise = {word: value / np.sqrt(1 / (counts[1][word] + 1) + 1 / (counts[0].get(word, 0.0) + 1)) for word, value in odds.items()}

    def loudest(rank: Mapping[str, float], least: int) -> frozenset[str]:
        kept = [word for word in rank if counts[1][word] >= least]
        return frozenset(sorted(kept, key=lambda word: (-rank[word], word))[:NUM_KEYWORDS])

    return [*(loudest(odds, least) for least in (5, 20, 60)), loudest(surprise, 5)]


def evaluate(detectors: Detectors, examples: Sequence[Example]) -> dict[str, Any]:
    """All figures of the model card, by head: of the test groups together, by language, by source; of foreign sources; of the baseline."""
    report: dict[str, Any] = {}
    for head in HEADS:
        tested = [example for example in examples if example.part == "test" and label_of(example, head) is not None]
        baseline, baseline_threshold = keyword_baseline(examples, head)
        texts = [example.text for example in tested]
        ours = (detectors.scores(texts, head), detectors.thresholds[head])
        theirs = (baseline(texts), baseline_threshold)
        labels = np.array([bool(label_of(example, head)) for example in tested])
        home = np.array([example.source not in FOREIGN for example in tested])
        alike = np.array([example.lookalike for example in tested])
        sources = np.array([example.source for example in tested])
        langs = np.array([example.lang for example in tested])

        def told(
            chosen: NDArray[np.bool_], scored: tuple[NDArray[np.float64], float], labels: NDArray[np.bool_] = labels
        ) -> dict[str, Any]:
            return measure(scored[0][chosen], labels[chosen], scored[1]).to_dict()

        report[head] = {
            "threshold": round(detectors.thresholds[head], 4),
            "held_back": told(home, ours),
            "baseline": told(home, theirs),
            "lookalikes": told(home & alike & ~labels, ours),
            "ordinary": told(home & ~alike & ~labels, ours),
            "lookalikes_baseline": told(home & alike & ~labels, theirs),
            "by_language": {lang: told(home & (langs == lang), ours) for lang in languages(tested)},
            "by_language_baseline": {lang: told(home & (langs == lang), theirs) for lang in languages(tested)},
            "lookalikes_by_language": {lang: told(home & alike & ~labels & (langs == lang), ours) for lang in languages(tested)},
            "by_source": {str(source): told(sources == source, ours) for source in sorted(set(sources))},
            "foreign_baseline": {str(source): told(sources == source, theirs) for source in sorted(set(sources) & FOREIGN)},
        }
    report["categories"] = _category_figures(detectors, examples)
    return report


def _category_figures(detectors: Detectors, examples: Sequence[Example]) -> dict[str, Any]:
    """How often the first category named is the true one, on AILuminate's held-back prompts, by category."""
    tested = [example for example in examples if example.part == "test" and example.source == "ailuminate"]
    hits = [detectors.name_categories(example.text)[0] == example.category for example in tested]
    codes = sorted({str(example.category) for example in tested}, key=lambda code: int(code[1:]))
    by_code = {
        code: round(float(np.mean([hit for hit, example in zip(hits, tested, strict=True) if example.category == code])), 4)
        for code in codes
    }
    return {"accuracy": round(float(np.mean(hits)), 4) if hits else None, "num": len(hits), "recall_by_category": by_code}


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
