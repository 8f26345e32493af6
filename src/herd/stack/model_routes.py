"""/v1/models: the models that are served, the engine's and the providers', and other names that a key gives them, which are its own."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from herd.stack.answers import json_response
from herd.stack.errors import RequestError
from herd.stack.files import owner_of
from herd.stack.model_object import model_object
from herd.stack.served import ServedModel
from herd.stack.service import Service
from herd.stack.stack_types import ModelBody


def model_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()
    kept = service.registrations

    @router.get("/v1/models", summary="The models that are served, the engine's first, and your names for them", response_model=None)
    async def models(request: Request) -> Response:
        found = [model_object(service, model) for model in service.models.all]
        found += [
            _named(service, name, thing) for name, thing in kept.all(owner_of(request), "models").items() if _is_served(service, thing)
        ]
        return json_response({"object": "list", "data": found})

    @router.post("/v1/models", summary="Give a model another name, which is yours alone", response_model=None)
    async def register(body: ModelBody, request: Request) -> Response:
        owner, target = owner_of(request), _target(service, body)
        if body.model_type is not None and body.model_type != target.type:
            message = f"the model {target.id!r} is of type {target.type}, not {body.model_type}"
            raise RequestError("usage", message, hint=f"give model_type {target.type!r}, or none", param="model_type")
        if service.models.serves(body.model_id):
            if service.models.find(body.model_id) is target and not body.metadata:
                return json_response(model_object(service, target))  # applications register what they use at every start
            message = f"{body.model_id!r:.200} is the name of a model that is served"
            raise RequestError("conflict", message, hint="choose another model_id", param="model_id")
        thing = {"target": target.id, "metadata": body.metadata or {}}
        if kept.get(owner, "models", body.model_id) != thing:
            await asyncio.to_thread(kept.put, owner, "models", body.model_id, thing)
        return json_response(_named(service, body.model_id, thing))

    @router.get("/v1/models/{model:path}", summary="One model, by any of its names", response_model=None)
    async def model(model: str, request: Request) -> Response:
        own = None if service.models.serves(model) else kept.get(owner_of(request), "models", model)
        if own is not None and _is_served(service, own):
            return json_response(_named(service, model, own))
        return json_response(model_object(service, service.find(model, owner_of(request))))

    @router.delete("/v1/models/{model:path}", summary="Take a name of yours back", response_model=None)
    async def unregister(model: str, request: Request) -> Response:
        if await asyncio.to_thread(kept.drop, owner_of(request), "models", model):
            return json_response(None)
        if service.models.serves(model):
            raise RequestError("forbidden", f"{model!r:.200} is served and stays", hint="only registered names can be deleted")
        raise RequestError(
            "not_found", f"there is no model {model!r:.200} here", hint="GET /v1/models lists those there are", param="model"
        )

    return router


def _is_served(service: Service, thing: dict[str, Any]) -> bool:
    return service.models.serves(thing["target"])


def _target(service: Service, body: ModelBody) -> ServedModel:
    """The model that is meant. Raises RequestError for one that is not served."""
    meant = body.provider_model_id or body.model_id
    if body.provider_id is not None and service.models.serves(f"{body.provider_id}/{meant}"):
        return service.models.find(f"{body.provider_id}/{meant}")
    if not service.models.serves(meant):
        hint = "name one of GET /v1/models as provider_model_id; providers and their models come by herd.toml"
        raise RequestError("not_found", f"there is no model {meant!r:.200} here", hint=hint, param="provider_model_id")
    found = service.models.find(meant)
    if body.provider_id not in (None, found.provider):
        message = f"the model {meant!r:.200} is of {found.provider!r}, not of {body.provider_id!r:.100}"
        raise RequestError("usage", message, hint="GET /v1/providers lists the providers", param="provider_id")
    return found


def _named(service: Service, name: str, thing: dict[str, Any]) -> dict[str, Any]:
    """A model under a name of a key's."""
    told = model_object(service, service.models.find(thing["target"]))
    more: dict[str, Any] = thing["metadata"]
    return {
        **told,
        "id": name,
        "identifier": name,
        "custom_metadata": {**told["custom_metadata"], **more},
        "metadata": {**told["metadata"], **more},
    }
