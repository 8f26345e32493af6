"""/v1/batches: many requests in a file, answered in the background into another. `batch_runner` does the work; here it is asked for."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from herd.stack.answers import json_response, new_id
from herd.stack.batch_runner import BatchRunner, Progress
from herd.stack.errors import RequestError
from herd.stack.files import list_of, owner_of
from herd.stack.storage import BatchRow, Storage
from herd.stack.types import BatchBody
from herd.store.paging import Cursor

_STATES = ("completed", "failed", "expired", "cancelled")
HOUR_S = 3600


def batch_object(row: BatchRow, progress: Progress) -> dict[str, Any]:
    """A batch as OpenAI tells it."""

    def second(moment: float | None) -> int | None:
        return None if moment is None else int(moment)

    ended = {f"{state}_at": second(row.ended) if row.state == state else None for state in _STATES}
    return {
        "id": row.id,
        "object": "batch",
        "endpoint": row.endpoint,
        "errors": None if row.problems is None else {"object": "list", "data": row.problems},
        "input_file_id": row.input_file_id,
        "completion_window": row.window,
        "status": row.state,
        "output_file_id": row.output_file_id if row.ended else None,
        "error_file_id": row.error_file_id if row.ended else None,
        "created_at": int(row.created),
        "in_progress_at": second(row.begun),
        "expires_at": int(row.expires),
        "finalizing_at": second(row.finalizing),
        "cancelling_at": second(row.cancelling),
        **ended,
        "request_counts": {"total": progress.total, "completed": progress.completed, "failed": progress.failed},
        "metadata": row.meta,
    }


def batch_routes(storage: Storage, runner: BatchRunner, *, max_open: int) -> APIRouter:
    """The routes."""
    router = APIRouter()

    def told(row: BatchRow) -> dict[str, Any]:
        return batch_object(row, runner.progress(row))

    @router.post("/v1/batches", summary="Answer every line of a file in the background", response_model=None)
    async def create(body: BatchBody, request: Request) -> Response:
        row = await asyncio.to_thread(_create, storage, body, owner_of(request), max_open)
        runner.take(row)
        return json_response(told(row))

    @router.get("/v1/batches", summary="Your batches, newest first", response_model=None)
    async def batches(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(max_length=100)] = None,
    ) -> Response:
        page = await asyncio.to_thread(storage.batches.page, owner_of(request), Cursor(limit=limit, after=after))
        return json_response(list_of([told(row) for row in page.rows], page.has_more))

    @router.get("/v1/batches/{batch_id}", summary="How far a batch is", response_model=None)
    async def batch(batch_id: str, request: Request) -> Response:
        return json_response(told(await asyncio.to_thread(storage.batches.get, owner_of(request), batch_id)))

    @router.post("/v1/batches/{batch_id}/cancel", summary="End a batch with the answers that it has", response_model=None)
    async def cancel(batch_id: str, request: Request) -> Response:
        row = await asyncio.to_thread(storage.batches.get, owner_of(request), batch_id)
        states = ["validating", "in_progress"]
        row = await asyncio.to_thread(partial(storage.batches.change, row.id, only_from=states, state="cancelling", cancelling=time.time()))
        if row.state != "cancelling":
            raise RequestError("conflict", f"the batch is {row.state}", hint="only one that is at work can be cancelled")
        runner.cancel(row.id)
        return json_response(told(row))

    return router


def _create(storage: Storage, body: BatchBody, owner: str, max_open: int) -> BatchRow:
    file = storage.files.get(owner, body.input_file_id)
    if file.purpose != "batch":
        raise RequestError("usage", f"the file's purpose is {file.purpose!r}", hint="upload it with purpose `batch`", param="input_file_id")
    if len(storage.batches.open(owner)) >= max_open:
        message = f"you have {max_open:,} batches at work, the most is {max_open:,}"
        raise RequestError("rate_limited", message, hint="wait until one is done", retry_after_s=60.0)
    now = time.time()
    row = BatchRow(
        id=new_id("batch_"),
        owner=owner,
        state="validating",
        endpoint=body.endpoint,
        input_file_id=file.id,
        window=body.completion_window,
        created=now,
        expires=now + int(body.completion_window[:-1]) * HOUR_S,
        meta=body.metadata,
        outcome="completed",
        total=0,
        completed=0,
        failed=0,
    )
    storage.batches.add(row)
    return row
