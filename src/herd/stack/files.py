"""/v1/files: what batches read and write. Uploaded as a form, listed, told, given back, deleted; each key has files of its own."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import FileResponse, Response

from herd.stack.answers import json_response, new_id
from herd.stack.config import ServerConfig
from herd.stack.errors import RequestError
from herd.stack.guard import Context
from herd.stack.storage import FileRow, Storage
from herd.stack.uploads import read_upload

FILE_ID = "file-"


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
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
    }


def page_of(rows: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A page of a list; one row more than `limit` was asked for, to know whether there is another page."""
    kept = rows[:limit]
    ends = {"first_id": kept[0]["id"], "last_id": kept[-1]["id"]} if kept else {"first_id": None, "last_id": None}
    return {"object": "list", "data": kept, **ends, "has_more": len(rows) > limit}


def file_routes(storage: Storage, config: ServerConfig) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post("/v1/files", summary="Upload a file for a batch: a form with `file` and `purpose`", response_model=None)
    async def upload(request: Request) -> Response:
        return json_response(file_object(await _keep(request, storage, config)))

    @router.get("/v1/files", summary="Your files", response_model=None)
    async def files(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        after: Annotated[str | None, Query(max_length=100)] = None,
        order: Literal["asc", "desc"] = "desc",
        purpose: Annotated[str | None, Query(max_length=100)] = None,
    ) -> Response:
        owner = owner_of(request)
        rows = await asyncio.to_thread(storage.files, owner, limit=limit + 1, after=after, newest_first=order == "desc", purpose=purpose)
        return json_response(page_of([file_object(row) for row in rows], limit))

    @router.get("/v1/files/{file_id}", summary="One file's facts", response_model=None)
    async def file(file_id: str, request: Request) -> Response:
        return json_response(file_object(await asyncio.to_thread(storage.file, owner_of(request), file_id)))

    @router.get("/v1/files/{file_id}/content", summary="A file's bytes", response_model=None)
    async def content(file_id: str, request: Request) -> Response:
        row = await asyncio.to_thread(storage.file, owner_of(request), file_id)
        if not storage.file_path(row.id).is_file():
            raise RequestError("not_found", f"the bytes of {file_id!r} are gone from the server's disk", hint="upload it again")
        # Never shown by a browser as a page of this server, whatever is in it.
        return FileResponse(
            storage.file_path(row.id),
            media_type="application/octet-stream",
            filename=f"{row.id}.jsonl",
            headers={"content-security-policy": "sandbox", "cache-control": "no-store"},
        )

    @router.delete("/v1/files/{file_id}", summary="Delete a file", response_model=None)
    async def delete(file_id: str, request: Request) -> Response:
        await asyncio.to_thread(storage.delete_file, owner_of(request), file_id)
        return json_response({"id": file_id, "object": "file", "deleted": True})

    return router


async def _keep(request: Request, storage: Storage, config: ServerConfig) -> FileRow:
    """Write an upload to disk, then its row: a file without a row is no file, and is removed at the next start."""
    owner = owner_of(request)
    room = config.caps.stored_bytes - await asyncio.to_thread(storage.stored_bytes, owner)
    if room <= 0:
        message = f"your files have {config.caps.stored_bytes - room:,} bytes, this server keeps {config.caps.stored_bytes:,}"
        raise RequestError("too_large", message, hint="delete some", param="file")
    file_id = new_id(FILE_ID)
    target = storage.file_path(file_id)
    partial = target.with_suffix(".part")
    upload = await read_upload(request, partial, max_bytes=min(config.caps.file_bytes, room), timeout_s=config.body_timeout_s)
    try:
        _check(upload.fields)
        row = FileRow(
            id=file_id,
            owner=owner,
            filename=upload.filename or "",
            purpose=upload.fields["purpose"],
            size_bytes=upload.size_bytes,
            created=time.time(),
        )
        partial.rename(target)
        await asyncio.to_thread(storage.add, row)
    except BaseException:
        partial.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        raise
    return row


def _check(fields: dict[str, str]) -> None:
    if fields.get("purpose") != "batch":
        told = "missing" if "purpose" not in fields else f"{fields['purpose']!r:.100}"
        raise RequestError("usage", f"purpose is {told}", hint='files are for batches: purpose "batch"', param="purpose")
    unknown = next((name for name in fields if name != "purpose"), None)
    if unknown is not None:
        raise RequestError("usage", f"there is no field {unknown!r:.100}", hint="send `file` and `purpose`", param=unknown[:100])
