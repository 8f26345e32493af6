"""Lists of words or domains: given in the configuration, or in a file with one a line (# begins a comment)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from herd.data.records import read_lines

SMALL_LISTS: dict[str, tuple[str, ...]] = {
    "en": ("porn", "porno", "xxx", "milf", "blowjob", "cumshot", "gangbang", "creampie", "handjob", "deepthroat", "camgirl", "camgirls",
           "nudes", "sexcam", "bukkake", "hentai", "dildo", "fuck", "fucking", "cunt", "cocksucker", "masturbating"),
    "de": ("pornos", "ficken", "fotze", "arschficken", "sexkontakte", "schwanzlutschen", "wichsen", "nutten"),
    "fr": ("salope", "salopes", "branlette", "enculer", "enculée", "putes", "sodomie", "partouze"),
    "it": ("puttane", "scopare", "pompino", "pompini", "segaiolo", "troie"),
    "pt": ("putaria", "buceta", "boquete", "foder", "punheta", "safadas", "caralho"),
    "es": ("putas", "follando", "mamadas", "chochos", "pajillera"),
    "hi": ("chudai", "chudwaya"),
}  # fmt: skip
"""Words that pages for adults repeat and others rarely use, in no other of the languages an innocent word.

Short on purpose: give a longer list, as LDNOOBW's, by a file. Hindi and Thai in their own scripts fall into runs too short to be listed.
"""


@lru_cache(maxsize=16)
def read_list(path: str) -> frozenset[str]:
    """The entries of a list file, in lower case. Raises NotFoundError, FormatError."""
    entries = (line.partition("#")[0].strip().lower() for _, line in read_lines(Path(path) if "://" not in path else path))
    return frozenset(entry for entry in entries if entry)


def small_lists() -> frozenset[str]:
    """The words of all languages' small lists."""
    return frozenset(word for words in SMALL_LISTS.values() for word in words)
