"""/v1/conversations and their items."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from herd.stack.answers import json_response, new_id
from herd.stack.errors import RequestError
from herd.stack.responses.desk import Desk, owner_of
from herd.stack.responses.output import shown
from herd.stack.responses.routes import Include, Limit, ObjectId, items_page
from herd.stack.responses.types import MAX_ITEMS, ConversationBody, ConversationUpdate, Includable, ItemsBody
from herd.store import conversations
from herd.store.paging import Cursor
from herd.store.tables.responses import ConversationRow

Brackets = Annotated[list[Includable] | None, Query(alias="include[]", max_length=16)]


def _told(row: ConversationRow) -> dict[str, Any]:
    return {"id": row.id, "object": "conversation", "created_at": int(row.created), "metadata": row.meta}


def conversation_routes(desk: Desk) -> APIRouter:
    """The routes."""
    router = APIRouter()
    database = desk.database

    def owner(request: Request) -> str:
        return owner_of(request.scope["herd"])

    @router.post("/v1/conversations", summary="Begin a conversation", response_model=None)
    async def create(request: Request, body: ConversationBody | None = None) -> Response:
        body = body or ConversationBody()
        items = await asyncio.to_thread(desk.items_of, owner(request), body.items, "items")
        row = ConversationRow(id=new_id("conv_"), owner=owner(request), created=time.time(), meta=body.metadata or {})
        await asyncio.to_thread(conversations.add, database, row, items)
        return json_response(_told(row))

    @router.get("/v1/conversations/{conversation_id}", summary="A conversation", response_model=None)
    async def get(conversation_id: str, request: Request) -> Response:
        return json_response(_told(await asyncio.to_thread(conversations.get, database, owner(request), conversation_id)))

    @router.post("/v1/conversations/{conversation_id}", summary="Change what is told of a conversation", response_model=None)
    async def update(conversation_id: str, body: ConversationUpdate, request: Request) -> Response:
        changed = partial(conversations.update, database, owner(request), conversation_id, body.metadata or {})
        return json_response(_told(await asyncio.to_thread(changed)))

    @router.delete("/v1/conversations/{conversation_id}", summary="Delete a conversation with its items", response_model=None)
    async def delete(conversation_id: str, request: Request) -> Response:
        await asyncio.to_thread(conversations.delete_conversation, database, owner(request), conversation_id)
        return json_response({"id": conversation_id, "object": "conversation.deleted", "deleted": True})

    @router.post("/v1/conversations/{conversation_id}/items", summary="Add items to a conversation", response_model=None)
    async def add(
        conversation_id: str, body: ItemsBody, request: Request, include: Include = None, include_brackets: Brackets = None
    ) -> Response:
        items = await asyncio.to_thread(desk.items_of, owner(request), body.items, "items")
        num = await asyncio.to_thread(conversations.num_items, database, conversation_id)
        if num + len(items) > MAX_ITEMS:
            message = f"the conversation would have {num + len(items):,} items, the most is {MAX_ITEMS:,}"
            raise RequestError("too_large", message, hint="begin a new one with a summary", param="items")
        added = await asyncio.to_thread(conversations.add_items, database, owner(request), conversation_id, items)
        return json_response(items_page(added, False, [*(include or ()), *(include_brackets or ())]))

    @router.get("/v1/conversations/{conversation_id}/items", summary="Items of a conversation", response_model=None)
    async def listed(
        conversation_id: str,
        request: Request,
        limit: Limit = 20,
        after: ObjectId = None,
        order: Literal["asc", "desc"] = "desc",
        include: Include = None,
        include_brackets: Brackets = None,
    ) -> Response:
        cursor = Cursor(limit=limit, after=after, order=order)
        items, more = await asyncio.to_thread(conversations.page, database, owner(request), conversation_id, cursor)
        return json_response(items_page(items, more, [*(include or ()), *(include_brackets or ())]))

    @router.get("/v1/conversations/{conversation_id}/items/{item_id}", summary="One item of a conversation", response_model=None)
    async def item(
        conversation_id: str, item_id: str, request: Request, include: Include = None, include_brackets: Brackets = None
    ) -> Response:
        found = await asyncio.to_thread(conversations.item, database, owner(request), conversation_id, item_id)
        return json_response(shown(found, [*(include or ()), *(include_brackets or ())]))

    @router.delete("/v1/conversations/{conversation_id}/items/{item_id}", summary="Delete one item", response_model=None)
    async def delete_item(conversation_id: str, item_id: str, request: Request) -> Response:
        row = await asyncio.to_thread(conversations.delete_item, database, owner(request), conversation_id, item_id)
        return json_response(_told(row))

    return router
