"""Needles as text: an odd fact hidden in a long text and asked for at its end, for training (`own:needles`) and for the check.

Everything is a pure function of the seed. The fact names a place and a number; no number is ever repeated on purpose, so only reading finds
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


def _fact(rng: random.Random) -> tuple[str, str, str]:
    place, number = rng.choice(_PLACES), str(rng.randrange(1000, 10_000))
    return _FACT.format(place=place, number=number), _QUESTION.format(place=place), f" {number}"


def needle_records(seed: int, count: int, *, num_bytes: int) -> Iterator[Record]:
    """Training documents of about `num_bytes`: hay, a fact at a random depth, its question and answer."""
    rng = random.Random(f"needles/{seed}")
    for _ in range(count):
        fact, question, answer = _fact(rng)
        hay = _hay(rng, max(1, num_bytes - len(fact + question + answer)))
        cut = hay.find(" ", rng.randrange(len(hay)))
        place = len(hay) if cut < 0 else cut
        yield {"text": f"{hay[:place]}{fact}{hay[place:]}{question}{answer}.", "lang": "en"}


def make_needles(tokenizer: Tokenizer, *, count: int, length: int, seed: int) -> list[Needle]:
    """Needles of exactly `length` tokens for the check, at depths from first to last; other facts and hay than in training."""
    rng = random.Random(f"needle check/{seed}")
    needles: list[Needle] = []
    for depth in depths(count):
        fact, question, answer = _fact(rng)
        hay = tokenizer.encode(_hay(rng, min(8 * length, 400_000)))
        parts = [tokenizer.encode(text) for text in (fact, question, answer)]
        needles.append(hide(hay, *parts, length=length, depth=depth, bos=tokenizer.bos_id))
    return needles
