"""What a detector is measured by: F1, precision, recall, false positive rate, the area under precision and recall, a threshold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Figures at a threshold. `auprc` and `f1` are None without positives, `fpr` without negatives."""

    num_positive: int
    num_negative: int
    f1: float | None
    precision: float | None
    recall: float | None
    fpr: float | None
    auprc: float | None

    def to_dict(self) -> dict[str, Any]:
        """Its JSON, to four digits."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def average_precision(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """The area under precision and recall, as the mean of the precision at each positive; equal scores count as one step."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    precision = hits[ends] / (ends + 1)
    gained = np.diff(np.concatenate([[0], hits[ends]]))
    return float((precision * gained).sum() / hits[-1])


def measure(scores: NDArray[np.floating], positive: NDArray[np.bool_], threshold: float) -> Figures:
    """The figures of scores against labels, with what is at the threshold or above flagged."""
    flagged = scores >= threshold
    true, false = int((flagged & positive).sum()), int((flagged & ~positive).sum())
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    precision = true / (true + false) if true + false else None
    recall = true / num_positive if num_positive else None
    return Figures(
        num_positive=num_positive,
        num_negative=num_negative,
        f1=2 * true / (2 * true + false + num_positive - true) if num_positive else None,
        precision=precision,
        recall=recall,
        fpr=false / num_negative if num_negative else None,
        auprc=average_precision(scores, positive) if num_positive else None,
    )


def threshold_at_fpr(scores: NDArray[np.floating], fpr: float) -> float:
    """The lowest threshold at which at most this share of benign scores is flagged; above 1 it is held at 1."""
    ordered = np.sort(scores)[::-1]
    allowed = int(fpr * len(ordered))
    if allowed >= len(ordered):
        return 0.0
    return min(float(np.nextafter(ordered[allowed], 2.0)), 1.0)
