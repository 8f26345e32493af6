"""GET /v1/models: one object that every generation of clients reads: OpenAI's fields, and the Llama Stack's of 0.2 and of 0.4."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from herd.stack.answers import json_response
from herd.stack.model_facts import model_facts
from herd.stack.served import ServedModel
from herd.stack.service import Service


def model_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.get("/v1/models", summary="The models that are served, the engine's first", response_model=None)
    async def models() -> Response:
        return json_response({"object": "list", "data": [model_object(service, model) for model in service.models.all]})

    @router.get("/v1/models/{model:path}", summary="One model, by any of its names", response_model=None)
    async def model(model: str) -> Response:
        return json_response(model_object(service, service.models.find(model)))

    return router


def model_object(service: Service, model: ServedModel) -> dict[str, Any]:
    """A model, for everyone."""
    known: dict[str, Any] = {"aliases": list(model.aliases)}
    facts: dict[str, Any] = {}
    if model.remote is None:
        info = service.engine.info
        known |= {"max_model_len": info.get("context"), "num_parameters": info.get("num_parameters"), "dtype": info.get("dtype")}
        facts = {"herd": model_facts(service)}
    elif model.context is not None:
        known["max_model_len"] = model.context
    placed = {"model_type": model.type, "provider_id": model.provider, "provider_resource_id": model.resource}
    return {
        "id": model.id,
        "object": "model",
        "created": service.created,
        "owned_by": model.provider,
        **known,
        **facts,
        "custom_metadata": {**placed, **known},
        "identifier": model.id,
        "type": "model",
        "api_model_type": model.type,
        **placed,
        "metadata": known,
    }
