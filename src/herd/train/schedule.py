"""What a step is, by its number: its learning rate, its batch and its row length. Llama 3 report, section 3.4.

The rate warms up linearly, then falls by a cosine or a straight line, or stays. Batch and row length grow by tokens seen: a phase ends at
the step boundary nearest to its mark. Rows are drawn at the stage's own length and cut into equal parts for a shorter phase, so the
position in the data stays one counter, whatever the ramp.
Pure functions of the config; knows neither tensors nor data.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from herd.train.config import Decay, StageConfig


def learning_rate(step: int, *, peak: float, warmup_steps: int, num_steps: int, final_fraction: float, decay: Decay = "cosine") -> float:
    """The rate of step `step` (from 0). Warm-up reaches the peak at `warmup_steps`; step num_steps - 1 has peak * final_fraction."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps))
    if decay == "constant":
        return peak
    left = 1 - progress if decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (final_fraction + (1 - final_fraction) * left)


def stage_learning_rate(stage: StageConfig, step: int) -> float:
    """The rate of a stage's step `step` (from 0), by its own horizon where it has one."""
    return learning_rate(
        step,
        peak=stage.lr,
        warmup_steps=stage.warmup_steps,
        num_steps=stage.horizon_steps or stage.num_steps,
        final_fraction=stage.final_lr_fraction,
        decay=stage.decay,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Steps `first_step` to `end_step` - 1 of a stage: `batch_size` rows of `sequence_length`, `micro_batch_size` in memory at once.

    `num_samples` is how many rows of the stage's own length one such step reads.
    """

    first_step: int
    end_step: int
    sequence_length: int
    batch_size: int
    micro_batch_size: int
    num_samples: int

    @property
    def tokens_per_step(self) -> int:
        """Tokens read by one step, padding included."""
        return self.batch_size * self.sequence_length


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """The phases of a stage in their order. Every step belongs to exactly one."""

    phases: tuple[Phase, ...]

    def at(self, step: int) -> Phase:
        """The phase of step `step` (from 0); the last one for steps past the end."""
        return self.phases[max(0, bisect_right(self.phases, step, key=lambda phase: phase.first_step) - 1)]

    def tokens_before(self, step: int) -> int:
        """Tokens read by the steps before `step`."""
        return sum(phase.tokens_per_step * max(0, min(step, phase.end_step) - phase.first_step) for phase in self.phases)

    def samples_before(self, step: int) -> int:
        """Rows of the stage's own length read by the steps before `step`."""
        return sum(phase.num_samples * max(0, min(step, phase.end_step) - phase.first_step) for phase in self.phases)


def step_plan(stage: StageConfig) -> StepPlan:
    """The phases of a stage: those of its ramp, then its own batch and length. A phase that is over before it begins is left out."""
    shapes = [(ramp.sequence_length, ramp.batch_size, ramp.micro_batch_size or stage.micro_batch_size) for ramp in stage.ramp]
    shapes.append((stage.sequence_length, stage.batch_size, stage.micro_batch_size))
    ends = phase_ends([(ramp.until_tokens, length * rows) for ramp, (length, rows, _) in zip(stage.ramp, shapes, strict=False)])
    phases: list[Phase] = []
    first = 0
    for (length, rows, micro), end in zip(shapes, [*ends, stage.num_steps], strict=True):
        end = min(end, stage.num_steps)
        if end > first:
            phases.append(
                Phase(
                    first_step=first,
                    end_step=end,
                    sequence_length=length,
                    batch_size=rows,
                    micro_batch_size=micro,
                    num_samples=rows * length // stage.sequence_length,
                )
            )
            first = end
    return StepPlan(phases=tuple(phases))


def phase_ends(marks: Sequence[tuple[int, int]]) -> list[int]:
    """The step at which each phase ends, from (tokens seen at its end, tokens a step): the boundary nearest to the mark."""
    ends: list[int] = []
    step = tokens = 0
    for until, per_step in marks:
        steps = max(0, (2 * (until - tokens) + per_step) // (2 * per_step))
        step, tokens = step + steps, tokens + steps * per_step
        ends.append(step)
    return ends


def steps_for_tokens(num_tokens: int, stage: StageConfig) -> int:
    """How many steps read `num_tokens`, ramp included, to the nearest step."""
    tokens = step = 0
    for ramp in stage.ramp:
        per_step = ramp.batch_size * ramp.sequence_length
        steps = max(0, (2 * (min(ramp.until_tokens, num_tokens) - tokens) + per_step) // (2 * per_step))
        step, tokens = step + steps, tokens + steps * per_step
    per_step = stage.batch_size * stage.sequence_length
    return step + max(0, (2 * (num_tokens - tokens) + per_step) // (2 * per_step))
