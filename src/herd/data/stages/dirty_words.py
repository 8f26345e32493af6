"""Counting of dirty words: pages for adults that the block lists of domains miss (section 3.1.1 of the Llama 3 paper)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from herd.base.errors import ConfigError
from herd.data.records import Record
from herd.data.stages.stage import Drop, Note
from herd.data.stages.word_list import read_list, small_lists
from herd.data.units import words_of


@dataclass(frozen=True, kw_only=True, slots=True)
class DirtyWords:
    """Drops a text in which at least `min_count` words are of the list and these are more than `max_share` of all.

    `words` and `words_file` give the list; `built_in_words` adds the short lists that herd carries.
    """

    kind: ClassVar[str] = "dirty_words"
    routes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    words_file: str | None = None
    built_in_words: bool = True
    min_count: int = 3
    max_share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1 or self.min_count < 1:
            raise ConfigError(f"max_share {self.max_share}, min_count {self.min_count}", hint="a share from 0 to 1, a count of at least 1")

    def files(self) -> tuple[str, ...]:
        """Its list."""
        return (self.words_file,) if self.words_file else ()

    def apply(self, record: Record, note: Note) -> Record | Drop:
        """By the record's `text`."""
        words = words_of(record["text"])
        listed = dirty_list(self)
        found = [word for word in words if word in listed]
        if len(found) >= self.min_count and len(found) > self.max_share * len(words):
            return Drop("dirty words", f"{len(found)} of {len(words)} words")
        return record


@lru_cache(maxsize=8)
def dirty_list(stage: DirtyWords) -> frozenset[str]:
    """All words that count as dirty."""
    given = frozenset(word.lower() for word in stage.words) | (read_list(stage.words_file) if stage.words_file else frozenset())
    return given | (small_lists() if stage.built_in_words else frozenset())
