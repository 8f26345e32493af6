"""What the scheduler asks for in one step, and what it is told of it. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from herd.engine.request import Sequence


class StepItem(NamedTuple):
    """The tokens of one sequence to compute: positions first_position .. first_position + num_tokens - 1 (`Sequence.tokens`).

    Where it reaches the last known token, `num_sampled` is 1 plus the drafts that follow: the scores of so many last positions are wanted.
    Else it is a chunk in the middle of a prompt, and `num_sampled` is 0.
    """

    sequence: Sequence
    num_tokens: int
    first_position: int
    num_sampled: int


class StepResult(NamedTuple):
    """What came of an item: the drafts that were verified and one token sampled after them; why the sequence ends, if it does.

    Nothing is accepted in the middle of a prompt. A sequence that ends may accept less, or nothing.
    """

    accepted: list[int]
    finish: str | None = None


@dataclass(slots=True, eq=False)
class Step:
    """One step of the model over many sequences.

    Attributes:
        items: what to compute: next tokens, then pieces of prompts.
        copies: (source, destination) blocks to copy before the step writes anything: in this order, or all read before all written.
        admitted: sequences that left the queue, for the first time or after a preemption.
        preempted: sequences that lost their blocks and wait again.
        num_tokens: the sum over the items.
        num_next: the first items that are one next token each; none where drafts follow some.
    """

    items: list[StepItem] = field(default_factory=list[StepItem])
    copies: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    admitted: list[Sequence] = field(default_factory=list[Sequence])
    preempted: list[Sequence] = field(default_factory=list[Sequence])
    num_tokens: int = 0
    num_next: int = 0
