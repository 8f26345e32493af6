"""Learning rate by step: linear warm-up, then cosine to a fraction of the peak. Llama 3 report, section 3.4.1."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, num_steps: int, final_fraction: float) -> float:
    """The rate of step `step` (from 0). Warm-up reaches the peak at `warmup_steps`; the last step ends at peak * final_fraction."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (final_fraction + (1 - final_fraction) * cosine)
