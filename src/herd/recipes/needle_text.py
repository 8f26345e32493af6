"""Needles as text: odd facts hidden in a long text and asked for at its end, for training (`own:needles`) and for the check.

Everything is a pure function of the seed. A fact names a place and a number; no number is ever repeated on purpose, so only reading finds
it. The hay is sentences of the stories that ship with herd, shuffled.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files

from herd.data.records import Record
from herd.text.tokenizer import Tokenizer
from herd.train.needles import Needle, depths, hide

_PLACES = (
    *("Lisbon", "Hanoi", "Cairo", "Oslo", "Lima", "Kyoto", "Dakar", "Quito", "Perth", "Riga", "Bogota", "Tunis", "Seoul", "Accra"),
    *("Malmo", "Porto", "Delhi", "Turin", "Basel", "Leeds", "Minsk", "Varna", "Gdansk", "Nantes", "Bergen", "Tampa", "Osaka", "Chiang Mai"),
)
_FACT = " The secret number of {place} is {number}."
_QUESTION = " Remember: the secret number of {place} is"
_MOST_FACTS = 12
_BYTES_A_FACT = 400
"""One more fact may be hidden for so much text."""


@lru_cache(maxsize=1)
def hay_sentences() -> tuple[str, ...]:
    """The sentences of the stories that ship with herd."""
    text = (files("herd.recipes") / "data" / "tiny.txt").read_text(encoding="utf-8")
    return tuple(sentence for sentence in re.split(r"(?<=[.!?])\s+", text.replace("\n---\n", "\n")) if 8 < len(sentence) < 300)


def _hay(rng: random.Random, num_bytes: int) -> str:
    chosen: list[str] = []
    size = 0
    sentences = hay_sentences()
    while size < num_bytes:
        chosen.append(rng.choice(sentences))
        size += len(chosen[-1].encode()) + 1
    return " ".join(chosen)


def _fact(rng: random.Random, place: str) -> tuple[str, str, str]:
    """A statement, the question for it and its answer."""
    number = str(rng.randrange(1000, 10_000))
    return _FACT.format(place=place, number=number), _QUESTION.format(place=place), f" {number}"


def needle_records(seed: int, count: int, *, num_bytes: int) -> Iterator[Record]:
    """Training documents of about `num_bytes`: hay, facts at random depths, and the question and answer of each, in another order.

    The longer the hay, the more facts may be in it (at most twelve, each of another place): a long document with a single question would
    have one number in thousands of tokens to learn from.
    """
    rng = random.Random(f"needles/{seed}")
    for _ in range(count):
        places = rng.sample(_PLACES, rng.randint(1, min(_MOST_FACTS, 1 + num_bytes // _BYTES_A_FACT)))
        facts = [_fact(rng, place) for place in places]
        hay = _hay(rng, max(1, num_bytes - sum(len("".join(fact).encode()) for fact in facts)))
        cuts = sorted((hay.find(" ", rng.randrange(len(hay))) % (len(hay) + 1) for _ in facts), reverse=True)
        for cut, (statement, _, _) in zip(cuts, facts, strict=True):  # from the end, so that no fact is put inside another
            hay = f"{hay[:cut]}{statement}{hay[cut:]}"
        rng.shuffle(facts)
        yield {"text": hay + "".join(f"{question}{answer}." for _, question, answer in facts), "lang": "en"}


def make_needles(tokenizer: Tokenizer, *, count: int, length: int, seed: int) -> list[Needle]:
    """Needles of exactly `length` tokens for the check, at depths from first to last; other facts and hay than in training."""
    rng = random.Random(f"needle check/{seed}")
    needles: list[Needle] = []
    for depth in depths(count):
        fact, question, answer = _fact(rng, rng.choice(_PLACES))
        hay = tokenizer.encode(_hay(rng, min(8 * length, 400_000)))
        parts = [tokenizer.encode(text) for text in (fact, question, answer)]
        needles.append(hide(hay, *parts, length=length, depth=depth, bos=tokenizer.bos_id))
    return needles
