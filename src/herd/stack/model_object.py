"""A model as every generation of clients reads it: with OpenAI's fields, and the Llama Stack's of 0.2 and of 0.4."""

from __future__ import annotations

from typing import Any

from herd.stack.model_facts import model_facts
from herd.stack.served import ServedModel
from herd.stack.service import Service


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
