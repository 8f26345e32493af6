"""Citations: passages get numbers that are unique in a session, an answer cites them as [3], and every mark is checked.

A mark counts only if the passage of that number was really retrieved. How much of the sentence before it stands in the passage is told
with it: a figure, not a proof.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from herd.agents.steps import Passage
from herd.agents.turn import Citation, passages_of
from herd.tools.tool import ToolResult

_MARK = re.compile(r"\[(\d{1,5}(?:\s*,\s*\d{1,5})*)\]")
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"[.!?\n]\s+")
INSTRUCTION = "Cite a passage by its number in square brackets, such as [1], right after what you took from it."


def number_passages(result: ToolResult, taken: Sequence[Passage]) -> ToolResult:
    """A tool's result whose passages have the session's next numbers, in its data and in the text that the model reads."""
    found = list(passages_of(result.data))
    if not result.ok or not found:
        return result
    first = max((passage.number for passage in taken), default=0) + 1
    numbered = [replace(passage, number=first + index) for index, passage in enumerate(found)]
    data = dict(result.data) | {"passages": [as_dict(passage) for passage in numbered]}
    return replace(result, text=f"{listing(numbered)}\n\n{INSTRUCTION}", data=data)


def listing(passages: Iterable[Passage]) -> str:
    """Passages as the model reads them."""
    return "\n\n".join(f"[{passage.number}] {passage.title or passage.source}\n{passage.text}" for passage in passages)


def as_dict(passage: Passage) -> Mapping[str, Any]:
    """A passage as JSON."""
    return {name: getattr(passage, name) for name in ("number", "text", "source", "score", "title", "document_id")}


def check(text: str, passages: Sequence[Passage]) -> tuple[tuple[Citation, ...], tuple[int, ...]]:
    """The citations of an answer to passages that there are, and the numbers that stand for none. No passages: brackets are brackets."""
    if not passages:
        return (), ()
    by_number = {passage.number: passage for passage in passages}
    citations: list[Citation] = []
    false: list[int] = []
    for mark in _MARK.finditer(text):
        for number in (int(found) for found in mark.group(1).split(",")):
            passage = by_number.get(number)
            if passage is None:
                false.append(number)
                continue
            support = _support(_sentence_before(text, mark.start()), passage.text)
            citations.append(
                Citation(
                    number=number,
                    start=mark.start(),
                    end=mark.end(),
                    source=passage.source,
                    title=passage.title,
                    document_id=passage.document_id,
                    text=passage.text,
                    support=support,
                )
            )
    return tuple(citations), tuple(dict.fromkeys(false))


def _sentence_before(text: str, end: int) -> str:
    cut = [match.end() for match in _SENTENCE.finditer(text[:end].rstrip())]
    return text[cut[-1] if cut else 0 : end]


def _support(sentence: str, passage: str) -> float:
    words = [word.lower() for word in _WORD.findall(_MARK.sub("", sentence)) if len(word) > 2]
    there = {word.lower() for word in _WORD.findall(passage)}
    return round(sum(word in there for word in words) / len(words), 3) if words else 0.0
