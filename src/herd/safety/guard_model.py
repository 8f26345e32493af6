"""A guard model by name, with the threshold that was measured for it; and its figures on texts that it has not seen.

A checkpoint may bring `guard.json` with `{"threshold": NUMBER}`: cria-guard does. Others have the model's own verdict, 0.5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import FormatError
from herd.base.progress import track_steps
from herd.checkpoint.json_file import read_json_object
from herd.checkpoint.resolve import resolve_model
from herd.safety.corpus import Example
from herd.safety.figures import threshold_at_fpr
from herd.safety.llama_guard import LlamaGuard
from herd.safety.measuring import category_figures, held_back, keyword_baseline, report_of
from herd.safety.verdict import Verdict
from herd.text.messages import Message

if TYPE_CHECKING:
    from herd.inference.port import AsyncInference, Inference

THRESHOLD_FILE = "guard.json"
DEFAULT_THRESHOLD = 0.5
_AT_ONCE = 64


def measured_threshold(model: str | Path) -> float:
    """The threshold that a guard's checkpoint brings, or 0.5. Raises NotFoundError for no model, FormatError for a file that holds none."""
    path = resolve_model(model) / THRESHOLD_FILE
    if not path.is_file():
        return DEFAULT_THRESHOLD
    value = read_json_object(path).get("threshold")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise FormatError(f"{path} holds the threshold {value!r}, it must be a number from 0 to 1", hint='write {"threshold": 0.5}')
    return float(value)


async def judge_all(guard: LlamaGuard, texts: Sequence[str]) -> list[Verdict]:
    """The guard's verdict on each text as a user's message, many at once."""
    places = asyncio.Semaphore(_AT_ONCE)
    done = 0
    with track_steps("judging", total=len(texts)) as advance:

        async def judged(text: str) -> Verdict:
            nonlocal done
            async with places:
                verdict = await guard.judge([Message.user(text)], "User")
            done += 1
            advance(done, "")
            return verdict

        return await asyncio.gather(*(judged(text) for text in texts))


def scores_of(verdicts: Sequence[Verdict]) -> NDArray[np.float64]:
    """The probability of `unsafe` in each verdict."""
    return np.array([1.0 if verdict.score is None else verdict.score for verdict in verdicts])


async def choose_threshold(
    model: AsyncInference | Inference, examples: Sequence[Example], *, ordinary: float = 0.02, lookalikes: float = 0.25
) -> float:
    """The lowest threshold at which at most these shares of ordinary benign tuning texts, and of look-alikes, are flagged."""
    tuning = [example for example in examples if example.part == "tune" and example.harm is False]
    scores = scores_of(await judge_all(LlamaGuard(model, threshold=1.0), [example.text for example in tuning]))
    alike = np.array([example.lookalike for example in tuning])
    return max(threshold_at_fpr(scores[~alike], ordinary), threshold_at_fpr(scores[alike], lookalikes))


async def guard_report(model: AsyncInference | Inference, threshold: float, examples: Sequence[Example]) -> dict[str, Any]:
    """The figures of a guard model on held-back texts, as the detectors' card has them: of harm, and of its first category."""
    tested = held_back(examples, "harm")
    verdicts = await judge_all(LlamaGuard(model, threshold=threshold), [example.text for example in tested])
    baseline, theirs = keyword_baseline(examples, "harm")
    texts = [example.text for example in tested]
    named = [
        (example, (verdict.categories or ("",))[0])
        for example, verdict in zip(tested, verdicts, strict=True)
        if example.source == "ailuminate"
    ]
    return {
        "harm": report_of(tested, "harm", (scores_of(verdicts), threshold), (baseline(texts), theirs)),
        "categories": category_figures([example for example, _ in named], [name for _, name in named]),
    }
