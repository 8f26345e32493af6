"""A text as the words by which it is found, the same for every database: folded, without accents, runs of Thai or Chinese in pairs.

FTS5 and PostgreSQL cut words by different rules, both of them wrong for Hindi's vowel signs and blind in scripts without spaces. So herd
cuts them, and hands the database words with spaces between.
"""

from __future__ import annotations

import unicodedata

import regex

_WORD = regex.compile(r"[\p{L}\p{N}\p{M}\p{Co}]+")
_WITHOUT_SPACES = regex.compile(r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Han}\p{Hiragana}\p{Katakana}]+")
_ACCENTS = regex.compile(r"[\u0300-\u036f]+")
MAX_WORD_CHARS = 64
MAX_TERMS = 32
"""Words of a query that count; the first of them."""


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    folded = _ACCENTS.sub("", unicodedata.normalize("NFKD", text)).casefold()
    found: list[str] = []
    for word in _WORD.findall(folded):
        place = 0
        for run in _WITHOUT_SPACES.finditer(word):
            if run.start() > place:
                found.append(word[place : run.start()][:MAX_WORD_CHARS])
            piece = run.group()
            found.extend(piece[at : at + 2] for at in range(max(1, len(piece) - 1)))
            place = run.end()
        if place < len(word):
            found.append(word[place:][:MAX_WORD_CHARS])
    return found


def terms_of(query: str) -> list[str]:
    """The words of a query, each once."""
    return list(dict.fromkeys(words_of(query)))[:MAX_TERMS]
