"""What the Llama Stack tells of a server itself: its providers and their health, its routes, its version.

The health of a remote is asked when someone wants to know, for five seconds at most, and kept for ten: nothing is probed at start, and a
server whose remotes are down starts and answers.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import Response

from herd.base.errors import HerdError, did_you_mean
from herd.inference.providers import LOCAL, ProviderConfig
from herd.stack.answers import json_response
from herd.stack.errors import RequestError
from herd.stack.service import Service
from herd.version import __version__

PROBE_S = 5.0
KEPT_S = 10.0


class Health:
    """The health of remotes, as it was found last."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._found: dict[str, tuple[float, dict[str, Any]]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def of(self, provider: ProviderConfig) -> dict[str, Any]:
        """`status` OK or Error, with a message; as the Llama Stack tells it."""
        async with self._locks.setdefault(provider.name, asyncio.Lock()):
            at, told = self._found.get(provider.name, (0.0, {}))
            if not told or time.monotonic() - at > KEPT_S:
                told = await self._ask(provider)
                self._found[provider.name] = (time.monotonic(), told)
            return told

    async def _ask(self, provider: ProviderConfig) -> dict[str, Any]:
        remote = next(model.remote for model in self._service.models.remotes if model.provider == provider.name)
        assert remote is not None
        try:
            names = await remote.list_models(timeout_s=PROBE_S)
        except HerdError as error:
            return {"status": "Error", "message": error.message}
        absent = [model.id for model in provider.models if names and model.id not in names]
        if absent:
            return {"status": "OK", "message": f"it lists no model {absent[0]!r}"}
        return {"status": "OK", "message": "it answers"}


def provider_routes(service: Service, app: FastAPI) -> APIRouter:
    """The routes."""
    router = APIRouter()
    health = Health(service)

    async def listed() -> list[dict[str, Any]]:
        states = await asyncio.gather(*map(health.of, service.models.providers))
        remotes = [_remote(provider, state) for provider, state in zip(service.models.providers, states, strict=True)]
        return [*_own(service), *remotes]

    @router.get("/v1/providers", summary="Who answers, and how they are", response_model=None)
    async def providers() -> Response:
        return json_response({"data": await listed()})

    @router.get("/v1/providers/{provider_id}", summary="One provider", response_model=None)
    async def provider(provider_id: str) -> Response:
        found = await listed()
        names = [one["provider_id"] for one in found]
        if provider_id not in names:
            hint = did_you_mean(provider_id, names, otherwise="providers: " + ", ".join(names))
            raise RequestError("not_found", f"there is no provider {provider_id!r:.100}", hint=hint)
        return json_response(found[names.index(provider_id)])

    @router.get("/v1/health", summary="Whether the server answers, in the Llama Stack's words", response_model=None)
    async def state() -> Response:
        return json_response({"status": "OK" if service.engine.state == "ready" else "Error"})

    @router.get("/v1/version", summary="herd's version", response_model=None)
    async def version() -> Response:
        return json_response({"version": __version__})

    @router.get("/v1/inspect/routes", summary="The routes that there are", response_model=None)
    async def routes() -> Response:
        return json_response({"data": _routes(app)})

    return router


def _own(service: Service) -> list[dict[str, Any]]:
    """What this process does itself."""
    info = service.engine.info
    ready = service.engine.state == "ready"
    engine = {"status": "OK"} if ready else {"status": "Error", "message": f"the engine is {service.engine.state}"}
    told = {name: info.get(name) for name in ("context", "dtype", "device")}
    shields = list(service.config.shields)
    rows = [
        (LOCAL, "inference", "inline::herd", {"model": service.models.local.id, **told}, engine),
        (f"{LOCAL}-safety", "safety", "inline::herd-shields", {"shields": shields}, {"status": "OK"}),
        (f"{LOCAL}-tools", "tool_runtime", "inline::herd-tools", {}, {"status": "OK"}),
    ]
    return [
        {"api": api, "provider_id": name, "provider_type": kind, "config": config, "health": health}
        for name, api, kind, config, health in rows
    ]


def _remote(provider: ProviderConfig, health: dict[str, Any]) -> dict[str, Any]:
    """A remote; of its key only the variable is known here, and that is not told."""
    return {
        "api": "inference",
        "provider_id": provider.name,
        "provider_type": f"remote::{provider.dialect}",
        "config": {"base_url": provider.base_url, "models": [model.id for model in provider.models]},
        "health": health,
    }


def _routes(app: FastAPI) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path, methods in app.openapi()["paths"].items():
        found += [{"route": path, "method": method.upper(), "provider_types": []} for method in methods]
    return found
