"""Verdicts as dialogues, for a guard model: Llama Guard 3's question about a labelled text, and the answer that is right.

`own:guard` asks in the published words. `own:guard-short` leaves out the list of categories, four fifths of the question and always the
same: six times the texts for the same tokens, for most of the training. The texts are the training groups of `safety.corpus`, so what the
guard is measured on was never seen. They are drawn with replacement by the examples' weights, rare hazards more often; every fourth text is
put in the agent's mouth, after a benign question.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from herd.base.errors import NotFoundError
from herd.data.records import Record
from herd.safety.corpus import Example, read_corpus
from herd.safety.guard_prompt import GuardRole, guard_prompt

_MAX_CHARS = 900
_QUESTION_CHARS = 200
_RARE = 2.0


def guard_records(seed: int, num_items: int, data: Path | None, *, short: bool = False) -> Iterator[Record]:
    """`num_items` dialogues of a question and a verdict. Raises NotFoundError without a data folder or its safety data."""
    if data is None:
        raise NotFoundError("this recipe reads labelled texts from a data folder, and none was given", hint="pass --data FOLDER")
    known = [example for example in read_corpus(data) if example.part == "train" and _is_told(example)]
    weights = [example.weight * (_RARE if example.category not in (None, "S10") else 1.0) for example in known]
    draw = Random(f"{seed} {short}")
    questions = [example.text for example in known if example.harm is False and len(example.text) <= _QUESTION_CHARS]
    for number, example in enumerate(draw.choices(known, weights, k=num_items)):
        turns: list[tuple[GuardRole, str]] = [("User", example.text[:_MAX_CHARS])]
        if number % 4 == 3:
            turns = [("User", draw.choice(questions)), ("Agent", example.text[:_MAX_CHARS])]
        question = guard_prompt(turns)
        if short:
            question = question[question.index("<BEGIN CONVERSATION>") :]
        yield {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": f"\n\nunsafe\n{example.category}" if example.harm else "\n\nsafe"},
            ],
            "lang": example.lang,
        }


def _is_told(example: Example) -> bool:
    """Whether the verdict is known, and with it the category of what is unsafe."""
    return example.harm is False or (example.harm is True and example.category is not None)
