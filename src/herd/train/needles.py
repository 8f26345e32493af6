"""Needle in a haystack, in token ids: a fact hidden at some depth of a long text, asked for at its end.

A model has found a needle when each token of the answer is the most probable one after what stands before it: greedy decoding would write
the answer. Making text and ids of it is the caller's business. Attention is causal over the whole row and no mask is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from herd.base.errors import ConfigError
from herd.model.transformer import Transformer
from herd.train.numerics import uncompiled


@dataclass(frozen=True, kw_only=True, slots=True)
class Needle:
    """A row of token ids that ends with the answer, which begins at `answer_start`; the fact stands at `depth` (0 first, 1 last)."""

    ids: tuple[int, ...]
    answer_start: int
    depth: float


def hide(
    haystack: Sequence[int], fact: Sequence[int], question: Sequence[int], answer: Sequence[int], *, length: int, depth: float, bos: int
) -> Needle:
    """A needle of exactly `length` tokens; the haystack is repeated as often as that takes.

    Raises ConfigError when fact, question and answer alone do not fit.
    """
    room = length - 1 - len(fact) - len(question) - len(answer)
    if room < 0 or not haystack:
        raise ConfigError(f"a needle of {length - room} tokens does not fit into {length}", hint="take longer rows for needles")
    straw = (list(haystack) * (room // len(haystack) + 1))[:room]
    place = round(depth * room)
    ids = [bos, *straw[:place], *fact, *straw[place:], *question, *answer]
    return Needle(ids=tuple(ids), answer_start=length - len(answer), depth=depth)


def depths(count: int) -> list[float]:
    """Depths spread evenly from first to last."""
    return [number / max(1, count - 1) for number in range(count)]


@torch.no_grad()
def is_found(model: Transformer, needle: Needle, dtype: torch.dtype = torch.float32) -> bool:
    """Whether greedy decoding writes the answer. Only the answer's logits are computed."""
    tokens = torch.tensor([needle.ids[:-1]], device=model.device)
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32), uncompiled(model):
        hidden = model.hidden(tokens)[0, needle.answer_start - 1 :]
        best = model.logits(hidden).argmax(-1)
    return best.tolist() == list(needle.ids[needle.answer_start :])


def found_by_depth(model: Transformer, needles: Sequence[Needle], dtype: torch.dtype = torch.float32) -> dict[float, bool]:
    """Which needles are found, by depth; of several at one depth all have to be."""
    found: dict[float, bool] = {}
    for needle in needles:
        found[needle.depth] = is_found(model, needle, dtype) and found.get(needle.depth, True)
    return found


def share_found(model: Transformer, needles: Sequence[Needle], dtype: torch.dtype = torch.float32) -> float:
    """The share of needles that are found; 1 for none."""
    return sum(is_found(model, needle, dtype) for needle in needles) / len(needles) if needles else 1.0
