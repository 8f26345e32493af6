"""Rules of thumb that tell prose from the rest of a page: lengths, symbols, bullets, lines that break off.

The rules and their limits are those that Gopher (arXiv 2112.11446, A1.1) published and others took over; Llama 3 names the kind, not the
numbers. Languages that do not part their words (Thai) are counted in letters, four to a word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from herd.base.errors import ConfigError
from herd.data.records import Record
from herd.data.stages.stage import Drop, Note
from herd.data.units import UNPARTED, words_of

_MARKS = re.compile(r"(?!\w)[\u0e00-\u109f\u1780-\u17ff]")
"""Vowels and tones that Thai and its neighbours write as marks: letters to a reader, though not to the pattern of a word."""
_BULLETS = ("-", "*", "•", "‣", "–", "·", "●", "▪")


@dataclass(frozen=True, kw_only=True, slots=True)
class Heuristics:
    """Drops a text with too few or too many words, odd word lengths, or too many symbols, bullets or broken lines."""

    kind: ClassVar[str] = "heuristics"
    routes: tuple[str, ...] = ("prose",)
    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 2.0
    max_word_length: float = 12.0
    max_symbols_per_word: float = 0.1
    max_bullet_lines: float = 0.9
    max_broken_lines: float = 0.3
    min_letters: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.min_words <= self.max_words:
            raise ConfigError(f"min_words {self.min_words} and max_words {self.max_words} leave nothing", hint="min_words is the smaller")

    def files(self) -> tuple[str, ...]:
        """None."""
        return ()

    def apply(self, record: Record, note: Note) -> Record | Drop:
        """By the record's `text`; `lang` says how its words are counted."""
        text = record["text"]
        words = words_of(text)
        letters = sum(map(len, words))
        parted = record.get("lang") not in UNPARTED
        if not parted:
            letters += len(_MARKS.findall(text))
        count = len(words) if parted else letters // 4
        if count < self.min_words:
            return Drop("too short", f"{count} words")
        if count > self.max_words:
            return Drop("too long", f"{count} words")
        if parted and not self.min_word_length <= letters / count <= self.max_word_length:
            return Drop("odd word length", f"{letters / count:.1f} letters a word")
        if letters < self.min_letters * (len(text) - text.count(" ") - text.count("\n")):
            return Drop("few letters", f"{letters} of {len(text)} characters")
        symbols = text.count("#") + text.count("…") + text.count("...")
        if symbols > self.max_symbols_per_word * count:
            return Drop("many symbols", f"{symbols} of # and ... in {count} words")
        return self._lines(text) or record

    def _lines(self, text: str) -> Drop | None:
        lines = [line for line in map(str.strip, text.split("\n")) if line]
        bullets = sum(line.startswith(_BULLETS) for line in lines)
        if bullets > self.max_bullet_lines * len(lines):
            return Drop("mostly bullets", f"{bullets} of {len(lines)} lines")
        broken = sum(line.endswith(("…", "...")) for line in lines)
        if broken > self.max_broken_lines * len(lines):
            return Drop("lines break off", f"{broken} of {len(lines)} lines")
        return None
