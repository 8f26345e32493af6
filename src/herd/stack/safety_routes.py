"""Shields over HTTP: /v1/moderations in OpenAI's shape, /v1/shields and /v1/safety/run-shield in the Llama Stack's.

A shield is one that ships, one that the caller registered (another name, another threshold), or any guard model that is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from herd.base.errors import did_you_mean
from herd.inference.port import AsyncAnswer, ChatRequest, CompletionRequest
from herd.safety.defaults import MAKERS, WITH_THRESHOLD, make_shield
from herd.safety.llama_guard import LlamaGuard
from herd.safety.moderation import moderation_object, run_shield_response
from herd.safety.shields import Report, Shields
from herd.safety.verdict import Content, Shield, TouchPoint
from herd.stack.answers import json_response, new_id
from herd.stack.errors import RequestError
from herd.stack.files import owner_of
from herd.stack.guard import Context
from herd.stack.service import Service
from herd.stack.stack_types import ModerationBody, RunShieldBody, ShieldBody
from herd.stack.translate import messages_of

DEFAULT_MODERATION = "harm"
PROVIDER = "herd-safety"
AT_ONCE = 16
_OPENAI_PREFIXES = ("omni-moderation", "text-moderation")
_DEADLINE_S = 60.0
_POINTS = {"user": TouchPoint.INPUT, "system": TouchPoint.INPUT, "assistant": TouchPoint.OUTPUT, "tool": TouchPoint.TOOL_OUTPUT}


class _Asked:
    """A served model for a guard: asked as the caller, with the caller's limits, and with no shield around it."""

    def __init__(self, service: Service, model: str, context: Context) -> None:
        self._service, self._model, self._context = service, model, context

    async def chat(self, request: ChatRequest) -> AsyncAnswer:
        """See `port.AsyncInference.chat`."""
        return (await self._service.answer(request, self._context, self._model, guarded=False)).answer

    async def complete(self, request: CompletionRequest) -> AsyncAnswer:
        """See `port.AsyncInference.complete`."""
        return (await self._service.answer(request, self._context, self._model, guarded=False)).answer


class _Finder:
    """Shields by name, for one request."""

    def __init__(self, service: Service, request: Request) -> None:
        self._service = service
        self.owner, self.context = owner_of(request), request.scope["herd"]

    def find(self, name: str) -> Shield:
        """A shield by name. Raises RequestError."""
        if name in MAKERS:
            return make_shield(name)
        registered = self._service.registrations.get(self.owner, "shields", name)
        if registered is not None:
            return self.make(str(registered["provider_shield_id"]), registered["params"])
        return self.make(name, {})

    def make(self, kind: str, params: Mapping[str, Any]) -> Shield:
        """A shield that ships or a guard model, with parameters. Raises RequestError, ConfigError."""
        threshold = _threshold(params)
        if kind in MAKERS:
            if threshold is not None and kind not in WITH_THRESHOLD:
                message = f"the shield {kind!r} has no threshold"
                raise RequestError("usage", message, hint="shields with one: " + ", ".join(WITH_THRESHOLD), param="params")
            return make_shield(kind, threshold=threshold)
        try:
            served = self._service.find(kind, self.owner)
        except RequestError:
            hint = did_you_mean(kind, MAKERS, otherwise="GET /v1/shields lists the shields")
            raise RequestError("not_found", f"there is no shield {kind!r:.100}", hint=hint, param="shield_id") from None
        plain = served.remote is not None and served.remote.provider.dialect == "openai"
        excluded = params.get("excluded_categories") or ()
        if not isinstance(excluded, list | tuple) or not all(isinstance(code, str) for code in excluded):
            raise RequestError("usage", "excluded_categories is no list of codes", hint='write ["S6"]', param="params")
        return LlamaGuard(
            _Asked(self._service, kind, self.context),
            threshold=0.5 if threshold is None else threshold,
            exclude=list(excluded),
            name=kind,
            constrained=not plain,
            caller=self._service.caller(self.context, priority=None, salt=None),
        )

    async def judge(self, shield: Shield, content: Content) -> Report:
        """What one shield says, asked wherever it stands; one that fails objects."""
        if content.point not in shield.points:
            point = sorted(shield.points)[0]
            content = Content(point=point, text=content.text, conversation=content.conversation)
        report = await Shields([shield], deadline_s=_DEADLINE_S).check(content)
        self._service.metrics.judged(report)
        return report


