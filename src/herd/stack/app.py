"""The application: routes and error handlers under the guard. What is wrong with a request is told in OpenAI's shape, with status 400."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from herd.base.errors import HerdError, did_you_mean
from herd.stack.answers import dumps
from herd.stack.chat import chat_routes
from herd.stack.completions import completion_routes
from herd.stack.errors import RequestError, body_of, headers_of, status_of
from herd.stack.guard import Context, Guard
from herd.stack.operations import operation_routes, tokenizer_routes
from herd.stack.service import Service
from herd.stack.types import ChatBody, CompletionBody, DetokenizeBody, EmbeddingBody, TokenizeBody
from herd.version import __version__

_FIELDS = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/embeddings": EmbeddingBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}


def create_app(service: Service) -> Guard:
    """The ASGI application of a service. Its engine has to be started by whoever runs it."""
    app = FastAPI(
        title="herd",
        version=__version__,
        description="Llama 3.1 over OpenAI's API. Every route but /health needs a key where the server has keys.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    guard = Guard(app, service.config, observe=service.metrics.answered)
    app.include_router(chat_routes(service))
    app.include_router(completion_routes(service))
    app.include_router(tokenizer_routes(service))
    app.include_router(operation_routes(service, guard))
    app.add_exception_handler(HerdError, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    return guard


def _response(request: Request, error: Exception) -> Response:
    context = cast("Context", request.scope["herd"])
    return Response(
        dumps(body_of(error, request_id=context.request_id)),
        status_code=status_of(error),
        headers=dict(headers_of(error)),
        media_type="application/json",
    )


async def _told(request: Request, error: Exception) -> Response:
    if status_of(error) == 500:
        raise error
    return _response(request, error)


async def _http(request: Request, error: Exception) -> Response:
    status = cast("HTTPException", error).status_code
    if status == 404:
        told = RequestError("not_found", f"there is no route {request.url.path!r:.200}", hint="GET /openapi.json lists the routes")
    elif status == 405:
        told = RequestError(
            "method", f"{request.method} does not go with {request.url.path!r:.200}", hint="GET /openapi.json lists the routes"
        )
    else:
        told = RequestError("format", "the body cannot be read", hint="send JSON with Content-Type: application/json")
    return _response(request, told)


async def _invalid(request: Request, error: Exception) -> Response:
    return _response(request, _readable(request.url.path, cast("RequestValidationError", error).errors()))


def _readable(path: str, problems: Sequence[Mapping[str, Any]]) -> RequestError:
    """The first thing that is wrong, by the field's name; where a field may be of several kinds, all that it may be."""
    first = problems[0]
    place = [str(step) for step in first["loc"] if step != "body"]
    kind = str(first["type"])
    if kind == "json_invalid":
        return RequestError("format", "the body is not JSON", hint="check its quotes and commas")
    if not place:
        return RequestError("format", "the body is no JSON object", hint="send JSON with Content-Type: application/json")
    name = place[0]
    if kind == "extra_forbidden":
        known = _FIELDS[path].model_fields if len(place) == 1 and path in _FIELDS else ()
        hint = did_you_mean(place[-1], list(known), otherwise="leave it out")
        return RequestError("usage", f"there is no field {'.'.join(place)!r:.200}", hint=hint, param=name)
    same = [problem for problem in problems if problem["loc"][: 1 + len(place[:1])] == first["loc"][: 1 + len(place[:1])]]
    wants = list(dict.fromkeys(str(problem["msg"]) for problem in same))
    deepest = max(same, key=lambda problem: len(problem["loc"]))
    told = ".".join(str(step) for step in deepest["loc"] if step != "body") if len(same) == 1 else name
    value = repr(deepest.get("input"))[:80] if len(same) == 1 and kind != "missing" else ""
    message = f"{told[:200]}: {'; or '.join(wants[:4])[:500]}" + (f"; it is {value}" if value else "")
    return RequestError("usage", message, param=name)
