"""The policy for a step that cannot be right: a loss or gradient that is no finite number, or a loss far above those before it.

A guard judges each step before its update, from the losses that it has accepted; those are part of the resumable state, so that a run
taken up judges as the uninterrupted one did. Knows numbers only; skipping and rolling back is the trainer's work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from herd.train.config import GuardConfig

Verdict = Literal["ok", "ignore", "stop", "skip", "rollback"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What to do with a step, and why."""

    verdict: Verdict
    reason: str = ""


class LossGuard:
    """Judges steps by a stage's config. `losses` are the newest accepted ones, at most `window`."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.losses: list[float] = []

    def judge(self, loss: float, grad_norm: float) -> Judgement:
        """What to do with a step of this loss and gradient norm. Pure: nothing is remembered."""
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            return Judgement(verdict=self.config.on_nonfinite, reason=f"loss {loss}, gradient norm {grad_norm}")
        limit = self.limit()
        if self.config.on_spike != "ignore" and limit is not None and loss > limit:
            reason = f"loss {loss:.4f} is over {limit:.4f}, the mean of {self.config.window} steps and {self.config.spike_sigma:g} sigma"
            return Judgement(verdict=self.config.on_spike, reason=reason)
        return Judgement(verdict="ok")

    def accept(self, loss: float) -> None:
        """Remember the loss of a step that was made."""
        self.losses.append(loss)
        del self.losses[: -self.config.window]

    def limit(self) -> float | None:
        """The loss above which a step is a spike; None until the window is full."""
        if len(self.losses) < self.config.window:
            return None
        mean = fmean(self.losses)
        sigma = math.sqrt(fmean((loss - mean) ** 2 for loss in self.losses))
        # A window of equal losses would call the smallest rise a spike.
        return mean + self.config.spike_sigma * max(sigma, 1e-3 * abs(mean))
