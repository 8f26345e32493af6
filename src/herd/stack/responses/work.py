"""One response at work: its journal, its output and its end, whoever listens. What answers it is in `plain` and `turns`.

It is kept before its last event is told, so that what a client was told of as complete is there after any crash.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from herd.base.errors import HerdError
from herd.engine.grammar.spec import Grammar
from herd.inference.port import ChatRequest, Usage
from herd.stack.errors import body_of, is_internal, note_internal, status_of
from herd.stack.guard import Context
from herd.stack.responses.journal import Journal
from herd.stack.responses.output import ItemDict, Output
from herd.stack.responses.response import State, ended, usage_of
from herd.stack.responses.types import ResponseBody

SAVE_EVERY_S = 1.0
"""Seconds between pieces of events that are saved: what a crash loses of a stream that can be taken up again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """What a response is made of: what was asked, and what the model is asked for it."""

    body: ResponseBody
    owner: str
    context: Context
    response: dict[str, Any]
    items: Sequence[ItemDict]
    history: Sequence[ItemDict]
    request: ChatRequest
    grammar: Grammar | None
    include: frozenset[str]

    @property
    def approvals(self) -> list[tuple[ItemDict, ItemDict]]:
        """Requests that the items say yes to, each with the item that says so."""
        before = [*self.history, *self.items]
        requests = {item["id"]: item for item in before if item["type"] == "mcp_approval_request"}
        done = {item.get("approval_request_id") for item in before if item["type"] == "mcp_call"}
        given = [item for item in self.items if item["type"] == "mcp_approval_response" and item["approve"]]
        return [(requests[item["approval_request_id"]], item) for item in given if item["approval_request_id"] not in done]

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """The JSON schema of the answer, if it has to have one."""
        given = None if self.body.text is None else self.body.text.format
        if given is None or given.type == "text":
            return None
        return given.schema_ if isinstance(given.schema_, dict) else {"type": "object"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How it ended."""

    state: State
    reason: str | None = None
    error: Exception | None = None


@dataclass(kw_only=True, slots=True)
class Telling:
    """What those who answer write to."""

    output: Output
    usages: list[Usage] = field(default_factory=list[Usage])


def error_of(error: Exception, request_id: str) -> dict[str, Any]:
    """An error in the words of the response object."""
    status = status_of(error)
    code = "rate_limit_exceeded" if status == 429 else "invalid_prompt" if 400 <= status < 500 else "server_error"
    return {"code": code, "message": body_of(error, request_id=request_id)["error"]["message"]}


LAST = {"completed": "response.completed", "failed": "response.failed"}


def last_kind(state: str) -> str:
    """The last event of a response in this state. One that was cancelled is told as incomplete, since there is no event for it."""
    return LAST.get(state, "response.incomplete")


Answer = Callable[[Asking, Telling], Awaitable[Ending]]
Keep = Callable[[Asking, dict[str, Any], list[ItemDict]], Awaitable[None]]
SaveEvents = Callable[[str, int, list[bytes]], Awaitable[None]]


class Work:
    """A response from its first event to its last.

    Args:
        asking: what is asked.
        answer: who answers.
        keep: keeps the response with its output at its end.
        save_events: keeps pieces of its events; None for one that no one can come back to.
        begin: called before it is answered; a false one says that it was ended meanwhile.
    """

    def __init__(
        self,
        asking: Asking,
        answer: Answer,
        keep: Keep,
        *,
        save_events: SaveEvents | None = None,
        begin: Callable[[dict[str, Any]], Awaitable[bool]] | None = None,
    ) -> None:
        self.asking, self._answer, self._keep, self._save, self._begin = asking, answer, keep, save_events, begin
        self.journal = Journal()
        self.telling = Telling(output=Output(self.journal, asking.include))
        self.response = asking.response
        self.error: Exception | None = None
        self._stopped: Ending | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """The response's."""
        return str(self.response["id"])

    def start(self) -> None:
        """Begin, in a task of its own."""
        self._task = asyncio.create_task(self._run(), name=f"response-{self.id}")

    def cancel(self, ending: Ending | None = None) -> None:
        """End it now; `wait` for it to have ended."""
        if self._task is not None and not self._task.done() and self._stopped is None:
            self._stopped = ending or Ending(state="cancelled")
            self._task.cancel()

    async def wait(self) -> None:
        """Until it has ended."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def result(self) -> dict[str, Any]:
        """The response at its end; who stops waiting ends it. Raises what it failed of."""
        try:
            await self.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self.error is not None:
            raise self.error
        return self.response

    def now(self) -> dict[str, Any]:
        """The response as far as it is."""
        if self.journal.closed:
            return self.response
        return {**self.response, "output": self.telling.output.told()}

    async def _run(self) -> None:
        self.journal.add("response.created", response=self.response)
        if self.response["status"] == "queued":
            self.journal.add("response.queued", response=self.response)
        saver = None if self._save is None else asyncio.create_task(self._save_often(self._save))
        try:
            ending = await self._answered()
            await asyncio.shield(asyncio.ensure_future(self._end(ending)))
        finally:
            if saver is not None:
                saver.cancel()
                await asyncio.wait({saver})
            if self._save is not None:
                with contextlib.suppress(HerdError):
                    await self._save_some(self._save)
            self.journal.close()

    async def _answered(self) -> Ending:
        try:
            self.response = {**self.response, "status": "in_progress"}
            if self._begin is not None and not await self._begin(self.response):
                return Ending(state="cancelled")
            self.journal.add("response.in_progress", response=self.response)
            return await self._answer(self.asking, self.telling)
        except asyncio.CancelledError:
            if self._stopped is None:
                raise
            return self._stopped
        except Exception as error:
            note_internal(error, self.asking.context.request_id)
            return Ending(state="failed", error=error)

    async def _end(self, ending: Ending) -> None:
        """Keep it, then tell its end."""
        output = self.telling.output
        if ending.state == "completed":
            output.end()
        else:
            output.cut()
        fields: dict[str, Any] = {"usage": usage_of(self.telling.usages)}
        if ending.reason is not None:
            fields["incomplete_details"] = {"reason": ending.reason}
        if ending.error is not None:
            self.error = ending.error
            fields["error"] = error_of(ending.error, self.asking.context.request_id)
        response = ended(self.response, ending.state, output.told(), **fields)
        try:
            await self._keep(self.asking, response, output.items)
        except Exception as error:
            note_internal(error, self.asking.context.request_id)
            self.error = error
            told = body_of(error, request_id=self.asking.context.request_id)["error"]
            self.response = ended(response, "failed", output.told(), error=error_of(error, self.asking.context.request_id))
            self.journal.add("error", code=told["code"], message=told["message"], param=told["param"])
            return
        self.response = response
        self.journal.add(last_kind(ending.state), response=response)

    async def _save_often(self, save: SaveEvents) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            try:
                await self._save_some(save)
            except HerdError as error:
                if is_internal(error):
                    note_internal(error, self.asking.context.request_id)

    async def _save_some(self, save: SaveEvents) -> None:
        first, events = self.journal.take_unsaved()
        if events:
            await save(self.id, first, events)
