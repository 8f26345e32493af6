"""/v1/agents: the agents API of Llama Stack 0.2: agents, sessions, turns and their stream of events, steps, and going on after a pause.

Every agent and session belongs to a key. The server's own shields stand around every agent, those that it names beside them. A turn whose
reader leaves is cancelled; one that a crash of the server cut off goes on by `resume` without any output.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from herd.agents.assembly import runtime_of
from herd.agents.config import AgentConfig
from herd.agents.errors import TurnStateError
from herd.agents.events import AgentEvent, TurnFailed
from herd.agents.loop import cancel_turn, run_turn
from herd.agents.runtime import Runtime
from herd.agents.sessions import SessionStore
from herd.agents.turn import Output, Turn
from herd.base.errors import HerdError, NotFoundError
from herd.stack.agent_objects import (
    agent_object,
    config_of,
    group_names,
    inputs_of,
    payloads,
    session_object,
    step_object,
    text_of,
    turn_object,
    with_choice,
)
from herd.stack.agent_types import AgentBody, ResumeBody, SessionBody, TurnBody
from herd.stack.answers import dumps, json_response, unless_gone
from herd.stack.errors import RequestError
from herd.stack.files import owner_of
from herd.stack.guard import Context
from herd.stack.served_inference import ServedInference
from herd.stack.service import Service
from herd.stack.sse import EventStream, error_event, event
from herd.tools.registry import Registry
from herd.tools.tool import Taint, Tool

Limit = Annotated[int, Query(ge=1, le=1000)]
Start = Annotated[int, Query(ge=0, le=1_000_000)]
_DOCUMENTS = Taint(reads_untrusted=True, reads_private=True)


class AgentDesk:
    """What the routes share."""

    def __init__(self, service: Service, store: SessionStore) -> None:
        self.service, self.store = service, store

    async def tools_of(self, owner: str, config: AgentConfig) -> tuple[Tool, ...]:
        """The tools of the groups, or of the names, that an agent has. Raises NotFoundError."""
        found: dict[str, Tool] = {}
        groups = {group["identifier"] for group in await self.service.tools.groups(owner)}
        missing = await self.service.tools.missing(owner)
        for name in config.tools:
            if name in groups or name in missing:
                found |= {one.tool.name: one.tool for one in await self.service.tools.tools(owner, name)}
            else:
                one = await self.service.tools.find(owner, name)
                found[one.tool.name] = one.tool
        return tuple(found.values())

    async def runtime(self, context: Context, owner: str, session_id: str, config: AgentConfig) -> Runtime:
        """What a turn runs with."""
        tools = await self.tools_of(owner, config)
        shielding = self.service.shielding
        own = set() if shielding is None else {shield.name for shield in shielding.shields.shields}
        plain = replace(config, tools=(), shields=tuple(name for name in config.shields if name not in own))
        model = ServedInference(self.service, context, config.model, guarded=False)
        caller = self.service.caller(context, priority=None, salt=None)
        runtime = await runtime_of(plain, self.store, owner, session_id, model, registry=Registry(), tools=tools, caller=caller)
        if shielding is None:
            return runtime
        from herd.safety.shields import Shields

        more = () if runtime.shields is None else runtime.shields.shields
        return replace(runtime, shields=Shields([*shielding.shields.shields, *more]))

    async def config(self, owner: str, agent_id: str, body: TurnBody | None = None) -> AgentConfig:
        """An agent's config, with what a turn asks beside it."""
        config = (await self.store.agent(owner, agent_id)).config
        if body is None:
            return config
        more = tuple(name for name in group_names(body.toolgroups) if name not in config.tools)
        return with_choice(replace(config, tools=(*config.tools, *more)), body.tool_config)

    async def session(self, owner: str, agent_id: str, session_id: str) -> Any:
        """A session of an agent. Raises NotFoundError for one of another agent too."""
        record = await self.store.session(owner, session_id)
        if record.agent_id != agent_id:
            raise NotFoundError(f"there is no session {session_id!r:.100}", hint="GET /v1/agents/{agent_id}/sessions lists them")
        return record


