"""/v1/herd/chats: where the page keeps its chats, if whoever uses it wants them on the server. Each key has chats of its own.

OpenAI's conversations do not fit: they are a list, and the page's chats are trees, whose messages change while an answer is written and
carry what was measured, asked and allowed. So a message goes in and comes out as the page made it; the server reads its id, time and text.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import ConfigDict, Field, StringConstraints
from starlette.responses import Response

from herd.base.errors import NotFoundError
from herd.stack.answers import json_response
from herd.stack.config import ServerConfig
from herd.stack.errors import RequestError
from herd.stack.files import list_of, owner_of
from herd.stack.types import Text, Wire
from herd.store import page_chats
from herd.store.database import Database

Id = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
PathId = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
Moment = Annotated[float, Field(ge=0, le=2.0**53)]
MAX_MESSAGES = 1000
MAX_WORDS = 16
"""Of a search."""


class PageChat(Wire):
    """A chat; what else the page keeps of it stays as it is."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    id: Id = Field(description="The chat's id, as in the path.")
    title: Annotated[str, Field(max_length=1000)] = Field(default="", description="What it is called.")
    changed: Moment = Field(default=0, description="When it was changed last, in milliseconds since 1970.")
    leaf: Id | None = Field(default=None, description="The message that is shown last.")


class PageMessage(Wire):
    """A message of a chat; what else the page keeps of it stays as it is."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    id: Id = Field(description="The message's id.")
    parent: Id | None = Field(default=None, description="The message that it follows; none for the first.")
    made: Moment = Field(default=0, description="When it was made, in milliseconds since 1970.")
    text: Text = Field(default="", description="What it says; chats are searched by it.")


class PageChatBody(Wire):
    """A chat, and those of its messages that are new or have changed."""

    chat: PageChat = Field(description="The chat.")
    messages: Annotated[list[PageMessage], Field(max_length=MAX_MESSAGES)] = Field(
        default=[], description="Messages that are new or have changed; others stay as they are."
    )


def page_chat_routes(database: Database, config: ServerConfig) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.get("/v1/herd/chats", summary="Your chats of the page, without their messages", response_model=None)
    async def listed(
        request: Request,
        after: Annotated[str | None, Query(max_length=64)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        query: Annotated[str, Query(max_length=1000)] = "",
    ) -> Response:
        """In the order in which they came; with `query`, those that hold every word of it. `owner` is your key's name."""
        if len(query.split()) > MAX_WORDS or "\0" in query:
            raise RequestError("usage", f"a search is of up to {MAX_WORDS} words", hint="search for fewer", param="query")
        asked = partial(page_chats.page, database, owner_of(request), after=after, limit=limit, words=query)
        rows, has_more = await asyncio.to_thread(asked)
        return json_response({**list_of([dict(row) for row in rows], has_more), "owner": owner_of(request)})

    @router.get("/v1/herd/chats/{chat_id}", summary="A chat of the page with its messages, on all branches", response_model=None)
    async def one(chat_id: PathId, request: Request) -> Response:
        chat, messages = await asyncio.to_thread(page_chats.get, database, owner_of(request), chat_id)
        return json_response({"chat": chat, "messages": messages})

    @router.put("/v1/herd/chats/{chat_id}", summary="Keep a chat of the page, and some of its messages", response_model=None)
    async def put(chat_id: PathId, body: PageChatBody, request: Request) -> Response:
        """A message that is there already is replaced; none is taken away. Sending the same again changes nothing."""
        if body.chat.id != chat_id:
            message = f"the body has the chat {body.chat.id!r}, the path {chat_id!r}"
            raise RequestError("usage", message, hint="give both the same id", param="chat.id")
        messages: list[dict[str, Any]] = [one.model_dump() for one in body.messages]
        await asyncio.to_thread(
            partial(page_chats.put, database, owner_of(request), body.chat.model_dump(), messages, room_bytes=config.caps.chat_bytes)
        )
        return json_response({"id": chat_id, "object": "chat.kept", "messages": len(messages)})

    @router.delete("/v1/herd/chats/{chat_id}", summary="Delete a chat of the page", response_model=None)
    async def delete(chat_id: PathId, request: Request) -> Response:
        if not await asyncio.to_thread(page_chats.remove, database, owner_of(request), chat_id):
            raise NotFoundError(f"there is no chat {chat_id!r}", hint="GET /v1/herd/chats lists yours")
        return json_response({"id": chat_id, "object": "chat.deleted", "deleted": True})

    @router.delete("/v1/herd/chats", summary="Delete all of your chats of the page", response_model=None)
    async def delete_all(request: Request) -> Response:
        """Those of other keys stay."""
        count = await asyncio.to_thread(page_chats.remove_all, database, owner_of(request))
        return json_response({"object": "chats.deleted", "deleted": count})

    return router
