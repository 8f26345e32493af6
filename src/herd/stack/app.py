"""The application: routes and error handlers under the guard. What is wrong with a request is told in OpenAI's shape, with status 400."""

from __future__ import annotations

from functools import partial
from typing import cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from herd.agents.sql_store import SqlSessionStore
from herd.base.errors import HerdError
from herd.stack.agents import agent_routes
from herd.stack.answers import dumps
from herd.stack.batch_runner import BatchRunner
from herd.stack.batches import batch_routes
from herd.stack.chat import chat_routes
from herd.stack.completions import completion_routes
from herd.stack.disk_models import disk_model_routes
from herd.stack.embeddings import embedding_routes
from herd.stack.errors import RequestError, body_of, headers_of, note_internal, status_of
from herd.stack.files import file_routes
from herd.stack.guard import Context, Guard
from herd.stack.invalid import readable
from herd.stack.legacy_routes import legacy_routes
from herd.stack.model_routes import model_routes
from herd.stack.openapi import document
from herd.stack.operations import operation_routes, tokenizer_routes
from herd.stack.page import page_routes
from herd.stack.page_chats import page_chat_routes
from herd.stack.paths import comes_later
from herd.stack.prompt_routes import prompt_routes
from herd.stack.provider_routes import provider_routes
from herd.stack.rag_tool import rag_tool_routes
from herd.stack.responses.conversation_routes import conversation_routes
from herd.stack.responses.desk import Desk
from herd.stack.responses.routes import response_routes
from herd.stack.safety_routes import safety_routes
from herd.stack.service import Service
from herd.stack.storage import Storage
from herd.stack.stored_completions import stored_completion_routes
from herd.stack.tool_routes import tool_routes
from herd.stack.training_runs import training_routes
from herd.stack.vector_files import file_batch_routes, vector_file_routes
from herd.stack.vector_io import vector_db_routes, vector_io_routes
from herd.stack.vector_stores import vector_store_routes
from herd.tools.retrieval.service import Retrieval
from herd.version import __version__


def create_app(
    service: Service,
    storage: Storage | None = None,
    batches: BatchRunner | None = None,
    retrieval: Retrieval | None = None,
    responses: Desk | None = None,
) -> Guard:
    """The ASGI application of a service. Its engine has to be started by whoever runs it, and so have its batches."""
    app = FastAPI(
        title="herd",
        version=__version__,
        description="Llama 3.1 over OpenAI's API and the Llama Stack's. Every route but /health and /ready needs a key where the server "
        "has keys. Routes under /v1 are also found under /v1/openai/v1, /v1alpha, /v1beta and /alpha.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.openapi = partial(document, app)
    guard = Guard(app, service.config, observe=service.metrics.answered)
    app.include_router(chat_routes(service))
    if service.database is not None:
        app.include_router(stored_completion_routes(service.database))
        app.include_router(page_chat_routes(service.database, service.config))
    app.include_router(completion_routes(service))
    app.include_router(embedding_routes(service))
    app.include_router(tokenizer_routes(service))
    app.include_router(operation_routes(service, guard))
    app.include_router(model_routes(service))
    app.include_router(provider_routes(service, app))
    app.include_router(safety_routes(service))
    app.include_router(tool_routes(service))
    app.include_router(prompt_routes(service))
    app.include_router(legacy_routes(service))
    app.include_router(training_routes(service.config))
    app.include_router(disk_model_routes(service))
    app.include_router(page_routes())
    if storage is not None:
        app.include_router(file_routes(storage, service.config))
    if storage is not None:
        app.include_router(agent_routes(service, SqlSessionStore(storage.database)))
    if storage is not None and batches is not None:
        app.include_router(batch_routes(storage, batches, max_open=service.config.caps.open_batches))
    if responses is not None:
        app.include_router(response_routes(responses))
        app.include_router(conversation_routes(responses))
    if storage is not None and retrieval is not None:
        app.include_router(vector_store_routes(retrieval, service.config))
        app.include_router(vector_file_routes(retrieval))
        app.include_router(file_batch_routes(retrieval))
        app.include_router(vector_io_routes(retrieval))
        app.include_router(vector_db_routes(retrieval, service.config))
        app.include_router(rag_tool_routes(retrieval, service.tools.policy))
    app.add_exception_handler(HerdError, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _internal)
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
    note_internal(error, cast("Context", request.scope["herd"]).request_id)
    return _response(request, error)


async def _internal(request: Request, error: Exception) -> Response:
    """What is answered; the framework raises the error again, and the guard logs it."""
    return _response(request, error)


async def _http(request: Request, error: Exception) -> Response:
    status = cast("HTTPException", error).status_code
    if status == 404 and comes_later(request.url.path):
        message = f"{request.url.path!r:.200} is of a group of the Llama Stack that this version of herd does not have"
        told = RequestError(
            "not_found", message, hint="GET /v1/inspect/routes lists what it has; docs/guides/llama-stack.md tells what comes"
        )
    elif status == 404:
        told = RequestError("not_found", f"there is no route {request.url.path!r:.200}", hint="GET /openapi.json lists the routes")
    elif status == 405:
        told = RequestError(
            "method", f"{request.method} does not go with {request.url.path!r:.200}", hint="GET /openapi.json lists the routes"
        )
    else:
        told = RequestError("format", "the body cannot be read", hint="send JSON with Content-Type: application/json")
    return _response(request, told)


async def _invalid(request: Request, error: Exception) -> Response:
    return _response(request, readable(request.url.path, cast("RequestValidationError", error).errors()))
