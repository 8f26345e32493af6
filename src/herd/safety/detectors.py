"""The detectors that ship with herd and work without any published weights: harm, attacks on the model, orders inside others' texts.

Each is a linear model over hashed n-grams (`features`, `linear`), in one file of under a megabyte, `detectors.npz`; `MODEL_CARD.md` tells
what they were trained on, what they measure, and where they fail. A text is judged in windows that overlap; the highest counts.
"""

from __future__ import annotations

import asyncio
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import CheckpointError, NotFoundError
from herd.safety.categories import NAMES
from herd.safety.features import Rows, rows_of
from herd.safety.linear import Linear
from herd.safety.llama_guard import REFUSAL, check_threshold
from herd.safety.verdict import THIRD_PARTY, Content, TouchPoint, Verdict

Head = Literal["harm", "attack", "embedded"]
HEADS: tuple[Head, ...] = ("harm", "attack", "embedded")
SIZES: Mapping[Head, int] = {"harm": 2**18, "attack": 2**17, "embedded": 2**17}
CATEGORY_SIZE = 2**14
WINDOWS: Mapping[Head, tuple[int, int]] = {"harm": (1200, 800), "attack": (500, 350), "embedded": (300, 180)}
"""Characters of a window, and how far the next one begins."""
SHORT, SHORT_ODDS = 40, 19.0
"""Below so many characters the odds of an attack are divided by this: a word or two weigh too much there. Chosen on tuning texts, where it
takes two in a hundred from recall and spares nine in ten false alarms."""
FORMAT = 1
_LEAST_CATEGORY = 0.35
_INJECTION_REFUSAL = "Sorry, I cannot do this."


