"""Drills in copying: words to be said again as they are, or put into JSON under a name.

A call of a tool copies its arguments out of the request. A model that saw the same values too often learns these and not to copy, so the
words here are any of those that herd's own dialogues hold, in five languages, in any order.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache

from herd.data.records import Record
from herd.recipes.chat_data import own_dialogues

_LATIN = ("en", "de", "fr", "it", "pt", "es")
_SYLLABLES = "ba lo mi te ra su no ken dor vil pal ster mon gra fi lan der ho bri wick ton ma sel or ru gan pe ti"
_FIELDS = "city name title word text task room song person query place topic label value key subject"
_SAY = ("Repeat after me: {text}", "Say this: {text}", 'Say "{text}"', "Write: {text}", 'Copy this: "{text}"')
_AS_JSON = ("{asked}. Put this into JSON.", "As JSON, please: {asked}.", "Write it as JSON: {asked}.", "{asked}, as JSON.")


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word in Latin letters of herd's own dialogues, of three letters or more, in lower case, sorted."""
    texts = (str(message["content"]) for record in own_dialogues() if record.get("lang") in _LATIN for message in record["messages"])
    words = (word.strip(".,;:!?\"'()").lower() for text in texts for word in text.split())
    return tuple(sorted({word for word in words if word.isalpha() and len(word) >= 3}))


def made_up(rng: random.Random) -> str:
    """A word that is none, of two or three syllables."""
    return "".join(rng.choice(_SYLLABLES.split()) for _ in range(rng.randint(2, 3)))


def any_words(rng: random.Random, like: str) -> str:
    """As many words as in `like`, with capitals where it has them: every third one made up, the others of the vocabulary."""
    words = (made_up(rng) if rng.random() < 1 / 3 else rng.choice(vocabulary()) for _ in like.split())
    return " ".join(word.capitalize() if shape[0].isupper() else word for word, shape in zip(words, like.split(), strict=True))


def _said_again(rng: random.Random) -> tuple[str, str]:
    text = any_words(rng, " ".join(rng.choice(("a", "A")) for _ in range(rng.randint(1, 6))))
    return rng.choice(_SAY).format(text=text), text


def _put_into_json(rng: random.Random) -> tuple[str, str]:
    given: dict[str, str | int] = {}
    for name in rng.sample(_FIELDS.split(), rng.randint(1, 3)):
        given[name] = rng.randint(1, 999) if rng.random() < 0.2 else any_words(rng, rng.choice(("a", "A", "A A", "a a", "a a a")))
    asked = ", ".join(f"the {name} is {value}" for name, value in given.items())
    return rng.choice(_AS_JSON).format(asked=asked), json.dumps(given, ensure_ascii=False)


def copies(seed: int, count: int) -> Iterator[Record]:
    """`count` dialogues of three such requests each, the same for the same seed."""
    rng = random.Random(f"copies/{seed}")
    for _ in range(count):
        turns = [rng.choice((_said_again, _put_into_json))(rng) for _ in range(3)]
        messages = [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
        yield {"lang": "en", "messages": messages}
