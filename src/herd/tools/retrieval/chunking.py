"""A text in passages of so many tokens, each beginning some tokens before the last one's end. Places are characters of the text.

The text is encoded piece by piece, pieces cut at line ends, so that a file of any size costs its length. A border never falls into a
character; where one is near, it falls behind a line or between words, since half a word finds nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from herd.base.errors import UsageError

DEFAULT_TOKENS, DEFAULT_OVERLAP = 800, 400
LEAST_TOKENS, MOST_TOKENS = 100, 4096
_PIECE_CHARS = 2**16


@runtime_checkable
class TokenCounter(Protocol):
    """What cuts text into tokens; herd's tokenizer is one."""

    def encode(self, text: str) -> list[int]:
        """Ids of the tokens."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunking:
    """How to cut: OpenAI's static strategy. Raises UsageError for what cannot be."""

    max_tokens: int = DEFAULT_TOKENS
    overlap: int = DEFAULT_OVERLAP

    def __post_init__(self) -> None:
        if not LEAST_TOKENS <= self.max_tokens <= MOST_TOKENS:
            raise UsageError(f"max_chunk_size_tokens is {self.max_tokens:,}", hint=f"it must be {LEAST_TOKENS} to {MOST_TOKENS:,} tokens")
        if not 0 <= self.overlap <= self.max_tokens // 2:
            raise UsageError(
                f"chunk_overlap_tokens is {self.overlap:,}",
                hint=f"it must be 0 to half of max_chunk_size_tokens ({self.max_tokens // 2:,})",
            )

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI tells it."""
        return {"type": "static", "static": {"max_chunk_size_tokens": self.max_tokens, "chunk_overlap_tokens": self.overlap}}

    def within(self, most: int) -> Chunking:
        """The same, of no more tokens than a model reads."""
        if self.max_tokens <= most:
            return self
        size = max(LEAST_TOKENS, most)
        return Chunking(max_tokens=size, overlap=self.overlap * size // self.max_tokens)


def read_chunking(data: Mapping[str, Any]) -> Chunking:
    """A strategy as `to_dict` wrote it."""
    static = data["static"]
    return Chunking(max_tokens=static["max_chunk_size_tokens"], overlap=static["chunk_overlap_tokens"])


@dataclass(frozen=True, slots=True)
class Span:
    """A passage: `text[start:end]`."""

    start: int
    end: int


def cut(text: str, chunking: Chunking, tokenizer: TokenCounter) -> list[Span]:
    """The passages of a text. Each has at most `max_tokens`, together they are all of it but white space at the ends."""
    ends = token_ends(text, tokenizer)
    spans: list[Span] = []
    first = 0
    while first < len(ends):
        last = min(first + chunking.max_tokens, len(ends))
        if last < len(ends):
            last = _better(text, ends, max(first + 1, last - chunking.max_tokens // 8), last)
        start = ends[first - 1] if first else 0
        span = _stripped(text, start, ends[last - 1])
        if span.start < span.end and not (spans and span.end <= spans[-1].end):
            spans.append(span)
        if last == len(ends):
            break
        first = max(first + 1, last - chunking.overlap)
    return spans


def _better(text: str, ends: Sequence[int], least: int, most: int) -> int:
    """A border between `least` and `most` tokens: behind a line's end, else behind white space, else at the most."""
    for marks in ("\n\f", " \t"):
        for count in range(most, least - 1, -1):
            place = ends[count - 1]
            if (place and text[place - 1] in marks) or text[place : place + 1] in marks:
                return count
    return most


def _stripped(text: str, start: int, end: int) -> Span:
    piece = text[start:end]
    left = len(piece) - len(piece.lstrip())
    return Span(start + left, max(start + left, end - (len(piece) - len(piece.rstrip()))))


def token_ends(text: str, tokenizer: TokenCounter) -> list[int]:
    """Where each token ends, as a place in the text. A token that ends within a character ends behind it."""
    ends: list[int] = []
    for start, piece in _pieces(text):
        starts = [0]  # bytes before each character
        for character in piece:
            starts.append(starts[-1] + len(character.encode("utf-8", "replace")))
        size = 0
        for token_id in tokenizer.encode(piece):
            size += len(tokenizer.token_bytes(token_id))
            place = bisect_right(starts, min(size, starts[-1])) - 1
            ends.append(start + (place if starts[place] == min(size, starts[-1]) else place + 1))
    return ends


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    while start < len(text):
        end = min(start + _PIECE_CHARS, len(text))
        if end < len(text):
            end = text.rfind("\n", start + 1, end) + 1 or text.rfind(" ", start + 1, end) + 1 or end
        yield start, text[start:end]
        start = end
