"""Figures of a run: medians and tails, as a table for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """How a measured time is spread, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
        return cls(mean=float(np.mean(values)), p50=p50, p90=p90, p99=p99, most=float(max(values)))

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return {name: round(getattr(self, name), 6) for name in ("mean", "p50", "p90", "p99", "most")}

    def milliseconds(self) -> list[str]:
        """Cells of a table."""
        return [f"{getattr(self, name) * 1e3:,.1f}" for name in ("mean", "p50", "p90", "p99", "most")]


HEADER = ["ms", "mean", "p50", "p90", "p99", "most"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What came of a run of many requests."""

    num_requests: int
    num_failed: int
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int
    first_token: Spread | None
    between_tokens: Spread | None
    whole: Spread | None
    errors: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON: times in seconds."""
        spreads = {"ttft_s": self.first_token, "itl_s": self.between_tokens, "e2e_s": self.whole}
        return {
            "requests": self.num_requests,
            "failed": self.num_failed,
            "seconds": round(self.seconds, 6),
            "requests_per_s": round((self.num_requests - self.num_failed) / self.seconds, 4),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.answer_tokens,
            "prompt_tokens_per_s": round(self.prompt_tokens / self.seconds, 2),
            "output_tokens_per_s": round(self.answer_tokens / self.seconds, 2),
            **{name: None if spread is None else spread.to_dict() for name, spread in spreads.items()},
            "errors": list(self.errors),
        }

    def rows(self) -> list[list[str]]:
        """For a table under `HEADER`."""
        named = {"time to first token": self.first_token, "between tokens": self.between_tokens, "whole request": self.whole}
        return [[name, *spread.milliseconds()] for name, spread in named.items() if spread is not None]
