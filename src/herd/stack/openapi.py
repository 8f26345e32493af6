"""The OpenAPI document: FastAPI's own, with the errors that every route may answer and the key that it needs."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from herd.stack.paths import PROBES

_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "description": "What is wrong, in OpenAI's shape.",
            "required": ["message", "type", "param", "code", "request_id"],
            "properties": {
                "message": {"type": "string", "description": "For people: the value, the limit and what to do."},
                "type": {"type": "string", "description": "The kind of error, as OpenAI names it."},
                "param": {"type": ["string", "null"], "description": "The field that is wrong."},
                "code": {"type": "string", "description": "Stable, for programs."},
                "request_id": {"type": "string", "description": "The request's id, by which the server's log finds it."},
            },
        }
    },
}
_ERRORS = {
    400: "The request is wrong: a field's name, kind, value or size, or the JSON itself.",
    401: "No valid key was given.",
    403: "The Host or the Origin header is of another site, or what is asked for may not be reached or changed.",
    404: "There is no such route, model or object.",
    405: "The route has no such method.",
    408: "The body did not come in time.",
    409: "Not in this state.",
    413: "The body is too large.",
    429: "The key's limits are used up, or the answer would be too late; Retry-After tells when to ask again.",
    431: "The headers are too large.",
    500: "An internal error; the server's log tells more.",
    502: "A remote provider did not do what it should.",
    503: "The engine starts or the server ends; Retry-After tells when to ask again.",
}
_EVENT = {
    "type": "object",
    "description": "With `stream`: events, the JSON of each in its data.",
    "properties": {
        "event": {"type": "string", "description": "The event's name, where it has one."},
        "data": {"type": "string", "description": "JSON, or [DONE]."},
    },
}
_STREAMS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/inference/chat-completion",
        "/v1/inference/completion",
        "/v1/responses",
        "/v1/responses/{response_id}",
        "/v1/agents/{agent_id}/session/{session_id}/turn",
        "/v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}/resume",
    }
)


def document(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        parts = made.setdefault("components", {})
        schemas = parts.setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas["Error"] = _ERROR_SCHEMA
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "A key of the server's key file."}}
        for path, methods in made["paths"].items():
            for operation in methods.values():
                _complete(path, operation)
        app.openapi_schema = made
    return app.openapi_schema


def _complete(path: str, operation: dict[str, Any]) -> None:
    """Errors, key and streams of one operation."""
    responses = operation["responses"]
    responses.pop("422", None)
    for status, text in _ERRORS.items():
        told: dict[str, Any] = {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
        responses.setdefault(str(status), told)
    if path in PROBES:
        responses["503"] = {"description": "Not now; `status` tells why.", "content": {"application/json": {"schema": {}}}}
    if path in _STREAMS:
        responses["200"]["content"]["text/event-stream"] = {"schema": _EVENT}
    if path == "/metrics":
        responses["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    operation["security"] = [] if path in PROBES else [{"key": []}]
