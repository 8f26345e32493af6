"""What guards are measured by, on texts that they have not seen: a report of figures by language and source, beside a keyword baseline.

Figures are of the test groups and of sources that nothing was ever trained on. The baseline is fair: the words that speak loudest in the
same training data, its own threshold chosen on the same tuning groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.safety.corpus import FOREIGN, Example, languages
from herd.safety.detectors import HEADS, Detectors, Head
from herd.safety.features import plain
from herd.safety.figures import measure

NUM_KEYWORDS = 200


def label_of(example: Example, head: Head) -> bool | None:
    """What is known of an example for a head."""
    return getattr(example, head)


Scorer = Callable[[Sequence[str]], NDArray[np.float64]]
Scored = tuple[NDArray[np.float64], float]
"""Scores of texts, and the threshold that they are held to."""


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


def held_back(examples: Sequence[Example], head: Head) -> list[Example]:
    """What a head is measured on: the test groups whose label is known, foreign sources among them."""
    return [example for example in examples if example.part == "test" and label_of(example, head) is not None]


def report_of(tested: Sequence[Example], head: Head, ours: Scored, theirs: Scored) -> dict[str, Any]:
    """The figures of scores of `tested`, with those of a baseline: together, by language, by source, of foreign sources."""
    labels = np.array([bool(label_of(example, head)) for example in tested])
    home = np.array([example.source not in FOREIGN for example in tested])
    alike = np.array([example.lookalike for example in tested])
    sources = np.array([example.source for example in tested])
    langs = np.array([example.lang for example in tested])

    def told(chosen: NDArray[np.bool_], scored: Scored) -> dict[str, Any]:
        return measure(scored[0][chosen], labels[chosen], scored[1]).to_dict()

    return {
        "threshold": round(ours[1], 4),
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


def evaluate(detectors: Detectors, examples: Sequence[Example]) -> dict[str, Any]:
    """All figures of the detectors' card, by head."""
    report: dict[str, Any] = {}
    for head in HEADS:
        tested = held_back(examples, head)
        texts = [example.text for example in tested]
        baseline, threshold = keyword_baseline(examples, head)
        ours = (detectors.scores(texts, head), detectors.thresholds[head])
        report[head] = report_of(tested, head, ours, (baseline(texts), threshold))
    report["categories"] = _category_figures(detectors, examples)
    return report


def _category_figures(detectors: Detectors, examples: Sequence[Example]) -> dict[str, Any]:
    tested = [example for example in examples if example.part == "test" and example.source == "ailuminate"]
    return category_figures(tested, [detectors.name_categories(example.text)[0] for example in tested])


def category_figures(tested: Sequence[Example], named: Sequence[str]) -> dict[str, Any]:
    """How often the first category named is the true one, by category."""
    hits = [name == example.category for example, name in zip(tested, named, strict=True)]
    codes = sorted({str(example.category) for example in tested}, key=lambda code: int(code[1:]))
    by_code = {
        code: round(float(np.mean([hit for hit, example in zip(hits, tested, strict=True) if example.category == code])), 4)
        for code in codes
    }
    return {"accuracy": round(float(np.mean(hits)), 4) if hits else None, "num": len(hits), "recall_by_category": by_code}
