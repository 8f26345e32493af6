"""Sets of questions: which record holds what, numbers and calls that are the same, and what is left of right answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import ContextOverflowError, FormatError
from herd.recipes.answer_sets import Question, ask, calls_of, number_in, read_questions, recovery_of
from herd.text.messages import Message, ToolCall

WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6 + 1 = 7 sheep.\n#### 7", "7"),
        ("so 1,234.50 in all", "1234.5"),
        (r"thus \boxed{ -3 } and not 9", "-3"),
        ("It costs $12, not 11.", "11"),
        ("#### $1,000 (12 left)", "1000"),
        ("none at all", None),
    ],
)
def test_the_number_that_an_answer_ends_with(text: str, number: str | None) -> None:
    assert number_in(text) == (None if number is None else Decimal(number))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_numbers_with_commas_are_the_numbers(number: Decimal) -> None:
    assert number_in(f"first 5, then {number:,} in all.") == number


def test_questions_of_both_kinds(tmp_path: Path) -> None:
    called = {
        "tools": [{"type": "function", "function": WEATHER}],
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "Weather in Lima?"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Lima"}'}}]},
            {"role": "tool", "content": "fog"},
        ],
    }
    [tool] = read_questions(write(tmp_path / "tools.jsonl", called), "tools", 10)
    assert [message.role for message in tool.messages] == ["user", "assistant", "user"] and tool.tools[0].name == "weather"
    assert tool.right == [("weather", {"city": "Lima"})]
    sums = write(tmp_path / "sums.jsonl", *[{"question": f"{n} + {n}?", "answer": f"{n}+{n}\n#### {2 * n}"} for n in range(5)])
    assert [question.right for question in read_questions(sums, "maths", 3)] == [0, 2, 4]
    with pytest.raises(FormatError, match=r"sums\.jsonl, record 1 has no assistant's turn with tool_calls behind a question"):
        read_questions(sums, "tools", 3)
    with pytest.raises(FormatError, match="record 1 has no assistant's turn with a number"):
        read_questions(write(tmp_path / "words.jsonl", {"question": "Why?", "answer": "So."}), "maths", 3)


class Scripted:
    """Answers what it is told to."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self.answers, self.asked = list(answers), []

    def chat(self, messages: Any, params: Any, **more: Any) -> Any:
        assert params.temperature == 0.0 and params.max_tokens == 9
        self.asked.append((messages, more))
        return self.answers[len(self.asked) - 1]


def test_recovery() -> None:
    questions = [Question(messages=(Message.user("?"),), right=Decimal(number)) for number in (1, 2, 3, 4)]
    told: list[int] = []

    def numbers(*texts: str) -> list[object]:
        model: Any = Scripted([SimpleNamespace(text=text) for text in texts])
        return ask(model, questions, "maths", max_tokens=9, advance=told.append)

    found = recovery_of("maths", questions, numbers("1", "2", "3", "x"), numbers("1.0", "5", "3", "y"))
    assert (found.original, found.quantised, found.same, found.recovery) == (0.75, 0.5, 0.75, pytest.approx(2 / 3))
    assert told == [0, 1, 2, 3] * 2
    assert recovery_of("maths", questions, [None] * 4, [None] * 4).recovery is None
    with pytest.raises(FormatError, match="no question of the set leaves room for an answer; it has 0"):
        recovery_of("maths", [], [], [])


def test_questions_that_fill_the_context_are_not_counted() -> None:
    class Short:
        def chat(self, messages: Sequence[Message], *args: Any, **more: Any) -> Any:
            if len(messages[0].text) > 9:
                raise ContextOverflowError("the prompt has 10 tokens", hint="shorten it")
            return SimpleNamespace(text="7")

    questions = [Question(messages=(Message.user(text),), right=Decimal(7)) for text in ("short", "much too long")]
    model: Any = Short()
    answers = ask(model, questions, "maths", max_tokens=1, advance=lambda done: None)
    found = recovery_of("maths", questions, answers, answers)
    assert (found.num_questions, found.num_too_long, found.original) == (1, 1, 1.0)


def test_calls_are_the_same_where_their_values_are() -> None:
    assert calls_of([ToolCall(name="a", arguments={"x": 1, "y": [1]}, id="1")]) == calls_of(
        [ToolCall(name="a", arguments={"y": [1.0], "x": 1.0})]
    )
    assert calls_of([ToolCall(name="a", arguments={"x": 1})]) != calls_of([ToolCall(name="a", arguments={"x": 2})])
