"""Mixed precision under a budget of bytes: each matrix gets the scheme whose bytes buy the most.

Every matrix starts at its cheapest scheme; then, again and again, the step up is taken that saves the most divergence for a byte and still
fits. Steps run along the convex hull of a matrix's choices, so that a small useful one does not hide a large one behind it. Knows bytes and
divergences, no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from herd.base.errors import DoesNotFitError, UsageError
from herd.checkpoint.quant_scheme import MatrixScheme


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A scheme for a matrix (None: as it was), its bytes, and the divergence it costs."""

    scheme: MatrixScheme | None
    size_bytes: int
    cost: float


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """The choices that more bytes make better, each step up buying less for a byte than the one before."""
    ordered = sorted(choices, key=lambda choice: (choice.size_bytes, choice.cost))
    hull: list[Choice] = []
    for choice in ordered:
        if hull and choice.cost >= hull[-1].cost:
            continue
        while len(hull) >= 2 and _gain(hull[-2], hull[-1]) <= _gain(hull[-2], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _gain(lower: Choice, upper: Choice) -> float:
    return (lower.cost - upper.cost) / max(upper.size_bytes - lower.size_bytes, 1)


def spend(choices: Mapping[str, Sequence[Choice]], budget_bytes: int) -> dict[str, Choice]:
    """The choice of each matrix. Raises DoesNotFitError where even the cheapest are over the budget."""
    hulls = {name: _hull(options) for name, options in choices.items()}
    places = dict.fromkeys(hulls, 0)
    spent = sum(hull[0].size_bytes for hull in hulls.values())
    if spent > budget_bytes:
        raise DoesNotFitError(
            f"the smallest schemes take {spent:,} bytes, the budget is {budget_bytes:,}", hint="raise --budget, or choose a larger --group"
        )
    while True:
        steps = [
            (_gain(hull[places[name]], hull[places[name] + 1]), name)
            for name, hull in hulls.items()
            if places[name] + 1 < len(hull) and spent + hull[places[name] + 1].size_bytes - hull[places[name]].size_bytes <= budget_bytes
        ]
        if not steps:
            return {name: hull[places[name]] for name, hull in hulls.items()}
        name = max(steps)[1]
        spent += hulls[name][places[name] + 1].size_bytes - hulls[name][places[name]].size_bytes
        places[name] += 1


def budget_bits(text: str) -> float:
    """Bits a weight from "4.5bpw" or "4.5". Raises UsageError."""
    try:
        bits = float(text.lower().removesuffix("bpw"))
    except ValueError:
        bits = 0.0
    if not 1.0 <= bits <= 16.0:
        raise UsageError(f"a budget of {text!r}", hint="give bits a weight from 1 to 16, as 4.5bpw")
    return bits
