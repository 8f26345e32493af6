"""/v1/responses: create, get, list, cancel, delete, the items that came in, and how many tokens they have."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from herd.stack.answers import json_response, unless_gone
from herd.stack.guard import Context
from herd.stack.responses.desk import Desk, owner_of
from herd.stack.responses.output import ItemDict, shown
from herd.stack.responses.types import Includable, InputTokensBody, ResponseBody
from herd.stack.sse import EventStream
from herd.store import responses
from herd.store.paging import Cursor

Limit = Annotated[int, Query(ge=1, le=100, description="Objects at most.")]
ObjectId = Annotated[str | None, Query(max_length=256, description="The id of an object of the list.")]
Include = Annotated[list[Includable] | None, Query(max_length=16, description="What else to tell.")]
_MAX_SEQUENCE = 2**53


def items_page(items: list[ItemDict], more: bool, include: Any) -> dict[str, Any]:
    """A page of items as OpenAI tells it."""
    told = [shown(item, include or ()) for item in items]
    ends = {"first_id": told[0]["id"], "last_id": told[-1]["id"]} if told else {"first_id": None, "last_id": None}
    return {"object": "list", "data": told, **ends, "has_more": more}


def response_routes(desk: Desk) -> APIRouter:
    """The routes."""
    router = APIRouter()
    config = desk.service.config

    @router.post("/v1/responses", summary="Answer, with tools, in the background or not", response_model=None)
    async def create(body: ResponseBody, request: Request) -> Response:
        context: Context = request.scope["herd"]
        work = await unless_gone(request, desk.create(body, context))
        if body.stream:
            end = (lambda: None) if body.background else work.cancel
            return EventStream(work.journal.follow(), end, config)
        return json_response(work.asking.response if body.background else await unless_gone(request, work.result()))

    @router.post("/v1/responses/input_tokens", summary="How many tokens the model would read", response_model=None)
    async def input_tokens(body: InputTokensBody, request: Request) -> Response:
        context: Context = request.scope["herd"]
        return json_response({"object": "response.input_tokens", "input_tokens": await desk.count(body, context)})

    @router.get("/v1/responses", summary="Your responses", response_model=None)
    async def listed(
        request: Request,
        limit: Limit = 20,
        after: ObjectId = None,
        before: ObjectId = None,
        order: Literal["asc", "desc"] = "desc",
        model: Annotated[str | None, Query(max_length=512)] = None,
    ) -> Response:
        cursor = Cursor(limit=limit, after=after, before=before, order=order)
        found, more = await desk.page(owner_of(request.scope["herd"]), cursor, model)
        ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {"first_id": None, "last_id": None}
        return json_response({"object": "list", "data": found, **ends, "has_more": more})

    @router.get("/v1/responses/{response_id}", summary="A response, or its events from any of them on", response_model=None)
    async def get(
        response_id: str,
        request: Request,
        stream: Annotated[bool, Query(description="Its events, where it ran in the background.")] = False,
        starting_after: Annotated[int | None, Query(ge=0, le=_MAX_SEQUENCE, description="Events after the one of this number.")] = None,
        include: Include = None,
        include_brackets: Annotated[list[Includable] | None, Query(alias="include[]", max_length=16)] = None,
        include_obfuscation: Annotated[bool, Query(description="Taken, and changes nothing.")] = False,
    ) -> Response:
        owner = owner_of(request.scope["herd"])
        if stream:
            events = await desk.follow(owner, response_id, -1 if starting_after is None else starting_after)
            return EventStream(events, lambda: None, config)
        return json_response(desk.told(await desk.get(owner, response_id), [*(include or ()), *(include_brackets or ())]))

    @router.delete("/v1/responses/{response_id}", summary="Delete a response", response_model=None)
    async def delete(response_id: str, request: Request) -> Response:
        await desk.delete(owner_of(request.scope["herd"]), response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    @router.post("/v1/responses/{response_id}/cancel", summary="End a response in the background", response_model=None)
    async def cancel(response_id: str, request: Request) -> Response:
        return json_response(await desk.cancel(owner_of(request.scope["herd"]), response_id))

    @router.get("/v1/responses/{response_id}/input_items", summary="The items that came in with a response", response_model=None)
    async def input_items(
        response_id: str,
        request: Request,
        limit: Limit = 20,
        after: ObjectId = None,
        before: ObjectId = None,
        order: Literal["asc", "desc"] = "desc",
        include: Include = None,
        include_brackets: Annotated[list[Includable] | None, Query(alias="include[]", max_length=16)] = None,
    ) -> Response:
        cursor = Cursor(limit=limit, after=after, before=before, order=order)
        items, more = await asyncio.to_thread(
            partial(responses.input_items, desk.database, owner_of(request.scope["herd"]), response_id, cursor)
        )
        return json_response(items_page(items, more, [*(include or ()), *(include_brackets or ())]))

    return router