def windows_of(text: str, head: Head) -> list[str]:
    """A text in windows that overlap; at least one."""
    size, step = WINDOWS[head]
    return [text[start : start + size] for start in range(0, max(len(text) - (size - step), 1), step)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Detectors:
    """All heads with their thresholds, and the categories of harm."""

    heads: Mapping[Head, Linear]
    thresholds: Mapping[Head, float]
    categories: Mapping[str, Linear]

    def scores(self, texts: Sequence[str], head: Head) -> NDArray[np.float64]:
        """The probability of each text: that of its worst window."""
        cut = [windows_of(text, head) for text in texts]
        starts = np.cumsum([0, *map(len, cut)])
        rows = rows_of([window for windows in cut for window in windows], SIZES[head])
        # What has no n-gram at all says nothing; the bias alone is no verdict.
        probabilities = np.where(np.diff(rows.starts) > 0, self.heads[head].probabilities(rows), 0.0)
        if head != "harm":
            short = np.array([len(window) < SHORT for windows in cut for window in windows])
            probabilities = np.where(short, probabilities / (probabilities + SHORT_ODDS * (1.0 - probabilities)), probabilities)
        return np.array([probabilities[start:end].max() for start, end in pairwise(starts)], dtype=np.float64)

    def name_categories(self, text: str) -> tuple[str, ...]:
        """The codes of a harmful text, likeliest first; at least one."""
        rows: Rows = rows_of([text], CATEGORY_SIZE)
        found = sorted(((float(head.probabilities(rows)[0]), code) for code, head in self.categories.items()), reverse=True)
        return tuple(
            code for index, (probability, code) in enumerate(found) if index == 0 or (index < 3 and probability >= _LEAST_CATEGORY)
        )

    def save(self, path: Path) -> None:
        """Write the file."""
        arrays: dict[str, Any] = {"format": np.array(FORMAT)}
        for name, head in (*self.heads.items(), *self.categories.items()):
            arrays |= {f"{name}.weights": head.weights, f"{name}.scale": np.array(head.scale), f"{name}.bias": np.array(head.bias)}
        for name, threshold in self.thresholds.items():
            arrays[f"{name}.threshold"] = np.array(threshold)
        np.savez_compressed(path, **arrays)


def load_detectors(path: Path | str | None = None) -> Detectors:
    """The detectors of a file; those that ship when None. Raises NotFoundError, CheckpointError for a file that is none."""
    if path is None:
        return _shipped()
    return _read(Path(path))


@cache
def _shipped() -> Detectors:
    return _read(Path(str(files("herd.safety").joinpath("detectors.npz"))))


def _read(path: Path) -> Detectors:
    if not path.is_file():
        raise NotFoundError(f"there are no detectors at {path}", hint="train them: herd guard train --data FOLDER")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            if int(data["format"]) != FORMAT:
                raise CheckpointError(
                    f"{path} is of format {int(data['format'])}, expected {FORMAT}", hint="train it anew: herd guard train"
                )
            codes = sorted({name.partition(".")[0] for name in data.files} & set(NAMES), key=lambda code: int(code[1:]))
            return Detectors(
                heads={head: _linear(data, head, SIZES[head]) for head in HEADS},
                thresholds={head: float(data[f"{head}.threshold"]) for head in HEADS},
                categories={code: _linear(data, code, CATEGORY_SIZE) for code in codes},
            )
    except (ValueError, KeyError, OSError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} holds no detectors: {error}", hint="train them anew: herd guard train") from error


def _linear(data: Mapping[str, Any], name: str, size: int) -> Linear:
    weights = data[f"{name}.weights"]
    if weights.shape != (size,) or weights.dtype != np.int8:
        raise ValueError(f"the weights of {name} are {weights.dtype} of shape {weights.shape}, expected int8 of shape ({size},)")
    return Linear(weights=weights, scale=float(data[f"{name}.scale"]), bias=float(data[f"{name}.bias"]))


class HarmShield:
    """The harm detector as a shield: hazards of S1 to S13 in what is said and answered.

    Args:
        detectors: those that ship when None.
        threshold: a text is unsafe from this score on; None takes the measured one.
        name: of the shield.
        points: where it stands.

    Raises:
        ConfigError: a threshold outside 0 to 1.
    """

    def __init__(
        self,
        detectors: Detectors | None = None,
        *,
        threshold: float | None = None,
        name: str = "harm",
        points: frozenset[TouchPoint] = frozenset({TouchPoint.INPUT, TouchPoint.OUTPUT}),
    ) -> None:
        self.detectors = detectors or load_detectors()
        self.threshold = self.detectors.thresholds["harm"] if threshold is None else threshold
        check_threshold(self.threshold)
        self.name, self.points = name, points

    async def check(self, content: Content) -> Verdict:
        """Judge a text, on a thread."""
        return await asyncio.to_thread(self.judge, content.text)

    def judge(self, text: str) -> Verdict:
        """Judge a text."""
        score = float(self.detectors.scores([text], "harm")[0])
        unsafe = score >= self.threshold
        codes = self.detectors.name_categories(text) if unsafe else ()
        return Verdict(
            shield=self.name,
            unsafe=unsafe,
            score=score,
            categories=codes,
            reason=", ".join(f"{code} {NAMES[code]}" for code in codes),
            user_message=REFUSAL if unsafe else "",
        )


class InjectionShield:
    """The detectors of attacks as a shield: jailbreaks and orders to drop instructions, and in a tool's output any order to a model.

    Args:
        detectors: those that ship when None.
        threshold: of attacks; None takes the measured one.
        embedded_threshold: of orders inside a third party's text; None takes the measured one.
        name: of the shield.
        points: where it stands.

    Raises:
        ConfigError: a threshold outside 0 to 1.
    """

    def __init__(
        self,
        detectors: Detectors | None = None,
        *,
        threshold: float | None = None,
        embedded_threshold: float | None = None,
        name: str = "injection",
        points: frozenset[TouchPoint] = frozenset({TouchPoint.INPUT, TouchPoint.TOOL_OUTPUT}),
    ) -> None:
        self.detectors = detectors or load_detectors()
        measured = self.detectors.thresholds
        self.threshold = measured["attack"] if threshold is None else threshold
        self.embedded_threshold = measured["embedded"] if embedded_threshold is None else embedded_threshold
        check_threshold(self.threshold)
        check_threshold(self.embedded_threshold)
        self.name, self.points = name, points

    async def check(self, content: Content) -> Verdict:
        """Judge a text, on a thread."""
        return await asyncio.to_thread(self.judge, content.text, third_party=content.point in THIRD_PARTY)

    def judge(self, text: str, *, third_party: bool = False) -> Verdict:
        """Judge a text: a user's, or one that a third party wrote."""
        score = float(self.detectors.scores([text], "attack")[0])
        unsafe, code = score >= self.threshold, "injection" if third_party else "jailbreak"
        if third_party:
            embedded = float(self.detectors.scores([text], "embedded")[0])
            unsafe, score = unsafe or embedded >= self.embedded_threshold, max(score, embedded)
        return Verdict(
            shield=self.name,
            unsafe=unsafe,
            score=score,
            categories=(code,) if unsafe else (),
            reason="the text gives orders to the model" if unsafe else "",
            user_message=_INJECTION_REFUSAL if unsafe else "",
        )
