"""Verdicts as dialogues: what a guard is trained on has the published form, and nothing that it is measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

import herd.recipes.guard_records as module
from herd.base.errors import NotFoundError
from herd.recipes.guard_records import guard_records
from herd.safety.categories import DEFAULT_CATEGORIES
from herd.safety.corpus import Example
from herd.safety.guard_prompt import guard_prompt
from herd.safety.guard_verdict import read_verdict


def example(text: str, mark: str, *, harm: bool | None, category: str | None = None, weight: float = 1.0) -> Example:
    return Example(text=text, source="s", lang="en", group=f"{mark}:{text}", harm=harm, category=category, weight=weight)


EXAMPLES = [
    *[example(f"bread {number}", "train", harm=False) for number in range(20)],
    *[example(f"knife {number}", "train", harm=True, category="S1") for number in range(5)],
    *[example(f"slur {number}", "train", harm=True, category="S10") for number in range(5)],
    example("nobody knows", "train", harm=None),
    example("harm without a name", "train", harm=True),
    *[example(f"held {number}", mark, harm=bool(number % 2), category="S2") for number in range(10) for mark in ("tune", "held")],
]


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_corpus", lambda folder: EXAMPLES)


@pytest.mark.usefixtures("corpus")
def test_records_hold_the_published_question_and_the_right_verdict() -> None:
    records = list(guard_records(3, 400, Path()))
    assert len(records) == 400 and records == list(guard_records(3, 400, Path()))
    by_text = {each.text: each for each in EXAMPLES}
    seen: dict[str, int] = {}
    for record in records:
        question, answer = (turn["content"] for turn in record["messages"])
        said = question.partition("<BEGIN CONVERSATION>\n\n")[2].partition("\n\n<END CONVERSATION>")[0]
        turns = [("User" if part.startswith("User: ") else "Agent", part.partition(": ")[2]) for part in said.split("\n\n")]
        assert question == guard_prompt(turns)  # type: ignore[arg-type]
        judged = by_text[turns[-1][1]]
        assert judged.group.startswith("train:") and judged.harm is not None
        verdict = read_verdict(answer, DEFAULT_CATEGORIES)
        assert not verdict.malformed and verdict.unsafe is judged.harm
        assert verdict.categories == ((judged.category,) if judged.harm else ())
        if turns[-1][0] == "Agent":
            assert by_text[turns[0][1]].harm is False
            seen["agent"] = seen.get("agent", 0) + 1
        seen[judged.category or "safe"] = seen.get(judged.category or "safe", 0) + 1
    assert seen["agent"] == 100
    assert "harm without a name" not in str(records) and "nobody knows" not in str(records) and "held" not in str(records)
    assert seen["S1"] > 1.3 * seen["S10"], "rare hazards come more often"


@pytest.mark.usefixtures("corpus")
def test_the_short_form_begins_at_the_conversation() -> None:
    for record in guard_records(3, 20, Path(), short=True):
        question = record["messages"][0]["content"]
        assert question.startswith("<BEGIN CONVERSATION>") and "S14" not in question and "ONLY THE LAST" in question


def test_without_data_the_error_says_what_to_pass() -> None:
    with pytest.raises(NotFoundError, match="labelled texts") as caught:
        next(guard_records(1, 1, None))
    assert "--data" in (caught.value.hint or "")
