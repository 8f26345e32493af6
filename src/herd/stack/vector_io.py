"""The Llama Stack's own routes to vector stores: /v1/vector-io (passages that a client cut itself) and /v1/vector-dbs (names of 0.2).

A name of /v1/vector-dbs is an alias of a vector store, the owner's own: two keys may use the same one.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from herd.stack.answers import json_response, unless_gone
from herd.stack.config import ServerConfig
from herd.stack.errors import RequestError
from herd.stack.files import owner_of
from herd.stack.translate import check_model
from herd.stack.vector_stores import check_room
from herd.stack.vector_types import Chunk, Content, VectorDbBody, VectorInsertBody, VectorQueryBody, VectorQueryParams
from herd.store.filters import read_filter
from herd.store.paging import Cursor
from herd.store.ranking import Ranking
from herd.store.tables.vector_stores import VectorStoreRow
from herd.tools.retrieval.service import Retrieval

PROVIDER = "herd"
MAX_LISTED = 1000


def db_object(row: VectorStoreRow) -> dict[str, Any]:
    """A store as llama-stack-client 0.2 reads it."""
    return {
        "identifier": row.alias or row.id,
        "provider_id": PROVIDER,
        "provider_resource_id": row.id,
        "type": "vector_db",
        "vector_db_name": row.name,
        "embedding_model": row.embedding_model,
        "embedding_dimension": row.dimensions or 0,
    }


def _document_of(chunk: Chunk) -> str:
    """The name of a passage's document: what the client calls it, else one of its text."""
    named = chunk.metadata.get("document_id") or chunk.chunk_id
    if isinstance(named, str) and 0 < len(named) <= 256:
        return named
    return "doc-" + hashlib.sha256(chunk.text().encode("utf-8", "replace")).hexdigest()[:24]


def _text_of(content: Content) -> str:
    return Chunk.model_construct(content=content).text()


def vector_io_routes(retrieval: Retrieval) -> APIRouter:
    """The routes."""
    router = APIRouter()
    stores = retrieval.stores

    async def resolved(request: Request, body: VectorInsertBody | VectorQueryBody) -> VectorStoreRow:
        name = body.vector_store_id or body.vector_db_id
        if name is None:
            raise RequestError("usage", "no store is named", hint="give vector_store_id", param="vector_store_id")
        return await asyncio.to_thread(stores.resolve, owner_of(request), name)

    @router.post("/v1/vector-io/insert", summary="Keep passages that you cut yourself", response_model=None)
    async def insert(body: VectorInsertBody, request: Request) -> Response:
        if body.ttl_seconds is not None:
            raise RequestError("usage", "passages do not expire by themselves", hint="leave ttl_seconds out", param="ttl_seconds")
        store = await resolved(request, body)
        documents: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for place, chunk in enumerate(body.chunks):
            text = chunk.text()
            if not text.strip():
                raise RequestError("usage", f"chunk {place} has no text", hint="leave it out", param="chunks")
            documents.setdefault(_document_of(chunk), []).append((text, chunk.metadata))
        await unless_gone(request, retrieval.insert(owner_of(request), store.id, documents))
        return json_response(None)

    @router.post("/v1/vector-io/query", summary="Find passages, in the Llama Stack's shape", response_model=None)
    async def query(body: VectorQueryBody, request: Request) -> Response:
        store = await resolved(request, body)
        how = body.params or VectorQueryParams()
        text = _text_of(body.query)
        if not text.strip():
            raise RequestError("usage", "the query has no text", hint="ask for something", param="query")
        work = retrieval.search(
            owner_of(request),
            [store.id],
            [text],
            mode=how.mode,
            limit=how.max_chunks,
            wanted=None if how.filters is None else read_filter(how.filters),
            ranking=Ranking(threshold=how.score_threshold or 0.0),
        )
        hits = await unless_gone(request, work)
        chunks = [
            {
                "content": hit.text,
                "chunk_id": f"{hit.file_id}:{hit.ordinal}",
                "metadata": {**hit.attributes, **hit.meta, "document_id": hit.meta.get("document_id", hit.file_id)},
            }
            for hit in hits
        ]
        return json_response({"chunks": chunks, "scores": [round(hit.score, 6) for hit in hits]})

    return router


def vector_db_routes(retrieval: Retrieval, config: ServerConfig) -> APIRouter:
    """The routes of names."""
    router = APIRouter()
    stores = retrieval.stores

    @router.post("/v1/vector-dbs", summary="Make a vector store under a name of yours", response_model=None)
    async def register(body: VectorDbBody, request: Request) -> Response:
        check_model(body.embedding_model or "", config.model_name)
        owner = owner_of(request)
        await check_room(retrieval, config, owner)
        return json_response(
            db_object(await retrieval.create(owner, name=body.vector_db_name or body.vector_db_id, alias=body.vector_db_id))
        )

    @router.get("/v1/vector-dbs", summary="Your vector stores, as llama-stack-client 0.2 lists them", response_model=None)
    async def listed(request: Request) -> Response:
        found = await asyncio.to_thread(stores.page, owner_of(request), Cursor(limit=MAX_LISTED, order="asc"))
        return json_response({"data": [db_object(row) for row in found.rows]})

    @router.get("/v1/vector-dbs/{vector_db_id}", summary="One vector store by its name", response_model=None)
    async def get(vector_db_id: str, request: Request) -> Response:
        return json_response(db_object(await asyncio.to_thread(stores.resolve, owner_of(request), vector_db_id)))

    @router.delete("/v1/vector-dbs/{vector_db_id}", summary="Delete a vector store by its name", response_model=None)
    async def unregister(vector_db_id: str, request: Request) -> Response:
        owner = owner_of(request)
        row = await asyncio.to_thread(stores.resolve, owner, vector_db_id)
        await retrieval.delete(owner, row.id)
        return json_response(None)

    return router
