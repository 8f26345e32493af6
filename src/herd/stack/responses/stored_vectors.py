"""The server's vector stores as what `file_search` searches."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from herd.stack.responses.kit import Found
from herd.store.filters import read_filter
from herd.store.ranking import Ranking
from herd.tools.retrieval.service import Retrieval


class StoredVectors:
    """Hybrid search, by vectors and by words."""

    def __init__(self, retrieval: Retrieval) -> None:
        self._retrieval = retrieval

    async def check(self, owner: str, store_ids: Sequence[str]) -> None:
        """Raises NotFoundError for a store that the owner has not."""
        for store_id in dict.fromkeys(store_ids):
            await asyncio.to_thread(self._retrieval.stores.touch, owner, store_id)

    async def __call__(
        self, owner: str, store_ids: Sequence[str], query: str, *, limit: int, filters: Mapping[str, Any] | None, least: float
    ) -> list[Found]:
        """The best passages, best first."""
        wanted = None if filters is None else read_filter(filters)
        ranking = Ranking(threshold=least)
        hits = await self._retrieval.search(owner, store_ids, [query], mode="hybrid", limit=limit, wanted=wanted, ranking=ranking)
        return [
            Found(file_id=hit.file_id, filename=hit.filename, text=hit.text, score=hit.score, attributes=hit.attributes) for hit in hits
        ]
