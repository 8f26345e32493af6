"""The stages by the word that names them in a configuration."""

from __future__ import annotations

from typing import Any

from herd.data.dedup.distribution import TokenDistribution
from herd.data.dedup.keys import ExactDedup, UrlDedup
from herd.data.dedup.lines import LineDedup
from herd.data.dedup.minhash import MinHashDedup
from herd.data.stages.dirty_words import DirtyWords
from herd.data.stages.heuristics import Heuristics
from herd.data.stages.language import LanguageFilter
from herd.data.stages.overlap import Decontaminate
from herd.data.stages.page import ExtractText
from herd.data.stages.pii import PiiRemoval
from herd.data.stages.quality import QualityFilter
from herd.data.stages.repetition import Repetition
from herd.data.stages.routes import Routes
from herd.data.stages.url import UrlFilter

RECORD_STAGES: dict[str, Any] = {
    stage.kind: stage
    for stage in (
        UrlFilter,
        ExtractText,
        LanguageFilter,
        Routes,
        Heuristics,
        Repetition,
        DirtyWords,
        QualityFilter,
        Decontaminate,
        PiiRemoval,
    )
}
"""Each looks at one record at a time."""

CORPUS_STAGES: dict[str, Any] = {stage.kind: stage for stage in (UrlDedup, ExactDedup, MinHashDedup, LineDedup, TokenDistribution)}
"""Each looks at the whole corpus."""

STAGES = {**RECORD_STAGES, **CORPUS_STAGES}
