"""Where responses are taken, run, found again and ended. Those in the background go on without a client, and over a restart.

After a crash a response in the background that had not begun is begun; one that had is failed, with the reason and with the items that were
whole by then: its tools may have done things that nobody should do twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from herd.base.errors import HerdError
from herd.base.log import get_logger
from herd.inference.port import ChatRequest
from herd.stack.answers import new_id
from herd.stack.errors import RequestError, status_of
from herd.stack.guard import Context
from herd.stack.responses.asking import check_body, choice_of, fitting, functions_of, grammar_of, include_of, instructions_of, params_of
from herd.stack.responses.equipment import Equipment
from herd.stack.responses.items import kept_items, messages_of_items
from herd.stack.responses.journal import replayed, spelled
from herd.stack.responses.output import ItemDict, shown
from herd.stack.responses.plain import Plain, first_request
from herd.stack.responses.response import ENDED, KEPT_S, conversation_id, ended, new_response
from herd.stack.responses.turns import Turns, needs_turn
from herd.stack.responses.types import MAX_ITEMS, Asked, InputTokensBody, ResponseBody
from herd.stack.responses.work import Answer, Asking, Ending, Telling, Work, last_kind
from herd.stack.service import Service
from herd.store import chat_completions, conversations, responses
from herd.store.database import Database
from herd.store.responses import StoredResponse
from herd.store.tables.responses import ResponseRow

log = get_logger(__name__)

MAX_OPEN = 100
"""Responses of one key in the background at once."""
SWEEP_EVERY_S = 3600.0
INTERRUPTED = "the server was stopped while it answered; what was whole by then is in the output. Ask again"
_SECRETS = {"tools": {"__all__": {"authorization", "headers"}}}


def owner_of(context: Context) -> str:
    """Whose request it is; everyone's where there are no keys."""
    return "" if context.key is None else context.key.name