def agent_routes(service: Service, store: SessionStore) -> APIRouter:
    """The routes."""
    router = APIRouter()
    desk = AgentDesk(service, store)
    _add_agents(router, desk)
    _add_sessions(router, desk)
    _add_turns(router, desk)
    return router


def _page(found: list[dict[str, Any]], start: int, limit: int) -> Response:
    page = found[start : start + limit]
    return json_response({"data": page, "has_more": start + limit < len(found), "url": "/v1/agents"})


def _add_agents(router: APIRouter, desk: AgentDesk) -> None:
    async def read(body: AgentBody, owner: str) -> AgentConfig:
        desk.service.find(body.agent_config.model, owner)
        config = config_of(body.agent_config, ())
        await desk.tools_of(owner, config)
        return config

    @router.post("/v1/agents", summary="Keep an agent", response_model=None)
    async def create(body: AgentBody, request: Request) -> Response:
        record = await desk.store.create_agent(owner_of(request), await read(body, owner_of(request)))
        return json_response(agent_object(record))

    @router.get("/v1/agents", summary="Your agents", response_model=None)
    async def agents(request: Request, limit: Limit = 100, start_index: Start = 0) -> Response:
        found = [agent_object(record) for record in await desk.store.agents(owner_of(request))]
        return _page(found, start_index, limit)

    @router.get("/v1/agents/{agent_id}", summary="One agent", response_model=None)
    async def agent(agent_id: str, request: Request) -> Response:
        return json_response(agent_object(await desk.store.agent(owner_of(request), agent_id)))

    @router.put("/v1/agents/{agent_id}", summary="Change an agent", response_model=None)
    async def update(agent_id: str, body: AgentBody, request: Request) -> Response:
        owner = owner_of(request)
        await desk.store.agent(owner, agent_id)
        return json_response(agent_object(await desk.store.update_agent(owner, agent_id, await read(body, owner))))

    @router.delete("/v1/agents/{agent_id}", summary="Remove an agent and its sessions", status_code=204, response_model=None)
    async def delete(agent_id: str, request: Request) -> Response:
        await desk.store.delete_agent(owner_of(request), agent_id)
        return Response(status_code=204)


def _add_sessions(router: APIRouter, desk: AgentDesk) -> None:
    @router.post("/v1/agents/{agent_id}/session", summary="Begin a session", response_model=None)
    async def create(agent_id: str, body: SessionBody, request: Request) -> Response:
        record = await desk.store.create_session(owner_of(request), agent_id=agent_id, name=body.session_name)
        return json_response({"session_id": record.id})

    @router.get("/v1/agents/{agent_id}/sessions", summary="The sessions of an agent", response_model=None)
    async def sessions(agent_id: str, request: Request, limit: Limit = 100, start_index: Start = 0) -> Response:
        await desk.store.agent(owner_of(request), agent_id)
        found = [session_object(record, ()) for record in await desk.store.sessions(owner_of(request), agent_id=agent_id)]
        return _page(found, start_index, limit)

    @router.get("/v1/agents/{agent_id}/session/{session_id}", summary="A session with its turns", response_model=None)
    async def session(
        agent_id: str, session_id: str, request: Request, turn_ids: Annotated[list[str] | None, Query(max_length=1000)] = None
    ) -> Response:
        owner = owner_of(request)
        record = await desk.session(owner, agent_id, session_id)
        turns = [turn for turn in await desk.store.turns(owner, session_id) if turn_ids is None or turn.id in turn_ids]
        return json_response(session_object(record, turns, await desk.store.documents(owner, session_id)))

    @router.delete(
        "/v1/agents/{agent_id}/session/{session_id}", summary="Remove a session and all in it", status_code=204, response_model=None
    )
    async def delete(agent_id: str, session_id: str, request: Request) -> Response:
        record = await desk.session(owner_of(request), agent_id, session_id)
        if record.open_turn is not None:
            cancel_turn(record.open_turn)
        await desk.store.delete_session(owner_of(request), session_id)
        return Response(status_code=204)


