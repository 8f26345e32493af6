"""Requests to measure with: lengths and texts drawn from a seed, the same for every run and every peer.

`fixed`: all alike. `uniform`: half to all of the lengths. `chat`: log-normal lengths with the medians and spreads of people's conversations
with assistants (prompts short with a long tail, answers some hundred tokens), scaled to the lengths that are asked. `shared`: a common
beginning of nine tenths of the prompt, as a long system message makes.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal, cast

from herd.base.errors import UsageError, did_you_mean

Mix = Literal["fixed", "uniform", "chat", "shared"]
MIXES: tuple[Mix, ...] = ("fixed", "uniform", "chat", "shared")
_PROMPT_SPREAD, _ANSWER_SPREAD = 1.1, 0.7
"""Standard deviations of the logarithm of lengths, of prompts and of answers."""
_SHARED = 0.9
_WORDS = (  # noqa: SIM905 a list of a hundred strings reads worse
    "time year people way day man thing woman life child world school state family student group country problem hand part place case "
    "week company system program question work government number night point home water room mother area money story fact month lot "
    "right study book eye job word business issue side kind head house service friend father power hour game line end member law car"
).split()


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One request: tokens of prompt and answer, when it comes (seconds after the start), and the seed of its text."""

    num_prompt: int
    num_answer: int
    at_s: float
    seed: int


def as_mix(text: str) -> Mix:
    """A mix by its name. Raises UsageError."""
    if text not in MIXES:
        raise UsageError(f"unknown mix {text!r}", hint=did_you_mean(text, MIXES, otherwise="mixes: " + ", ".join(MIXES)))
    return cast("Mix", text)


def make_items(count: int, *, num_prompt: int, num_answer: int, mix: Mix = "fixed", rate: float | None = None, seed: int = 0) -> list[Item]:
    """The requests of a run. `rate`: they come by a Poisson process of so many a second; None: all at once.

    Raises UsageError for a number that cannot be.
    """
    for name, value in (("requests", count), ("prompt tokens", num_prompt), ("new tokens", num_answer)):
        if value < 1:
            raise UsageError(f"{name}: {value}, it must be at least 1", hint="leave it at its default")
    if rate is not None and not 0 < rate < math.inf:
        raise UsageError(f"the rate is {rate}, it must be over 0", hint="requests a second, such as 4; leave it out for all at once")
    rng = random.Random(seed)
    items: list[Item] = []
    at = 0.0
    for number in range(count):
        at += rng.expovariate(rate) if rate is not None else 0.0
        prompt, answer = _lengths(rng, mix, num_prompt, num_answer)
        items.append(Item(num_prompt=prompt, num_answer=answer, at_s=at, seed=seed * 1_000_003 + number))
    return items


def _lengths(rng: random.Random, mix: Mix, num_prompt: int, num_answer: int) -> tuple[int, int]:
    if mix == "uniform":
        return rng.randint((num_prompt + 1) // 2, num_prompt), rng.randint((num_answer + 1) // 2, num_answer)
    if mix == "chat":
        drawn = (
            int(median * math.exp(rng.gauss(0.0, spread)))
            for median, spread in ((num_prompt / 3, _PROMPT_SPREAD), (num_answer / 2, _ANSWER_SPREAD))
        )
        prompt, answer = drawn
        return max(4, min(prompt, 2 * num_prompt)), max(1, min(answer, 2 * num_answer))
    return num_prompt, num_answer


def prompt_ids(item: Item, vocab_size: int, *, mix: Mix = "fixed", first: int = 0) -> tuple[int, ...]:
    """Random ids of ordinary tokens, from `first` on below `vocab_size`; with the mix `shared` most of them are everyone's."""
    shared = int(item.num_prompt * _SHARED) if mix == "shared" else 0
    common, own = random.Random(7), random.Random(item.seed)
    ids = [common.randrange(first, vocab_size) for _ in range(shared)]
    return tuple(ids + [own.randrange(first, vocab_size) for _ in range(item.num_prompt - shared)])


def prompt_text(item: Item, *, mix: Mix = "fixed") -> str:
    """Words, about one token each in a large vocabulary: for servers whose tokenizer is not known."""
    shared = int(item.num_prompt * _SHARED) if mix == "shared" else 0
    common, own = random.Random(7), random.Random(item.seed)
    words = [common.choice(_WORDS) for _ in range(shared)] + [own.choice(_WORDS) for _ in range(item.num_prompt - shared)]
    return " ".join(words)
