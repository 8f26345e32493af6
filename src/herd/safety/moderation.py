"""Verdicts in the shapes of others: OpenAI's moderations, and the violation of Llama Stack's run-shield. Pure functions; routes call them.

OpenAI's thirteen categories are filled from our codes by the table below. Our own categories stand beside them under their names, as
Llama Stack's moderations have them, so that nothing is lost where OpenAI has no word for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from herd.safety.categories import NAMES
from herd.safety.shields import Report
from herd.safety.verdict import Verdict

OPENAI_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
_OPENAI: dict[str, tuple[str, ...]] = {
    "S1": ("violence", "illicit/violent", "illicit"),
    "S2": ("illicit",),
    "S3": ("sexual", "illicit"),
    "S4": ("sexual/minors", "sexual"),
    "S5": ("harassment",),
    "S9": ("illicit/violent", "illicit"),
    "S10": ("hate",),
    "S11": ("self-harm",),
    "S12": ("sexual",),
    "S14": ("illicit",),
}
_LEVELS = {"block": "error", "warn": "warn", "ignore": "info"}


def moderation_result(report: Report) -> dict[str, Any]:
    """One entry of `results`: flagged, categories, scores, and what the categories were found in."""
    scores: dict[str, float] = dict.fromkeys(OPENAI_CATEGORIES, 0.0)
    scores |= dict.fromkeys(NAMES.values(), 0.0)
    found: set[str] = set()
    for verdict in report.verdicts:
        if verdict.unsafe:
            for name in (name for code in verdict.categories for name in _names(code)):
                found.add(name)
                scores[name] = max(scores.get(name, 0.0), 1.0 if verdict.score is None else verdict.score)
    names = list(scores)
    return {
        "flagged": report.unsafe,
        "categories": {name: name in found for name in names},
        "category_scores": scores,
        "category_applied_input_types": {name: ["text"] for name in names},
        "user_message": (violation.user_message or None) if (violation := _first(report)) else None,
        "metadata": {"shields": [verdict.to_dict() for verdict in report.verdicts]},
    }


def moderation_object(reports: Sequence[Report], *, id: str, model: str) -> dict[str, Any]:
    """The answer of `/v1/moderations`: a result for each text, in order."""
    return {"id": id, "model": model, "results": [moderation_result(report) for report in reports]}


def run_shield_response(report: Report) -> dict[str, Any]:
    """The answer of `/v1/safety/run-shield`: a violation with its level, or none."""
    verdict = _first(report)
    if verdict is None:
        return {"violation": None}
    violation = {
        "violation_level": _LEVELS[verdict.treatment],
        "user_message": verdict.user_message or None,
        "metadata": {
            "violation_type": ",".join(report.categories) or None,
            "shield": verdict.shield,
            "score": verdict.score,
            "reason": verdict.reason,
        },
    }
    return {"violation": violation}


def _first(report: Report) -> Verdict | None:
    """The verdict to tell of: what blocks, else what warns."""
    return report.violation or next((verdict for verdict in report.verdicts if verdict.unsafe), None)


def _names(code: str) -> tuple[str, ...]:
    return (*_OPENAI.get(code, ()), NAMES.get(code, code))