def _add_turns(router: APIRouter, desk: AgentDesk) -> None:
    place = "/v1/agents/{agent_id}/session/{session_id}/turn"

    async def answer(request: Request, turn: Turn, config: AgentConfig, stream: bool | None) -> Response:
        context: Context = request.scope["herd"]
        runtime = await desk.runtime(context, owner_of(request), turn.session_id, config)
        events = run_turn(runtime, config, turn)
        if not stream:
            await unless_gone(request, _whole(events))
            return json_response(turn_object(turn))
        return EventStream(_chunks(events, turn, context), lambda: cancel_turn(turn.id), desk.service.config)

    @router.post(place, summary="Run a turn", response_model=None)
    async def create(agent_id: str, session_id: str, body: TurnBody, request: Request) -> Response:
        owner = owner_of(request)
        await desk.session(owner, agent_id, session_id)
        config, inputs = await desk.config(owner, agent_id, body), inputs_of(body.messages)
        await desk.tools_of(owner, config)
        for document in body.documents or ():
            await desk.store.add_document(owner, session_id, text=document.content)
        turn = await desk.store.begin_turn(owner, session_id, inputs, taint=_DOCUMENTS if body.documents else None)
        return await answer(request, turn, config, body.stream)

    @router.get(place + "/{turn_id}", summary="A turn as it stands", response_model=None)
    async def one(agent_id: str, session_id: str, turn_id: str, request: Request) -> Response:
        await desk.session(owner_of(request), agent_id, session_id)
        return json_response(turn_object(await desk.store.turn(owner_of(request), session_id, turn_id)))

    @router.post(place + "/{turn_id}/resume", summary="Give a waiting turn what it waits for", response_model=None)
    async def resume(agent_id: str, session_id: str, turn_id: str, body: ResumeBody, request: Request) -> Response:
        owner = owner_of(request)
        await desk.session(owner, agent_id, session_id)
        turn = await desk.store.turn(owner, session_id, turn_id)
        if not turn.is_open:
            raise TurnStateError(f"turn {turn_id} is {turn.status}", hint="begin a new one")
        _give(turn, body)
        return await answer(request, turn, await desk.config(owner, agent_id), body.stream)

    @router.get(place + "/{turn_id}/step/{step_id}", summary="A step of a turn", response_model=None)
    async def step(agent_id: str, session_id: str, turn_id: str, step_id: str, request: Request) -> Response:
        await desk.session(owner_of(request), agent_id, session_id)
        turn = await desk.store.turn(owner_of(request), session_id, turn_id)
        found = next((step for step in turn.steps if step.id == step_id), None)
        if found is None:
            raise NotFoundError(f"there is no step {step_id!r:.100}", hint="the turn lists its steps")
        return json_response({"step": step_object(turn_id, found)})


def _give(turn: Turn, body: ResumeBody) -> None:
    """Outputs of the client's tools, and decisions on the server's. Raises TurnStateError, RequestError."""
    waiting = {step.call_id: step for step in turn.waiting}
    for given in body.tool_responses:
        step = waiting.get(given.call_id)
        if step is not None and step.state == "approval":
            decision = (given.metadata or {}).get("approval")
            if decision not in ("once", "always", "deny"):
                hint = 'send metadata {"approval": "once"}, "always" or "deny"'
                raise RequestError("usage", f"the call {given.call_id!r} waits for a person's yes", hint=hint, param="tool_responses")
            turn.answer(decisions={given.call_id: decision})
        else:
            turn.answer({given.call_id: Output(text=text_of(given.content))})


async def _whole(events: AsyncGenerator[AgentEvent, None]) -> None:
    async with aclosing(events) as told:
        async for one in told:
            if isinstance(one, TurnFailed):
                raise _error_of(one)


async def _chunks(events: AsyncGenerator[AgentEvent, None], turn: Turn, context: Context) -> AsyncGenerator[bytes, None]:
    async with aclosing(events) as told:
        async for one in told:
            if isinstance(one, TurnFailed):
                yield error_event(_error_of(one), context.request_id)
                return
            for payload in payloads(one, turn):
                yield event(dumps({"event": {"payload": payload}}))


def _error_of(failed: TurnFailed) -> HerdError:
    return RequestError(failed.code, failed.message, hint=failed.hint)
