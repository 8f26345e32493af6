"""Dialogues of our own: those written by hand that ship with herd, and drills made from patterns (sums, counting, words, days).

Both give chat records with a language. Drills are a pure function of the seed; they teach small exact skills that prose hardly shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from importlib.resources import as_file, files

from herd.data.records import Record, read_jsonl

LANGUAGES = ("en", "de", "fr", "it", "pt", "hi", "es", "th")


def _words(text: str) -> list[str]:
    return text.split()


_NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen "
    "twenty"
)
_DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_MONTHS = _words("January February March April May June July August September October November December")
_OPPOSITES = (
    "hot cold, big small, fast slow, happy sad, old young, tall short, light dark, open closed, full empty, wet dry, clean dirty, "
    "early late, high low, strong weak, loud quiet, rich poor, soft hard, thick thin, near far, up down, left right, inside outside, "
    "day night, begin end"
)
_PLURALS = (
    "cat cats, dog dogs, child children, mouse mice, foot feet, tooth teeth, leaf leaves, box boxes, baby babies, city cities, man men, "
    "woman women, sheep sheep, fish fish, wolf wolves, knife knives, bus buses, story stories, key keys, potato potatoes"
)
_PASTS = (
    "go went, see saw, eat ate, run ran, make made, take took, come came, write wrote, give gave, think thought, buy bought, swim swam, "
    "sing sang, find found, know knew, walk walked, play played, cook cooked, begin began, sleep slept"
)
_CAPITALS = (
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, India Delhi, Thailand Bangkok, Japan Tokyo, China Beijing, "
    "Egypt Cairo, Kenya Nairobi, Canada Ottawa, Brazil Brasilia, Mexico Mexico_City, Peru Lima, Greece Athens, Norway Oslo, "
    "Sweden Stockholm, Poland Warsaw, Austria Vienna, Ireland Dublin, Russia Moscow, Turkey Ankara, "
    "Cuba Havana, Finland Helsinki, Australia Canberra"
)
_YOUNG = (
    "dog puppy, cat kitten, cow calf, horse foal, sheep lamb, goat kid, pig piglet, duck duckling, hen chick, lion cub, bear cub, "
    "kangaroo joey, deer fawn, frog tadpole, llama cria, goose gosling, swan cygnet, butterfly caterpillar"
)
_THINGS = _words("apples pears books pens cups eggs coins stones flowers balls")
_NAMES = _words("Anna Ben Carla David Emma Finn Grace Hugo Ida Jonas Kim Leo Maya Noah Olga Pablo Rosa Sam Tara Yusuf")

_SUMS = (
    *("What is {a} plus {b}?", "How much is {a} plus {b}?", "{a} + {b} = ?"),
    *("what is {a}+{b}", "Add {a} and {b}.", "Can you add {a} and {b}?"),
)
_ASK_CAPITAL = (
    *("What is the capital of {c}?", "what's the capital of {c}"),
    *("Tell me the capital of {c}.", "Which city is the capital of {c}?"),
)
_GREET = ("Nice to meet you, {n}! How can I help you?", "Hello {n}! It is nice to meet you.")

Pair = tuple[str, str]


def _pairs(text: str) -> list[list[str]]:
    return [[word.replace("_", " ") for word in pair.split()] for pair in text.split(", ")]


def _sum(rng: random.Random) -> Pair:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    ask = rng.choice(_SUMS)
    return ask.format(a=a, b=b), rng.choice(("{a} plus {b} is {c}.", "{a} + {b} = {c}.")).format(a=a, b=b, c=a + b)


def _difference(rng: random.Random) -> Pair:
    a = rng.randint(1, 20)
    b = rng.randint(0, a)
    ask = rng.choice(("What is {a} minus {b}?", "How much is {a} minus {b}?", "{a} - {b} = ?", "Take {b} away from {a}."))
    return ask.format(a=a, b=b), f"{a} minus {b} is {a - b}."


def _product(rng: random.Random) -> Pair:
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    ask = rng.choice(("What is {a} times {b}?", "How much is {a} times {b}?", "{a} x {b} = ?"))
    return ask.format(a=a, b=b), f"{a} times {b} is {a * b}."


def _word_problem(rng: random.Random) -> Pair:
    name, things = rng.choice(_NAMES), rng.choice(_THINGS)
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    question = f"{name} has {_NUMBERS[a]} {things} and gets {_NUMBERS[b]} more. How many {things} does {name} have now?"
    return question, f"{name} has {_NUMBERS[a + b]} {things} now, because {a} plus {b} is {a + b}."


def _counting(rng: random.Random) -> Pair:
    first = rng.randint(1, 5)
    last = rng.randint(first + 2, 12)
    return f"Count from {first} to {last}.", ", ".join(str(number) for number in range(first, last + 1)) + "."


def _after(words: list[str], what: str, rng: random.Random) -> Pair:
    place = rng.randrange(len(words))
    if rng.random() < 0.6:
        return rng.choice((f"What {what} comes after {words[place]}?", f"Which {what} is after {words[place]}?")), (
            f"{words[(place + 1) % len(words)]} comes after {words[place]}."
        )
    return f"What {what} comes before {words[place]}?", f"{words[place - 1]} comes before {words[place]}."


def _day(rng: random.Random) -> Pair:
    return _after(_DAYS, "day", rng)


def _month(rng: random.Random) -> Pair:
    return _after(_MONTHS, "month", rng)


def _opposite(rng: random.Random) -> Pair:
    pair = rng.choice(_pairs(_OPPOSITES))
    a, b = pair if rng.random() < 0.5 else pair[::-1]
    ask = rng.choice((f"What is the opposite of {a}?", f"Tell me the opposite of {a}.", f"opposite of {a}?"))
    return ask, f"The opposite of {a} is {b}."


def _plural(rng: random.Random) -> Pair:
    a, b = rng.choice(_pairs(_PLURALS))
    return rng.choice((f"What is the plural of {a}?", f"How do you write more than one {a}?")), f"The plural of {a} is {b}."


def _past(rng: random.Random) -> Pair:
    a, b = rng.choice(_pairs(_PASTS))
    return rng.choice((f"What is the past tense of {a}?", f"What is the past of {a}?")), f"The past tense of {a} is {b}."


def _capital(rng: random.Random) -> Pair:
    country, city = rng.choice([pair if len(pair) == 2 else [pair[0], " ".join(pair[1:])] for pair in _pairs(_CAPITALS)])
    return rng.choice(_ASK_CAPITAL).format(c=country), f"The capital of {country} is {city}."


def _young(rng: random.Random) -> Pair:
    parent, child = rng.choice(_pairs(_YOUNG))
    return rng.choice((f"What is a young {parent} called?", f"What do you call a baby {parent}?")), f"A young {parent} is called a {child}."


def _spelling(rng: random.Random) -> Pair:
    word = rng.choice([pair[0] for pair in _pairs(_OPPOSITES) + _pairs(_PLURALS)])
    ask = rng.choice((f"How do you spell {word}?", f"Spell the word {word}."))
    return ask, f"{word.capitalize()} is spelled " + "-".join(word.upper()) + "."


def _repeat(rng: random.Random) -> Pair:
    words = rng.sample([pair[0] for pair in _pairs(_OPPOSITES) + _pairs(_PLURALS)], rng.randint(2, 4))
    text = " ".join(words)
    return rng.choice((f"Repeat after me: {text}", f"Say this: {text}")), text


def _name(rng: random.Random) -> Pair:
    name = rng.choice(_NAMES)
    ask = rng.choice(("My name is {n}.", "Hi, I am {n}.", "Hello, my name is {n}!", "I'm {n}, nice to meet you."))
    return ask.format(n=name), rng.choice(_GREET).format(n=name)


_DRILLS: tuple[Callable[[random.Random], Pair], ...] = (
    *(_sum, _sum, _sum, _difference, _product, _word_problem, _counting, _day, _month, _opposite, _plural, _past),
    *(_capital, _capital, _young, _spelling, _repeat, _name),
)


def drills(seed: int, count: int) -> Iterator[Record]:
    """`count` English dialogues of one to three drilled questions, the same for the same seed."""
    rng = random.Random(f"drills/{seed}")
    for _ in range(count):
        messages: list[dict[str, str]] = []
        for _turn in range(rng.choice((1, 1, 1, 2, 3))):
            question, answer = rng.choice(_DRILLS)(rng)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield {"lang": "en", "messages": messages}


def own_dialogues() -> Iterator[Record]:
    """The dialogues written for cria, language by language."""
    for language in LANGUAGES:
        resource = files("herd.recipes") / "data" / f"cria_chat_{language}.jsonl"
        with as_file(resource) as file:
            yield from read_jsonl(file)
