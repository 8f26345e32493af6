"""/v1/vector_stores/.../files and /file_batches: what is in a store, put there to be indexed in the background."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from herd.stack.answers import json_response
from herd.stack.errors import RequestError
from herd.stack.files import list_of, owner_of
from herd.stack.vector_stores import Counts, Cut, told_counts
from herd.stack.vector_types import ChunkingStrategy, FileBatchBody, VectorFileBody, VectorFileChange
from herd.store.paging import Cursor
from herd.store.tables.vector_stores import FileBatchRow, VectorStoreFileRow
from herd.store.vector_stores import NewFile
from herd.tools.retrieval.service import Retrieval

Status = Annotated[Literal["in_progress", "completed", "failed", "cancelled"] | None, Query(alias="filter")]
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]
_FILES = "/v1/vector_stores/{vector_store_id}/files"
_BATCHES = "/v1/vector_stores/{vector_store_id}/file_batches"


def file_object(row: VectorStoreFileRow) -> dict[str, Any]:
    """A file in a store as OpenAI tells it."""
    return {
        "id": row.id,
        "object": "vector_store.file",
        "usage_bytes": row.usage_bytes,
        "created_at": int(row.created),
        "vector_store_id": row.store_id,
        "status": row.status,
        "last_error": None if row.error_code is None else {"code": row.error_code, "message": row.error_message or ""},
        "chunking_strategy": row.chunking,
        "attributes": row.attributes or {},
    }


def batch_object(row: FileBatchRow, counts: Counts) -> dict[str, Any]:
    """A batch of files as OpenAI tells it."""
    status = "cancelled" if row.cancelled else "in_progress" if counts["in_progress"] else "completed"
    if status == "completed" and counts["total"] and counts["failed"] == counts["total"]:
        status = "failed"
    return {
        "id": row.id,
        "object": "vector_store.files_batch",
        "created_at": int(row.created),
        "vector_store_id": row.store_id,
        "status": status,
        "file_counts": told_counts(counts),
    }


def _to_index(retrieval: Retrieval, file_id: str, attributes: Any, strategy: ChunkingStrategy | None) -> NewFile:
    auto = retrieval.auto_chunking
    chunking = auto if strategy is None else strategy.chosen(auto)
    return NewFile(file_id=file_id, attributes=attributes, chunking=chunking.to_dict())


def vector_file_routes(retrieval: Retrieval) -> APIRouter:
    """The routes."""
    router = APIRouter()
    stores = retrieval.stores

    @router.post(_FILES, summary="Put a file into a vector store", response_model=None)
    async def add(vector_store_id: str, body: VectorFileBody, request: Request) -> Response:
        file = _to_index(retrieval, body.file_id, body.attributes, body.chunking_strategy)
        (row,) = await retrieval.add_files(owner_of(request), vector_store_id, [file])
        return json_response(file_object(row))

    @router.get(_FILES, summary="The files in a vector store", response_model=None)
    async def page(
        vector_store_id: str,
        request: Request,
        limit: Limit = 20,
        after: Cut = None,
        before: Cut = None,
        order: Order = "desc",
        status: Status = None,
    ) -> Response:
        cursor = Cursor(limit=limit, after=after, before=before, order=order)
        found = await asyncio.to_thread(partial(stores.files, owner_of(request), vector_store_id, cursor, status=status))
        return json_response(list_of([file_object(row) for row in found.rows], found.has_more))

    @router.get(_FILES + "/{file_id}", summary="How far a file's indexing is", response_model=None)
    async def get(vector_store_id: str, file_id: str, request: Request) -> Response:
        return json_response(file_object(await asyncio.to_thread(stores.file, owner_of(request), vector_store_id, file_id)))

    @router.post(_FILES + "/{file_id}", summary="Change what filters see of a file", response_model=None)
    async def change(vector_store_id: str, file_id: str, body: VectorFileChange, request: Request) -> Response:
        row = await asyncio.to_thread(stores.set_attributes, owner_of(request), vector_store_id, file_id, body.attributes)
        return json_response(file_object(row))

    @router.delete(_FILES + "/{file_id}", summary="Take a file out of a vector store", response_model=None)
    async def remove(vector_store_id: str, file_id: str, request: Request) -> Response:
        await asyncio.to_thread(stores.remove_file, owner_of(request), vector_store_id, file_id)
        return json_response({"id": file_id, "object": "vector_store.file.deleted", "deleted": True})

    @router.get(_FILES + "/{file_id}/content", summary="The passages of a file in a vector store", response_model=None)
    async def content(vector_store_id: str, file_id: str, request: Request) -> Response:
        owner = owner_of(request)
        row = await asyncio.to_thread(stores.file, owner, vector_store_id, file_id)
        file = await asyncio.to_thread(retrieval.files.get, owner, file_id)
        chunks = await asyncio.to_thread(stores.chunks, owner, vector_store_id, file_id)
        return json_response(
            {
                "object": "vector_store.file_content.page",
                "file_id": file_id,
                "filename": file.filename,
                "attributes": row.attributes or {},
                "data": [{"type": "text", "text": chunk.text} for chunk in chunks],
                "has_more": False,
                "next_page": None,
            }
        )

    return router


def file_batch_routes(retrieval: Retrieval) -> APIRouter:
    """The routes of many files at once."""
    router = APIRouter()
    stores = retrieval.stores

    @router.post(_BATCHES, summary="Put many files into a vector store", response_model=None)
    async def add_batch(vector_store_id: str, body: FileBatchBody, request: Request) -> Response:
        if (body.file_ids is None) == (body.files is None):
            raise RequestError("usage", "the batch has `file_ids` and `files`, or neither", hint="give one of them", param="file_ids")
        ids = body.file_ids or ()
        files = [_to_index(retrieval, one, body.attributes, body.chunking_strategy) for one in ids]
        files += [
            _to_index(retrieval, one.file_id, one.attributes, one.chunking_strategy or body.chunking_strategy) for one in body.files or ()
        ]
        unique = list({file.file_id: file for file in files}.values())
        owner = owner_of(request)
        rows = await retrieval.add_files(owner, vector_store_id, unique, as_batch=True)
        return await told(owner, vector_store_id, rows[0].batch_id or "")

    async def told(owner: str, store_id: str, batch_id: str) -> Response:
        return json_response(batch_object(*await asyncio.to_thread(stores.batch, owner, store_id, batch_id)))

    @router.get(_BATCHES + "/{batch_id}", summary="How far a batch of files is", response_model=None)
    async def get_batch(vector_store_id: str, batch_id: str, request: Request) -> Response:
        return await told(owner_of(request), vector_store_id, batch_id)

    @router.post(_BATCHES + "/{batch_id}/cancel", summary="Index no more files of a batch", response_model=None)
    async def cancel_batch(vector_store_id: str, batch_id: str, request: Request) -> Response:
        owner = owner_of(request)
        await asyncio.to_thread(stores.cancel_batch, owner, vector_store_id, batch_id)
        return await told(owner, vector_store_id, batch_id)

    @router.get(_BATCHES + "/{batch_id}/files", summary="The files of a batch", response_model=None)
    async def batch_files(
        vector_store_id: str,
        batch_id: str,
        request: Request,
        limit: Limit = 20,
        after: Cut = None,
        before: Cut = None,
        order: Order = "desc",
        status: Status = None,
    ) -> Response:
        owner = owner_of(request)
        await asyncio.to_thread(stores.batch, owner, vector_store_id, batch_id)
        cursor = Cursor(limit=limit, after=after, before=before, order=order)
        found = await asyncio.to_thread(partial(stores.files, owner, vector_store_id, cursor, status=status, batch_id=batch_id))
        return json_response(list_of([file_object(row) for row in found.rows], found.has_more))

    return router
