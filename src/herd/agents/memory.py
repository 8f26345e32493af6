"""Memory of a session: its documents, cut into passages and found by their words (BM25), each with what it takes to cite it.

Documents of one session are few, so they are ranked where they are asked for; large collections belong into a vector store, whose search
is a `Retriever` as well.
"""

from __future__ import annotations

import asyncio
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from herd.agents.sessions import Document, SessionStore
from herd.tools.files.index import cut_passages
from herd.tools.tool import Passage, ToolContext

_WORD = re.compile(r"\w+")
_K1, _B = 1.2, 0.75
"""Of Robertson and Zaragoza's BM25: how soon a word that comes again counts less, and how much long passages are held back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionPassage(Passage):
    """A passage of a session's document."""

    document_id: str = ""

    def to_dict(self) -> dict[str, object]:
        """As JSON."""
        plain = {"text": self.text, "source": self.source, "score": round(self.score, 4), "title": self.title}
        return {**plain, "document_id": self.document_id}


class SessionMemory:
    """A `Retriever` over the documents of one session."""

    def __init__(self, store: SessionStore, owner: str, session_id: str) -> None:
        self._store, self._owner, self._session_id = store, owner, session_id

    async def retrieve(self, query: str, *, limit: int, context: ToolContext) -> list[Passage]:
        """The best passages, best first; those without any word of the query are none."""
        documents = await self._store.documents(self._owner, self._session_id)
        return list(await asyncio.to_thread(rank, query, documents, limit))


def words_of(text: str) -> list[str]:
    """Words without case and accents; scripts without spaces by three characters at a time."""
    folded = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    found: list[str] = []
    for word in _WORD.findall(folded):
        spaceless = len(word) > 3 and any("\u0e00" <= c <= "\u0e7f" or "\u3040" <= c <= "\u9fff" for c in word)
        found += [word[place : place + 3] for place in range(len(word) - 2)] if spaceless else [word]
    return found


def rank(query: str, documents: Sequence[Document], limit: int) -> list[SessionPassage]:
    """The passages of documents that answer a query best."""
    pieces = [(document, text, Counter(words_of(text))) for document in documents for text in cut_passages(document.text)]
    if not pieces:
        return []
    wanted = set(words_of(query))
    mean = sum(counts.total() for _, _, counts in pieces) / len(pieces) or 1.0
    holding = {word: sum(word in counts for _, _, counts in pieces) for word in wanted}
    scored = [(_score(counts, holding, len(pieces), mean), place) for place, (_, _, counts) in enumerate(pieces)]
    best = sorted((-score, place) for score, place in scored if score > 0)[:limit]
    return [_passage(*pieces[place][:2], -score) for score, place in best]


def _score(counts: Counter[str], holding: dict[str, int], number: int, mean: float) -> float:
    total, score = counts.total(), 0.0
    for word, held in holding.items():
        if (often := counts[word]) and held:
            rarity = math.log(1.0 + (number - held + 0.5) / (held + 0.5))
            score += rarity * often * (_K1 + 1.0) / (often + _K1 * (1.0 - _B + _B * total / mean))
    return score


def _passage(document: Document, text: str, score: float) -> SessionPassage:
    return SessionPassage(
        text=text, source=document.source or document.title or document.id, score=score, title=document.title, document_id=document.id
    )
