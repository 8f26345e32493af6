"""Questions with known answers, asked of a model before and after quantisation: what a set still gets right is its recovery.

Records are dialogues of the shapes of `dialogue`, one a line. The first assistant's turn to be judged is the known answer:

    tools    its calls: right where names and arguments are all the same, arguments as JSON values
    maths    the number it ends with: behind ####, in a box, or the last one of the text

Both kinds fail before multiple choice does when few bits are left (the cards of Llama 3.2). Answers are greedy. Knows nothing of bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import regex

from herd.base.errors import ContextOverflowError, FormatError
from herd.data.records import Record, read_records
from herd.inference.output import Output
from herd.inference.params import SamplingParams
from herd.recipes.dialogue import read_dialogue
from herd.text.messages import Message, ToolCall, ToolDefinition

Kind = Literal["tools", "maths"]
TOO_LONG = "too long"
"""In the place of an answer: the question fills the context."""
NEW_TOKENS: dict[Kind, int] = {"tools": 256, "maths": 512}
"""How long an answer may be, unless it is said."""
_NUMBER = regex.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_MARKED = (regex.compile(r"####\s*(-?\$?\d[\d,]*(?:\.\d+)?)"), regex.compile(r"\\boxed\{\s*(-?\$?\d[\d,]*(?:\.\d+)?)\s*\}"))


@runtime_checkable
class Chats(Protocol):
    """What answers: an `LLM`."""

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        *,
        tools: Sequence[ToolDefinition],
        builtin_tools: Sequence[str],
    ) -> Output:
        """One answer."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked, and what is right: calls, or a number."""

    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...] = ()
    builtin_tools: tuple[str, ...] = ()
    right: object = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovery:
    """Of one set: how many questions, the shares that each model gets right, and the share to which both give the same answer.

    Questions that leave no room for an answer in the context are not counted; `num_too_long` says how many there are.
    """

    kind: Kind
    num_questions: int
    num_too_long: int
    original: float
    quantised: float
    same: float

    @property
    def recovery(self) -> float | None:
        """What is left of the right answers; None where there were none."""
        return self.quantised / self.original if self.original else None


def number_in(text: str) -> Decimal | None:
    """The number that an answer ends with."""
    for marked in _MARKED:
        found = marked.findall(text)
        if found:
            return _decimal(found[-1])
    found = _NUMBER.findall(text)
    return _decimal(found[-1]) if found else None


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None


def calls_of(calls: Iterable[ToolCall]) -> list[tuple[str, dict[str, Any]]]:
    """Calls as values that compare."""
    return [(call.name, dict(call.arguments)) for call in calls]


def read_questions(path: Path, kind: Kind, limit: int) -> list[Question]:
    """The first questions of a file. Raises FormatError, naming the record, where one has no answer to compare with."""
    return [_question(record, kind, f"{path}, record {number}") for number, record in enumerate(islice(read_records(path), limit), start=1)]


def _question(record: Record, kind: Kind, where: str) -> Question:
    try:
        found = read_dialogue(record)
    except FormatError as error:
        raise FormatError(f"{where}: {error.message}", hint=error.hint) from error
    for place, message in enumerate(found.messages):
        if message.role != "assistant":
            continue
        right = calls_of(message.tool_calls) if kind == "tools" else number_in(message.text)
        if place and (right if kind == "tools" else right is not None):
            return Question(messages=found.messages[:place], tools=found.tools, builtin_tools=found.builtin_tools, right=right)
    wanted = "turn with tool_calls" if kind == "tools" else "turn with a number"
    raise FormatError(
        f"{where} has no assistant's {wanted} behind a question", hint="the guide on quantisation shows a record of each kind"
    )


def ask(model: Chats, questions: Sequence[Question], kind: Kind, *, max_tokens: int, advance: Callable[[int], None]) -> list[object]:
    """What a model answers to each question, as values that compare."""
    params, answers = SamplingParams(temperature=0.0, max_tokens=max_tokens), []
    for number, question in enumerate(questions):
        advance(number)
        try:
            output = model.chat(question.messages, params, tools=question.tools, builtin_tools=question.builtin_tools)
        except ContextOverflowError:
            answers.append(TOO_LONG)
            continue
        answers.append(calls_of(output.tool_calls) if kind == "tools" else number_in(output.text))
    return answers


def recovery_of(kind: Kind, questions: Sequence[Question], original: Sequence[object], quantised: Sequence[object]) -> Recovery:
    """Judge both models' answers."""
    asked = [
        (question.right, one, other)
        for question, one, other in zip(questions, original, quantised, strict=True)
        if one is not TOO_LONG and other is not TOO_LONG
    ]
    num = len(asked)
    if not num:
        raise FormatError(
            f"no question of the set leaves room for an answer; it has {len(questions)}",
            hint="give JSON lines, a short dialogue each",
        )
    return Recovery(
        kind=kind,
        num_questions=num,
        num_too_long=len(questions) - num,
        original=sum(one == right for right, one, _ in asked) / num,
        quantised=sum(other == right for right, _, other in asked) / num,
        same=sum(one == other for _, one, other in asked) / num,
    )
