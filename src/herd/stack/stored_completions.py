"""Chat completions that a client asked to be kept (`store: true`): found again, listed, labelled, deleted. As OpenAI's client does it.

An object is the answer as it was given, with its metadata, and with the messages that came in for clients of the Llama Stack, which read
them there. Another key's does not exist.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from herd.base.errors import NotFoundError
from herd.stack.answers import json_response
from herd.stack.errors import RequestError
from herd.stack.files import list_of, owner_of
from herd.stack.guard import Context
from herd.stack.types import ChatBody, StoredCompletionBody
from herd.store import chat_completions
from herd.store.database import Database
from herd.store.paging import Cursor
from herd.store.tables.chat_completions import ChatCompletionRow

KEPT_S = 30 * 24 * 3600.0
"""As long as a response."""
MAX_FILTERS = 16
Limit = Annotated[int, Query(ge=1, le=100)]
ObjectId = Annotated[str | None, Query(max_length=256)]
Order = Literal["asc", "desc"]


def refuse_unless_kept(database: Database | None, body: ChatBody) -> None:
    """Raises RequestError where a completion is to be kept and cannot be."""
    if body.store and database is None:
        raise RequestError("conflict", "this server keeps no state", hint="leave store out, or start it with a --state-dir", param="store")


async def keep(database: Database | None, body: ChatBody, context: Context, data: dict[str, Any]) -> None:
    """Keep an answer, if its body asks for that."""
    if not body.store or database is None:
        return
    now = time.time()
    row = ChatCompletionRow(
        id=data["id"],
        owner="" if context.key is None else context.key.name,
        created=now,
        expires=now + KEPT_S,
        model=data["model"],
        meta=body.metadata or {},
        data=data,
        messages=[message.model_dump(exclude_none=True) for message in body.messages],
    )
    await asyncio.to_thread(chat_completions.add, database, row)


def stored_completion_routes(database: Database) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.get("/v1/chat/completions", summary="Your stored chat completions", response_model=None)
    async def listed(
        request: Request,
        after: ObjectId = None,
        limit: Limit = 20,
        order: Order = "asc",
        model: Annotated[str | None, Query(max_length=512)] = None,
    ) -> Response:
        asked = partial(chat_completions.page, model=model, meta=_metadata_of(request))
        page = await asyncio.to_thread(asked, database, owner_of(request), Cursor(limit=limit, after=after, order=order))
        return json_response(list_of([_told(row) for row in page.rows], page.has_more))

    @router.get("/v1/chat/completions/{completion_id}", summary="A stored chat completion", response_model=None)
    async def one(completion_id: str, request: Request) -> Response:
        return json_response(_told(await asyncio.to_thread(chat_completions.get, database, owner_of(request), completion_id)))

    @router.post("/v1/chat/completions/{completion_id}", summary="Change a stored chat completion's metadata", response_model=None)
    async def update(completion_id: str, body: StoredCompletionBody, request: Request) -> Response:
        changed = partial(chat_completions.update, database, owner_of(request), completion_id, body.metadata or {})
        return json_response(_told(await asyncio.to_thread(changed)))

    @router.delete("/v1/chat/completions/{completion_id}", summary="Delete a stored chat completion", response_model=None)
    async def delete(completion_id: str, request: Request) -> Response:
        await asyncio.to_thread(chat_completions.remove, database, owner_of(request), completion_id)
        return json_response({"id": completion_id, "object": "chat.completion.deleted", "deleted": True})

    @router.get("/v1/chat/completions/{completion_id}/messages", summary="What came in for a stored chat completion", response_model=None)
    async def messages(completion_id: str, request: Request, after: ObjectId = None, limit: Limit = 20, order: Order = "asc") -> Response:
        row = await asyncio.to_thread(chat_completions.get, database, owner_of(request), completion_id)
        found = _messages(row)
        if order == "desc":
            found.reverse()
        start = _place_after(found, after)
        return json_response(list_of(found[start : start + limit], start + limit < len(found)))

    return router


def _metadata_of(request: Request) -> dict[str, str]:
    """The filter of a list, which clients write as metadata[KEY]=VALUE. Raises RequestError."""
    found = {name[9:-1]: value for name, value in request.query_params.items() if name.startswith("metadata[") and name.endswith("]")}
    if len(found) > MAX_FILTERS or any(len(text) > 512 for pair in found.items() for text in pair):
        raise RequestError("usage", "metadata are up to 16 short texts", hint="filter by fewer", param="metadata")
    return found


def _told(row: ChatCompletionRow) -> dict[str, Any]:
    return {**row.data, "metadata": row.meta, "input_messages": row.messages}


def _messages(row: ChatCompletionRow) -> list[dict[str, Any]]:
    """The messages, each with an id of its own."""
    found: list[dict[str, Any]] = []
    for place, message in enumerate(row.messages):
        content = message.get("content")
        parts = content if isinstance(content, list) else None
        text = content if parts is None else "".join(part.get("text", "") for part in parts)
        found.append({**message, "id": f"{row.id}-{place}", "content": text, "content_parts": parts})
    return found


def _place_after(found: list[dict[str, Any]], after: str | None) -> int:
    if after is None:
        return 0
    place = next((place for place, message in enumerate(found) if message["id"] == after), None)
    if place is None:
        raise NotFoundError(f"there is no message {after!r:.100} of this completion", hint="leave `after` out to begin")
    return place + 1
