"""/v1/files: what batches and vector stores read, and what batches write. Uploaded as a form, listed, given back, deleted; by key."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import FileResponse, Response, StreamingResponse

from herd.stack.answers import json_response, new_id
from herd.stack.config import ServerConfig
from herd.stack.errors import RequestError
from herd.stack.guard import Context
from herd.stack.storage import FileRow, Storage
from herd.stack.uploads import read_upload
from herd.store.paging import Cursor

FILE_ID = "file-"
PURPOSES = ("assistants", "batch", "user_data", "fine-tune", "evals", "vision")
"""What a file may be for, as OpenAI names it. Here it only tells batches' files from the others."""
LEAST_LIFE_S, LONGEST_LIFE_S = 3600, 30 * 24 * 3600
_EXPIRY = ("expires_after[anchor]", "expires_after[seconds]")
_FIELDS = frozenset({"purpose", *_EXPIRY})


def owner_of(request: Request) -> str:
    """Whose request it is; everyone's where there are no keys."""
    context: Context = request.scope["herd"]
    return "" if context.key is None else context.key.name


def file_object(row: FileRow) -> dict[str, Any]:
    """A file as OpenAI tells it."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.size_bytes,
        "created_at": int(row.created),
        "expires_at": None if row.expires is None else int(row.expires),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


def list_of(rows: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page as OpenAI tells it."""
    ends = {"first_id": rows[0]["id"], "last_id": rows[-1]["id"]} if rows else {"first_id": None, "last_id": None}
    return {"object": "list", "data": rows, **ends, "has_more": has_more}


def page_of(rows: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A page of a list; one row more than `limit` was asked for, to know whether there is another page."""
    return list_of(rows[:limit], len(rows) > limit)


def file_routes(storage: Storage, config: ServerConfig) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post("/v1/files", summary="Upload a file: a form with `file` and `purpose`, and how long it is kept", response_model=None)
    async def upload(request: Request) -> Response:
        return json_response(file_object(await _keep(request, storage, config)))

    @router.get("/v1/files", summary="Your files", response_model=None)
    async def files(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        after: Annotated[str | None, Query(max_length=100)] = None,
        before: Annotated[str | None, Query(max_length=100)] = None,
        order: Literal["asc", "desc"] = "desc",
        purpose: Annotated[str | None, Query(max_length=100)] = None,
    ) -> Response:
        cursor = Cursor(limit=limit, after=after, before=before, order=order)
        page = await asyncio.to_thread(partial(storage.files.page, owner_of(request), cursor, purpose=purpose))
        return json_response(list_of([file_object(row) for row in page.rows], page.has_more))

    @router.get("/v1/files/{file_id}", summary="One file's facts", response_model=None)
    async def file(file_id: str, request: Request) -> Response:
        return json_response(file_object(await asyncio.to_thread(storage.files.get, owner_of(request), file_id)))

    @router.get("/v1/files/{file_id}/content", summary="A file's bytes", response_model=None)
    async def content(file_id: str, request: Request) -> Response:
        row = await asyncio.to_thread(storage.files.get, owner_of(request), file_id)
        return await file_response(storage, row)

    @router.delete("/v1/files/{file_id}", summary="Delete a file", response_model=None)
    async def delete(file_id: str, request: Request) -> Response:
        await asyncio.to_thread(storage.files.delete, owner_of(request), file_id)
        return json_response({"id": file_id, "object": "file", "deleted": True})

    return router


async def file_response(storage: Storage, row: FileRow) -> Response:
    """A file's bytes. Never shown by a browser as a page of this server, whatever is in it."""
    headers = {"content-security-policy": "sandbox", "cache-control": "no-store"}
    name = f"{row.id}.jsonl" if row.purpose in ("batch", "batch_output") else row.id
    path = storage.state.blobs.path(row.id)
    if path is not None and path.is_file():
        return FileResponse(path, media_type="application/octet-stream", filename=name, headers=headers)
    file = await asyncio.to_thread(storage.open_file, row.id)
    told = {**headers, "content-length": str(row.size_bytes), "content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(_pieces(file), media_type="application/octet-stream", headers=told)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(2**18):
            yield piece


async def _keep(request: Request, storage: Storage, config: ServerConfig) -> FileRow:
    """Write an upload to disk, then its row: a file without a row is no file, and is removed at the next start."""
    owner = owner_of(request)
    room = config.caps.stored_bytes - await asyncio.to_thread(storage.files.stored_bytes, owner)
    if room <= 0:
        message = f"your files have {config.caps.stored_bytes - room:,} bytes, this server keeps {config.caps.stored_bytes:,}"
        raise RequestError("too_large", message, hint="delete some", param="file")
    file_id = new_id(FILE_ID)
    staged = storage.staged_path(file_id)
    upload = await read_upload(request, staged, max_bytes=min(config.caps.file_bytes, room), timeout_s=config.body_timeout_s)
    try:
        purpose, lives_s = _check(upload.fields)
        now = time.time()
        row = FileRow(
            id=file_id,
            owner=owner,
            filename=upload.filename or "",
            purpose=purpose,
            size_bytes=upload.size_bytes,
            created=now,
            expires=None if lives_s is None else now + lives_s,
            digest=await asyncio.to_thread(digest_of_file, staged),
        )
        return await asyncio.to_thread(storage.files.keep, row, staged)
    finally:
        staged.unlink(missing_ok=True)


def digest_of_file(path: Path) -> str:
    """Its SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(fields: dict[str, str]) -> tuple[str, int | None]:
    """The purpose of an upload, and the seconds that it lives. Raises RequestError."""
    purpose = fields.get("purpose")
    if purpose not in PURPOSES:
        told = "missing" if purpose is None else f"{purpose!r:.100}"
        raise RequestError("usage", f"purpose is {told}", hint="choose one of " + ", ".join(PURPOSES), param="purpose")
    unknown = next((name for name in fields if name not in _FIELDS), None)
    if unknown is not None:
        raise RequestError("usage", f"there is no field {unknown!r:.100}", hint="send `file` and `purpose`", param=unknown[:100])
    anchor, seconds = (fields.get(name) for name in _EXPIRY)
    if anchor is None and seconds is None:
        return purpose, None
    if anchor != "created_at":
        raise RequestError("usage", f"{_EXPIRY[0]} is {anchor!r:.100}", hint="it is always created_at", param=_EXPIRY[0])
    if seconds is None or not (seconds.isascii() and seconds.isdecimal() and LEAST_LIFE_S <= int(seconds[:12]) <= LONGEST_LIFE_S):
        limits = f"{LEAST_LIFE_S:,} to {LONGEST_LIFE_S:,} seconds"
        raise RequestError("usage", f"{_EXPIRY[1]} is {seconds!r:.100}", hint=f"give {limits}", param=_EXPIRY[1])
    return purpose, int(seconds)