class Desk:
    """The responses of one server."""

    def __init__(self, service: Service, database: Database, equipment: Equipment | None = None) -> None:
        self.service, self.database, self.equipment = service, database, equipment or Equipment()
        self._works: dict[str, Work] = {}
        self._locked: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    # -- the server's start and end

    async def start(self) -> None:
        """Go on with what a former server left, and begin to throw away what is too old."""
        for row, items in await asyncio.to_thread(responses.open_responses, self.database):
            try:
                await self._take_up(row, items)
            except HerdError as error:
                await self._give_up(row, f"{INTERRUPTED} ({error.message})")
        self._sweeper = asyncio.create_task(self._sweep(), name="responses-sweep")

    async def stop(self) -> None:
        """End what runs: those in the background are failed, with the reason."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        reason = RequestError("draining", INTERRUPTED)
        for work in list(self._works.values()):
            work.cancel(Ending(state="failed", error=reason))
        await asyncio.gather(*(work.wait() for work in list(self._works.values())))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _sweep(self) -> None:
        while True:
            with contextlib.suppress(HerdError):
                num = await asyncio.to_thread(responses.expire, self.database, time.time())
                await asyncio.to_thread(chat_completions.expire, self.database, time.time())
                if num:
                    log.info("%d responses were kept for their time and are gone", num)
            await asyncio.sleep(SWEEP_EVERY_S)

    async def _take_up(self, row: ResponseRow, items: list[ItemDict]) -> None:
        if row.state != "queued" or row.body is None:
            await self._give_up(row, INTERRUPTED)
            return
        key = next((key for key in self.service.config.keys if key.name == row.owner), None)
        if key is None and row.owner:
            await self._give_up(row, "the key that asked for it is none of this server's any more")
            return
        body = ResponseBody.model_validate_json(json.dumps(row.body))
        context = Context(request_id=new_id("req-"), key=key)
        asking = await self._asking(body, context, items=items, response=row.data)
        self._begin(
            asking,
            Work(asking, self._background(await self._answer_of(asking)), self._end, save_events=self._save, begin=self._begun(row.id)),
        )

    async def _give_up(self, row: ResponseRow, reason: str) -> None:
        """Fail what was interrupted, with the items that its events tell as whole."""
        kept = await asyncio.to_thread(responses.events, self.database, row.id)
        output: list[ItemDict] = []
        for event in kept:
            told = json.loads(event.partition(b"\ndata: ")[2])
            if told["type"] == "response.output_item.done":
                output.append(told["item"])
        data = ended(row.data, "failed", output, error={"code": "server_error", "message": reason})
        await asyncio.to_thread(responses.finish, self.database, row.id, _without_output(data), output)
        log.warning("response %s is failed: %s", row.id, reason)

    # -- taking one

    async def create(self, body: ResponseBody, context: Context) -> Work:
        """Take a response. What returns runs, or, in the background, is kept and will. Raises HerdError for what cannot be answered."""
        asking = await self._asking(body, context)
        if body.background:
            return await self._queue(asking)
        named = conversation_id(body)
        if named is not None:
            self._lock(asking.owner, named)
        try:
            answer = await self._answer_of(asking)
            if isinstance(answer, Plain):
                # So that what cannot be answered is refused, and not told of as an event.
                answer = Plain(self.service, await self.service.answer(first_request(asking), context, body.model))
        except BaseException:
            self._unlock(asking)
            raise
        return self._begin(asking, Work(asking, answer, self._keep))

    def _begin(self, asking: Asking, work: Work) -> Work:
        self._works[work.id] = work
        work.start()
        task = asyncio.create_task(self._watch(asking, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return work

    async def _watch(self, asking: Asking, work: Work) -> None:
        await work.wait()
        self._works.pop(work.id, None)
        self._unlock(asking)

    def _lock(self, owner: str, named: str) -> None:
        """Two answers at once would each not know of the other."""
        if (lock := f"{owner}\0{named}") in self._locked:
            raise RequestError(
                "conflict", f"another response is at work in the conversation {named!r:.100}", hint="wait for its end", param="conversation"
            )
        self._locked.add(lock)

    def _unlock(self, asking: Asking) -> None:
        self._locked.discard(f"{asking.owner}\0{conversation_id(asking.body)}")

    async def _queue(self, asking: Asking) -> Work:
        num = await asyncio.to_thread(responses.num_open, self.database, asking.owner)
        if num >= MAX_OPEN:
            message = f"{num:,} of your responses are at work in the background, the most is {MAX_OPEN:,}"
            raise RequestError("rate_limited", message, hint="wait until one is done", retry_after_s=5.0)
        named = conversation_id(asking.body)
        if named is not None:
            self._lock(asking.owner, named)
        body = json.loads(asking.body.model_dump_json(exclude_none=True, by_alias=True, exclude=_SECRETS))  # pyright: ignore[reportArgumentType]
        if any(getattr(tool, "authorization", None) or getattr(tool, "headers", None) for tool in asking.body.tools or ()):
            body = None  # what it needs is not kept, so it cannot be begun again
        row = self._row(asking, asking.response, body)
        try:
            await asyncio.to_thread(responses.add, self.database, row, asking.items)
        except BaseException:
            self._unlock(asking)
            raise
        answer = self._background(await self._answer_of(asking))
        return self._begin(asking, Work(asking, answer, self._end, save_events=self._save, begin=self._begun(row.id)))

    def _begun(self, response_id: str) -> Any:
        async def begin(response: dict[str, Any]) -> bool:
            return await asyncio.to_thread(responses.begin, self.database, response_id, _without_output(response))

        return begin

    def _background(self, answer: Answer) -> Answer:
        """Wait where a client would be told to ask again."""

        async def patient(asking: Asking, telling: Telling) -> Ending:
            while True:
                try:
                    return await answer(asking, telling)
                except RequestError as error:
                    if status_of(error) not in (429, 503) or telling.output.items or error.code == "draining":
                        raise
                    await asyncio.sleep(min(30.0, error.retry_after_s or 1.0))

        return patient

    async def _answer_of(self, asking: Asking) -> Answer:
        _, _, tools = choice_of(asking.body)
        if not needs_turn(asking, tools):
            return Plain(self.service)
        return Turns(self.service, await self.equipment.outfitter(), tools, shields=self.equipment.shields)

    # -- what is asked of the model

    async def _asking(
        self, body: ResponseBody, context: Context, *, items: list[ItemDict] | None = None, response: dict[str, Any] | None = None
    ) -> Asking:
        check_body(body, self.service.config.caps)
        owner = owner_of(context)
        if items is None:
            items = await asyncio.to_thread(self.items_of, owner, body.input)
        history = await asyncio.to_thread(self._history, owner, body)
        request = self._request(body, context, [*history, *items])
        request = replace(request, params=params_of(body, stop_at=body.max_output_tokens))
        served = self.service.find_for(body.model, context)
        if served.remote is None:
            request = await fitting(request, self._count, self.service.engine.context, auto=body.truncation == "auto")
        state = "queued" if body.background else "in_progress"
        return Asking(
            body=body,
            owner=owner,
            context=context,
            response=response or new_response(body, served.id, state=state),
            items=items,
            history=history,
            request=request,
            grammar=grammar_of(body),
            include=include_of(body),
        )

    def items_of(self, owner: str, given: Any, param: str = "input") -> list[ItemDict]:
        """Items as they are kept. Raises RequestError by place."""

        def find(item_id: str) -> ItemDict | None:
            return responses.find_item(self.database, owner, item_id) or conversations.find_item(self.database, owner, item_id)

        return kept_items(given, find, param=param)

    def _history(self, owner: str, body: Asked) -> list[ItemDict]:
        named = conversation_id(body)
        if body.previous_response_id is not None:
            return responses.history(self.database, owner, body.previous_response_id, max_items=MAX_ITEMS)
        return [] if named is None else conversations.items(self.database, owner, named)

    def _request(self, body: Asked, context: Context, items: Sequence[ItemDict]) -> ChatRequest:
        choice, named, tools = choice_of(body)
        functions = functions_of(tools)
        messages = messages_of_items(items, instructions_of(body))
        if not messages:
            raise RequestError("usage", "there is no input", hint="give a text or items", param="input")
        name = named.name if named is not None and named.type == "function" else None
        return ChatRequest(
            messages=tuple(messages),
            tools=functions,
            tool_choice=choice if functions or choice != "required" else "auto",
            tool_name=name,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            caller=self.service.caller(context, priority=None, salt=None),
        )

    async def _count(self, request: ChatRequest) -> int:
        return len((await self.service.model.prepare(request)).tokens.prompt)

    async def count(self, body: InputTokensBody, context: Context) -> int:
        """Tokens that the model would read."""
        check_body(body, self.service.config.caps)
        self.service.find_local(body.model, context, "how many tokens it would read")
        owner = owner_of(context)
        items = await asyncio.to_thread(self.items_of, owner, body.input)
        history = await asyncio.to_thread(self._history, owner, body)
        return await self._count(self._request(body, context, [*history, *items]))

    # -- keeping

    def _row(self, asking: Asking, response: dict[str, Any], body: dict[str, Any] | None) -> ResponseRow:
        now = time.time()
        return ResponseRow(
            id=response["id"],
            owner=asking.owner,
            created=now,
            expires=now + KEPT_S,
            state=response["status"],
            model=response["model"],
            previous_id=asking.body.previous_response_id,
            conversation_id=conversation_id(asking.body),
            data=_without_output(response),
            body=body,
        )

    async def _keep(self, asking: Asking, response: dict[str, Any], output: list[ItemDict]) -> None:
        """A response that a client waited for has ended."""
        named = conversation_id(asking.body)
        if asking.body.store is not False:
            row = self._row(asking, response, None)
            await asyncio.to_thread(responses.add, self.database, row, asking.items, output)
        elif named is not None:
            await asyncio.to_thread(conversations.add_items, self.database, asking.owner, named, [*asking.items, *output])

    async def _end(self, asking: Asking, response: dict[str, Any], output: list[ItemDict]) -> None:
        """A response in the background has ended."""
        await asyncio.to_thread(responses.finish, self.database, response["id"], _without_output(response), output)

    async def _save(self, response_id: str, first: int, events: list[bytes]) -> None:
        await asyncio.to_thread(responses.save_events, self.database, response_id, first, events)

    # -- finding again

    def told(self, stored: StoredResponse, include: Sequence[str] = ()) -> dict[str, Any]:
        """A kept response as it is told; one that is at work as far as it is."""
        work = self._works.get(stored.row.id)
        if work is not None:
            return work.now()
        return {**stored.row.data, "output": [shown(item, include) for item in stored.output]}

    async def get(self, owner: str, response_id: str) -> StoredResponse:
        """A response of an owner. Raises NotFoundError."""
        return await asyncio.to_thread(responses.get, self.database, owner, response_id)

    async def follow(self, owner: str, response_id: str, after: int) -> AsyncGenerator[bytes, None]:
        """Its events with greater numbers. Raises NotFoundError, and RequestError where its events are not kept."""
        stored = await self.get(owner, response_id)
        work = self._works.get(response_id)
        if work is not None:
            return work.journal.follow(after)
        if not stored.row.data.get("background"):
            raise RequestError(
                "usage", "the events of this response are not kept", hint="they are where it ran in the background", param="stream"
            )
        events = await asyncio.to_thread(responses.events, self.database, response_id)
        kind = last_kind(stored.row.state)
        if stored.row.state in ENDED and not (events and events[-1].startswith(b"event: " + kind.encode() + b"\n")):
            # The crash came between the end and its event, or the response was failed by the start after it.
            number = max(len(events), after + 1)
            events.append(spelled({"type": kind, "sequence_number": number, "response": self.told(stored)}))
            return replayed(events[min(after + 1, len(events) - 1) :] if after >= 0 else events)
        return replayed(events[max(0, after + 1) :])

    async def cancel(self, owner: str, response_id: str) -> dict[str, Any]:
        """End a response in the background. One that has ended stays as it is."""
        stored = await self.get(owner, response_id)
        if not stored.row.data.get("background"):
            raise RequestError("conflict", "only a response in the background can be cancelled", hint="close the stream of this one")
        work = self._works.get(response_id)
        if work is not None:
            work.cancel()
            await work.wait()
        return self.told(await self.get(owner, response_id))

    async def delete(self, owner: str, response_id: str) -> None:
        """Forget a response; end it where it is at work."""
        await self.get(owner, response_id)
        work = self._works.get(response_id)
        if work is not None:
            work.cancel()
            await work.wait()
        await asyncio.to_thread(responses.delete_response, self.database, owner, response_id)

    async def page(self, owner: str, cursor: Any, model: str | None) -> tuple[list[dict[str, Any]], bool]:
        """Responses of an owner, as they are told."""
        found, more = await asyncio.to_thread(partial(responses.page, self.database, owner, cursor, model=model))
        return [self.told(stored) for stored in found], more


def _without_output(response: dict[str, Any]) -> dict[str, Any]:
    return {**response, "output": []}
