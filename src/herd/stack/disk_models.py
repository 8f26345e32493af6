"""/v1/herd/models: models that lie on this machine, for whoever runs it: which one is loaded, and how another could be served.

A server answers with the model that it was started with; so every other one comes with the command that serves it, beside this server or
in its place, as the memory has room. A process of its own reads the checkpoints, since torch is no part of this one; what it found is kept
until the list of models changes.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import sys
from dataclasses import asdict
from typing import Any, cast

from fastapi import APIRouter, Request
from starlette.responses import Response

from herd.base.errors import HerdError
from herd.base.log import get_logger
from herd.base.memory import available_memory
from herd.base.paths import server_dir
from herd.checkpoint.resolve import cached_models, installed_models, resolve_model
from herd.inference.on_disk import DiskModel, from_dict, offer
from herd.stack.answers import json_response
from herd.stack.errors import RequestError
from herd.stack.guard import Context
from herd.stack.service import Service

log = get_logger(__name__)

READ_S = 300.0
"""What the process gets that reads checkpoints."""


class DiskModels:
    """The list, read anew when models come or go. One process reads at a time."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._seen: object = None
        self._found: list[DiskModel] = []

    async def all(self) -> list[DiskModel]:
        """Everything on disk. Raises RequestError where it could not be read."""
        async with self._lock:
            seen = await asyncio.to_thread(_seen)
            if seen != self._seen:
                self._found = await asyncio.to_thread(_read)
                self._seen = seen
            return self._found


def _seen() -> object:
    return [(model.name, model.path, model.size_bytes) for model in (*installed_models(), *cached_models())]


def _read() -> list[DiskModel]:
    command = [sys.executable, "-m", "herd.inference.on_disk"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=READ_S, check=True)
        return [from_dict(row) for row in json.loads(done.stdout)]
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        log.exception("the models on disk could not be read")
        raise RequestError("conflict", "the models on disk could not be read", hint="try `herd models --fits` there") from error


def disk_model_routes(service: Service) -> APIRouter:
    """The routes. Of a server's keys only those with `admin=1` may read: what lies on the machine is not for tenants."""
    router = APIRouter()
    disk = DiskModels()

    @router.get("/v1/herd/models", summary="Models on this machine, which of them is loaded, and how to serve another", response_model=None)
    async def models(request: Request) -> Response:
        """`fit` is `beside` this server, `instead` of it, `no`, or null where free memory is not known, as on a GPU."""
        key = cast("Context", request.scope["herd"]).key
        if key is not None and not key.admin:
            message = f"the key {key.name!r} may not see what is on this machine"
            raise RequestError("forbidden", message, hint="write admin=1 behind it in the key file, and start the server anew")
        found = await disk.all()
        served = await asyncio.to_thread(_served_path, service)
        free, own = _memory(service)
        port = (request.scope.get("server") or (None, service.config.port))[1] or service.config.port
        told = [model_row(model, free=free, own=own, port=port, loaded=model.path == served) for model in found]
        return json_response({"object": "list", "data": told, "free_bytes": free, "served_bytes": own})

    return router


def _served_path(service: Service) -> str | None:
    try:
        return str(resolve_model(service.engine.spec.model))
    except HerdError:
        return None


def _memory(service: Service) -> tuple[int | None, int | None]:
    """What is free, and what this server's own model takes: that would be free if the server stopped."""
    info = service.engine.info
    own = info.get("total_bytes") if service.engine.state == "ready" else None
    return available_memory() if info.get("device") == "cpu" else None, own


def model_row(model: DiskModel, *, free: int | None, own: int | None, port: int, loaded: bool = False) -> dict[str, Any]:
    """What is told of a model: its facts, how it fits, and the command that serves it so."""
    facts = {name: value for name, value in asdict(model).items() if name not in ("fixed_bytes", "token_bytes")}
    told: dict[str, Any] = {**facts, "object": "disk_model", "state": "loaded" if loaded else "on disk", "fit": None, "command": None}
    if loaded or model.problem is not None:
        return told
    plain = ["herd", "serve", model.name]
    if free is None:
        return {**told, "command": shlex.join(plain)}
    beside = offer(model, free)
    if beside is not None and not beside.options:
        # Another server needs a port and a state directory of its own.
        apart = ["--port", str(port + 1), "--state-dir", f"{server_dir()}-{port + 1}"]
        return {**told, "fit": "beside", "command": shlex.join([*plain, *apart])}
    instead = offer(model, free + (own or 0))
    if instead is None:
        return {**told, "fit": "no"}
    command = shlex.join([*plain, *instead.options])
    return {**told, "fit": "instead", "needs_bytes": instead.needs_bytes, "context": instead.context, "command": command}
