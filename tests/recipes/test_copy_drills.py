"""Drills in copying: the same for a seed, every answer out of its request."""

from __future__ import annotations

import json
import random

import pytest

from herd.recipes.copy_drills import any_words, copies, vocabulary
from herd.recipes.dialogue import read_dialogue
from herd.recipes.sources import read_source
from herd.train.config import SourceConfig


def turns(seed: int, count: int) -> list[tuple[str, str]]:
    found = [record["messages"] for record in copies(seed, count)]
    return [(ask["content"], reply["content"]) for messages in found for ask, reply in zip(messages[::2], messages[1::2], strict=True)]


def test_copies_are_a_function_of_the_seed_and_a_source() -> None:
    source = SourceConfig(name="copies", path="own:copies", kind="chat", num_items=20)
    assert list(copies(1, 20)) == list(copies(1, 20)) == list(read_source(source, None, seed=1)) != list(copies(2, 20))
    assert [len(read_dialogue(record).messages) for record in copies(1, 3)] == [6, 6, 6]


def test_every_answer_stands_in_its_request() -> None:
    as_json = 0
    for question, answer in turns(3, 300):
        if answer.startswith("{"):
            as_json += 1
            assert "JSON" in question
            for name, value in json.loads(answer).items():
                assert f"the {name} is {value}" in question
        else:
            assert answer in question and len(question) < len(answer) + 20
    assert 300 < as_json < 600
    assert len({answer for _, answer in turns(3, 300)}) > 850, "what is said again is hardly ever the same"


@pytest.mark.parametrize("like", ["Paris", "buy milk", "Happy birthday", "call the doctor"])
def test_any_words_have_the_shape_of_the_example(like: str) -> None:
    rng = random.Random(4)
    for _ in range(50):
        words = any_words(rng, like).split()
        assert [word[0].isupper() for word in words] == [word[0].isupper() for word in like.split()]


def test_the_vocabulary_is_of_several_languages_and_holds_words_alone() -> None:
    words = vocabulary()
    assert list(words) == sorted(set(words)) and {"river", "fluss", "chien"} <= set(words)
    assert all(word.isalpha() and word == word.lower() and len(word) >= 3 for word in words)
