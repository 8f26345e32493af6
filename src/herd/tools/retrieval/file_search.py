"""`file_search`: a tool that finds passages in vector stores, each with its file, its place in it and its score, to be cited."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from herd.store.filters import Filter
from herd.store.ranking import Ranking
from herd.store.search import Hit, Mode
from herd.tools.retrieval.service import MAX_RESULTS, Retrieval
from herd.tools.tool import Passage, Taint, ToolContext, ToolLimits, ToolResult


class FileSearchTool:
    """Searches the stores that whoever set it up chose; the model chooses the question alone."""

    name = "file_search"
    description = "Searches the user's files and returns the best passages, each with its file, its place and its score."
    taint = Taint(reads_untrusted=True, reads_private=True)
    limits = ToolLimits(max_text_chars=60_000)
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "What to look for.", "minLength": 1, "maxLength": 4000}},
        "required": ["query"],
        "additionalProperties": False,
    }

    def __init__(
        self,
        retrieval: Retrieval,
        owner: str,
        store_ids: Sequence[str],
        *,
        max_results: int = 5,
        mode: Mode = "hybrid",
        wanted: Filter | None = None,
        ranking: Ranking | None = None,
    ) -> None:
        self._retrieval, self._owner, self._store_ids = retrieval, owner, tuple(store_ids)
        self._how: dict[str, Any] = {"limit": min(max_results, MAX_RESULTS), "mode": mode, "wanted": wanted, "ranking": ranking}

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Search for `query`."""
        hits = await self.hits(arguments["query"])
        data = {"query": arguments["query"], "results": [told(hit) for hit in hits]}
        return ToolResult(text=json.dumps(data, ensure_ascii=False), data=data)

    async def hits(self, query: str) -> list[Hit]:
        """What a question finds."""
        return await self._retrieval.search(self._owner, self._store_ids, [query], **self._how)

    async def retrieve(self, query: str, *, limit: int, context: ToolContext) -> list[Passage]:
        """As `knowledge_search` asks: it is a `Retriever` too."""
        how = {**self._how, "limit": min(limit, MAX_RESULTS)}
        hits = await self._retrieval.search(self._owner, self._store_ids, [query], **how)
        return [Passage(text=hit.text, source=f"{hit.file_id}#{hit.start}-{hit.end}", score=hit.score, title=hit.filename) for hit in hits]


def told(hit: Hit) -> dict[str, Any]:
    """A passage as the model and programs read it."""
    return {
        "file_id": hit.file_id,
        "filename": hit.filename,
        "start": hit.start,
        "end": hit.end,
        "score": round(hit.score, 4),
        "attributes": hit.attributes,
        "text": hit.text,
    }
