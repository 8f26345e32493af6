"""Quality by a trained linear classifier (`herd data classifier train`): fast enough for every document of a crawl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from herd.base.errors import ConfigError, did_you_mean
from herd.data.classifier import load_classifier
from herd.data.records import Record
from herd.data.stages.stage import Drop, Note


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityFilter:
    """Writes the probability of `label` into the record's `field`, and drops those below `min_score` (0: none, the score is only written).

    With `route`, records from `min_score` on take that route instead, and none is dropped.
    """

    kind: ClassVar[str] = "quality"
    routes: tuple[str, ...] = ()
    model: str
    label: str
    min_score: float = 0.5
    field: str = "quality"
    route: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"min_score is {self.min_score}, it must be between 0 and 1", hint="0.5 is usual")

    def files(self) -> tuple[str, ...]:
        """The classifier."""
        return (self.model,)

    def apply(self, record: Record, note: Note) -> Record | Drop:
        """By the record's `text`."""
        classifier = load_classifier(self.model)
        if self.label not in classifier.labels:
            labels = classifier.labels
            hint = did_you_mean(self.label, labels, otherwise="labels: " + ", ".join(labels))
            raise ConfigError(f"the classifier {self.model} has no label {self.label!r}", hint=hint)
        score = classifier.scores(record["text"])[self.label]
        scored = {**record, self.field: round(score, 4)}
        note(f"score {int(score * 10) / 10:.1f}", 1)
        if self.route is not None:
            return {**scored, "route": self.route} if score >= self.min_score else scored
        return scored if score >= self.min_score else Drop("low quality", f"{score:.3f}")
