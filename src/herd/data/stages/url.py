"""URL filter: whole domains that are known for adult content, malware or personal data, and words in an address that tell of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar
from urllib.parse import urlsplit

from herd.data.records import Record
from herd.data.stages.stage import Drop, Note
from herd.data.stages.word_list import read_list, small_lists

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class UrlFilter:
    """Drops pages of listed domains and of those below them, and addresses that hold a listed word. Records without a URL pass.

    `domains` and `domains_file` name domains; `words` and `words_file` name words, `built_in_words` adds the short lists that herd carries.
    """

    kind: ClassVar[str] = "url"
    routes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    domains_file: str | None = None
    words: tuple[str, ...] = ()
    words_file: str | None = None
    built_in_words: bool = True

    def files(self) -> tuple[str, ...]:
        """Its lists."""
        return tuple(path for path in (self.domains_file, self.words_file) if path)

    def apply(self, record: Record, note: Note) -> Record | Drop:
        """By the record's `url`."""
        url = str(record.get("url") or "").lower()
        if not url:
            return record
        domains, words = url_lists(self)
        try:
            host = urlsplit(url if "://" in url else "//" + url).hostname or ""
        except ValueError:
            return Drop("no address", url)
        parts = host.rstrip(".").split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in domains:
                return Drop("domain", ".".join(parts[start:]))
        found = words.intersection(_WORD.findall(url))
        return Drop("word in the address", min(found)) if found else record


@lru_cache(maxsize=8)
def url_lists(stage: UrlFilter) -> tuple[frozenset[str], frozenset[str]]:
    """The domains and the words of a filter."""
    domains = frozenset(domain.lower().strip(".") for domain in stage.domains) | (
        read_list(stage.domains_file) if stage.domains_file else frozenset()
    )
    words = frozenset(word.lower() for word in stage.words) | (read_list(stage.words_file) if stage.words_file else frozenset())
    return domains, words | (small_lists() if stage.built_in_words else frozenset())