def _threshold(params: Mapping[str, Any]) -> float | None:
    value = params.get("threshold")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise RequestError("usage", f"threshold is {value!r:.40}, it must be 0 to 1", hint="0.5 is the measured one", param="params")
    return float(value)


def safety_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()
    _add_judging(router, service)
    _add_registry(router, service)
    return router


def _add_judging(router: APIRouter, service: Service) -> None:
    @router.post("/v1/moderations", summary="What shields say of texts, in OpenAI's shape", response_model=None)
    async def moderate(body: ModerationBody, request: Request) -> Response:
        name = body.model or DEFAULT_MODERATION
        if name.startswith(_OPENAI_PREFIXES):
            name = DEFAULT_MODERATION
        finder = _Finder(service, request)
        shield = finder.find(name)
        given = [body.input] if isinstance(body.input, str) else body.input
        slots = asyncio.Semaphore(AT_ONCE)

        async def judged(text: str) -> Report:
            async with slots:
                return await finder.judge(shield, Content(point=TouchPoint.INPUT, text=text))

        reports = await asyncio.gather(*(judged(one if isinstance(one, str) else one.text) for one in given))
        return json_response(moderation_object(reports, id=new_id("modr-"), model=name))

    @router.post("/v1/safety/run-shield", summary="What one shield says of a conversation's last message", response_model=None)
    async def run_shield(body: RunShieldBody, request: Request) -> Response:
        finder = _Finder(service, request)
        shield = finder.find(body.shield_id)
        messages = messages_of(body.messages)
        last = messages[-1]
        content = Content(point=_POINTS[last.role], text=last.text, conversation=messages[:-1])
        return json_response(run_shield_response(await finder.judge(shield, content)))


def _add_registry(router: APIRouter, service: Service) -> None:
    @router.get("/v1/shields", summary="Shields that ship, and those that you registered", response_model=None)
    async def shields(request: Request) -> Response:
        own = service.registrations.all(owner_of(request), "shields")
        return json_response({"data": [*map(_shipped, MAKERS), *own.values()]})

    @router.post("/v1/shields", summary="Register a shield under a name of yours", response_model=None)
    async def register(body: ShieldBody, request: Request) -> Response:
        finder = _Finder(service, request)
        kind, params = body.provider_shield_id or body.shield_id, body.params or {}
        if body.shield_id in MAKERS:
            message = f"{body.shield_id!r} is the name of a shield that ships"
            raise RequestError("conflict", message, hint="choose another shield_id", param="shield_id")
        finder.make(kind, params)  # what cannot be made is refused now, not when it is needed
        thing = _shield(body.shield_id, kind, params)
        if service.registrations.get(finder.owner, "shields", body.shield_id) == thing:
            return json_response(thing)  # applications register at every start
        await asyncio.to_thread(service.registrations.put, finder.owner, "shields", body.shield_id, thing)
        return json_response(thing)

    @router.get("/v1/shields/{identifier:path}", summary="One shield", response_model=None)
    async def shield(identifier: str, request: Request) -> Response:
        found = _shipped(identifier) if identifier in MAKERS else service.registrations.get(owner_of(request), "shields", identifier)
        if found is None:
            raise _no_shield(identifier)
        return json_response(found)

    @router.delete("/v1/shields/{identifier:path}", summary="Unregister a shield of yours", response_model=None)
    async def unregister(identifier: str, request: Request) -> Response:
        if identifier in MAKERS:
            raise RequestError("forbidden", f"{identifier!r} ships with herd and stays", hint="only registered shields can be deleted")
        if not await asyncio.to_thread(service.registrations.drop, owner_of(request), "shields", identifier):
            raise _no_shield(identifier)
        return json_response(None)


def _no_shield(name: str) -> RequestError:
    return RequestError("not_found", f"there is no shield {name!r:.100}", hint="GET /v1/shields lists the shields")


def _shield(name: str, kind: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "identifier": name,
        "type": "shield",
        "provider_id": PROVIDER,
        "provider_resource_id": kind,
        "provider_shield_id": kind,
        "params": dict(params),
    }


def _shipped(name: str) -> dict[str, Any]:
    return _shield(name, name, {})
