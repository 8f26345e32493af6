"""/v1/vector_stores: made, listed, changed, deleted and searched; each key has stores of its own. `vector_files` has what is in them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from herd.stack.answers import json_response, unless_gone
from herd.stack.config import ServerConfig
from herd.stack.errors import RequestError
from herd.stack.files import list_of, owner_of
from herd.stack.translate import check_model
from herd.stack.vector_types import ExpiresAfter, RankingOptions, VectorSearchBody, VectorStoreBody, VectorStoreChange
from herd.store.filters import read_filter
from herd.store.paging import Cursor
from herd.store.ranking import Ranking
from herd.store.search import Hit
from herd.store.tables.vector_stores import VectorStoreRow
from herd.store.vector_stores import NewFile, expires_at, is_expired
from herd.tools.retrieval.service import Retrieval

Counts = dict[str, int]
Cut = Annotated[str | None, Query(max_length=256)]


def store_object(row: VectorStoreRow, counts: Counts) -> dict[str, Any]:
    """A store as OpenAI tells it, and the Llama Stack's model beside it."""
    end = expires_at(row)
    status = "expired" if is_expired(row) else "in_progress" if counts["in_progress"] else "completed"
    return {
        "id": row.id,
        "object": "vector_store",
        "created_at": int(row.created),
        "name": row.name or "",
        "description": row.description,
        "usage_bytes": counts["bytes"],
        "file_counts": told_counts(counts),
        "status": status,
        "expires_after": None if row.expires_days is None else {"anchor": "last_active_at", "days": row.expires_days},
        "expires_at": None if end is None else int(end),
        "last_active_at": int(row.last_active),
        "metadata": row.meta or {},
        "embedding_model": row.embedding_model,
        "embedding_dimension": row.dimensions,
    }


def told_counts(counts: Counts) -> Counts:
    """Files by status."""
    return {name: counts[name] for name in ("in_progress", "completed", "failed", "cancelled", "total")}


def hit_object(hit: Hit) -> dict[str, Any]:
    """A passage as OpenAI tells it, and where it stands beside it."""
    return {
        "file_id": hit.file_id,
        "filename": hit.filename,
        "score": round(hit.score, 6),
        "attributes": hit.attributes,
        "content": [{"type": "text", "text": hit.text}],
        "start": hit.start,
        "end": hit.end,
    }


def ranking_of(options: RankingOptions | None) -> Ranking:
    """How to rank. Raises UsageError."""
    if options is None:
        return Ranking()
    weights = (1.0, 1.0)
    if options.alpha is not None:
        weights = (options.alpha, 1 - options.alpha)
    if options.hybrid_search is not None:
        weights = (options.hybrid_search.embedding_weight, options.hybrid_search.text_weight)
    return Ranking(
        method="weighted" if options.ranker == "weighted" else "rrf",
        vector_weight=weights[0],
        keyword_weight=weights[1],
        constant=options.impact_factor or 60.0,
        threshold=options.score_threshold or 0.0,
    )


def _days(after: ExpiresAfter | None) -> int | None:
    return None if after is None else after.days


def vector_store_routes(retrieval: Retrieval, config: ServerConfig) -> APIRouter:
    """The routes."""
    router = APIRouter()
    stores = retrieval.stores

    async def told(row: VectorStoreRow) -> Response:
        counts = await asyncio.to_thread(stores.counts, [row.id])
        return json_response(store_object(row, counts[row.id]))

    @router.post("/v1/vector_stores", summary="Make a vector store, of files that were uploaded", response_model=None)
    async def create(body: VectorStoreBody, request: Request) -> Response:
        owner = owner_of(request)
        check_model(body.embedding_model or "", config.model_name)
        auto = retrieval.auto_chunking
        cut = auto if body.chunking_strategy is None else body.chunking_strategy.chosen(auto)
        for file_id in body.file_ids or ():
            await asyncio.to_thread(retrieval.files.get, owner, file_id)
        await check_room(retrieval, config, owner)
        row = await retrieval.create(
            owner, name=body.name, description=body.description, metadata=body.metadata, expires_days=_days(body.expires_after)
        )
        if body.file_ids:
            files = [NewFile(file_id=one, attributes=None, chunking=cut.to_dict()) for one in dict.fromkeys(body.file_ids)]
            await retrieval.add_files(owner, row.id, files)
        return await told(row)

    @router.get("/v1/vector_stores", summary="Your vector stores", response_model=None)
    async def page(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Cut = None,
        before: Cut = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> Response:
        cursor = Cursor(limit=limit, after=after, before=before, order=order)
        found = await asyncio.to_thread(stores.page, owner_of(request), cursor)
        counts = await asyncio.to_thread(stores.counts, [row.id for row in found.rows])
        return json_response(list_of([store_object(row, counts[row.id]) for row in found.rows], found.has_more))

    @router.get("/v1/vector_stores/{vector_store_id}", summary="One vector store's facts", response_model=None)
    async def get(vector_store_id: str, request: Request) -> Response:
        return await told(await asyncio.to_thread(stores.get, owner_of(request), vector_store_id))

    @router.post("/v1/vector_stores/{vector_store_id}", summary="Change a vector store's name, life or metadata", response_model=None)
    async def change(vector_store_id: str, body: VectorStoreChange, request: Request) -> Response:
        values: dict[str, Any] = {}
        if "name" in body.model_fields_set:
            values["name"] = body.name
        if "metadata" in body.model_fields_set:
            values["meta"] = body.metadata
        if "expires_after" in body.model_fields_set:
            values["expires_days"] = _days(body.expires_after)
        return await told(await asyncio.to_thread(partial(stores.change, owner_of(request), vector_store_id, **values)))

    @router.delete("/v1/vector_stores/{vector_store_id}", summary="Delete a vector store; its files stay", response_model=None)
    async def delete(vector_store_id: str, request: Request) -> Response:
        await retrieval.delete(owner_of(request), vector_store_id)
        return json_response({"id": vector_store_id, "object": "vector_store.deleted", "deleted": True})

    _search_route(router, retrieval)
    return router


def _search_route(router: APIRouter, retrieval: Retrieval) -> None:
    @router.post("/v1/vector_stores/{vector_store_id}/search", summary="Find passages by vectors, by words, or both", response_model=None)
    async def search(vector_store_id: str, body: VectorSearchBody, request: Request) -> Response:
        if body.rewrite_query:
            raise RequestError("usage", "rewrite_query is true, queries are taken as they are", hint="leave it out", param="rewrite_query")
        queries = [body.query] if isinstance(body.query, str) else body.query
        work = retrieval.search(
            owner_of(request),
            [vector_store_id],
            queries,
            mode=body.search_mode,
            limit=body.max_num_results,
            wanted=None if body.filters is None else read_filter(body.filters),
            ranking=ranking_of(body.ranking_options),
        )
        hits = await unless_gone(request, work)
        data = [hit_object(hit) for hit in hits]
        kind = "vector_store.search_results.page"
        return json_response({"object": kind, "search_query": queries, "data": data, "has_more": False, "next_page": None})


async def check_room(retrieval: Retrieval, config: ServerConfig, owner: str) -> None:
    """Raises RequestError for a key that has as many stores as it may."""
    most = config.caps.vector_stores
    if await asyncio.to_thread(retrieval.stores.count, owner) >= most:
        raise RequestError("too_large", f"you have {most:,} vector stores, the most is {most:,}", hint="delete some")
