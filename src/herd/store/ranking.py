"""Two rankings made one: by reciprocal ranks (Cormack et al. 2009), or by weighted scores. Scores come out between 0 and 1.

rrf        s(d) = sum over lists of w / (k + rank)   over its largest possible value
weighted   s(d) = sum over lists of w * (s - min) / (max - min)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from herd.base.errors import UsageError

Scored = Sequence[tuple[int, float]]
"""Numbers of chunks with their scores, best first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """How to rank.

    Attributes:
        method: rrf or weighted.
        vector_weight, keyword_weight: of the two lists.
        constant: k of reciprocal ranks; the larger, the less first places count.
        threshold: least score of a result.
    """

    method: Literal["rrf", "weighted"] = "rrf"
    vector_weight: float = 1.0
    keyword_weight: float = 1.0
    constant: float = 60.0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if min(self.vector_weight, self.keyword_weight) < 0 or not self.vector_weight + self.keyword_weight > 0:
            raise UsageError(
                f"the weights are {self.vector_weight:g} and {self.keyword_weight:g}", hint="give weights of 0 or more, one of them over 0"
            )
        if not self.constant > 0:
            raise UsageError(f"the constant of reciprocal ranks is {self.constant:g}", hint="give one over 0, such as 60")


def fuse(vectors: Scored, keywords: Scored, ranking: Ranking) -> list[tuple[int, float]]:
    """One list, best first; of the same score the older chunk."""
    total = ranking.vector_weight + ranking.keyword_weight
    scores: dict[int, float] = {}
    for found, weight in ((vectors, ranking.vector_weight / total), (keywords, ranking.keyword_weight / total)):
        for number, share in _shares(found, ranking):
            scores[number] = scores.get(number, 0.0) + weight * share
    return sorted(scores.items(), key=lambda one: (-one[1], one[0]))


def _shares(found: Scored, ranking: Ranking) -> list[tuple[int, float]]:
    if ranking.method == "rrf":
        return [(number, (ranking.constant + 1) / (ranking.constant + rank)) for rank, (number, _) in enumerate(found, start=1)]
    if not found:
        return []
    scores = [score for _, score in found]
    low, high = min(scores), max(scores)
    return [(number, (score - low) / (high - low) if high > low else 1.0) for number, score in found]
