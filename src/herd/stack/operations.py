"""What is not an answer: health, metrics, and the tokenizer over HTTP."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from herd.stack.answers import json_response, token_text
from herd.stack.errors import RequestError
from herd.stack.guard import Guard
from herd.stack.service import Service
from herd.stack.translate import messages_of, tools_of
from herd.stack.types import DetokenizeBody, TokenizeBody
from herd.version import __version__

PLAIN_TEMPLATE = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
"""A conversation without tools in Llama 3.1's format, for clients that render it themselves; this server never runs a template."""


def operation_routes(service: Service, guard: Guard) -> APIRouter:
    """Health, metrics, version."""
    router = APIRouter()
    engine = service.engine

    @router.head("/health", include_in_schema=False, response_model=None)
    @router.get("/health", summary="Whether the server lives: 200, or 503 while its engine is down", response_model=None)
    async def health() -> Response:
        """Open to everyone; tells nothing else."""
        return _state("ok" if engine.state == "ready" else engine.state, 200 if engine.state == "ready" else 503)

    @router.head("/ready", include_in_schema=False, response_model=None)
    @router.get("/ready", summary="Whether it takes requests now", response_model=None)
    async def ready() -> Response:
        """Open to everyone; 503 while the engine starts and while the server shuts down."""
        state = "draining" if guard.draining else "ready" if engine.state == "ready" else engine.state
        return _state(state, 200 if state == "ready" else 503)

    @router.get("/metrics", summary="Counters in Prometheus' text format", response_model=None)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/version", summary="herd's version", response_model=None)
    async def version() -> Response:
        return json_response({"version": __version__})

    return router


def _state(state: str, status: int) -> Response:
    response = json_response({"status": state})
    response.status_code = status
    if status == 503:
        response.headers["Retry-After"] = "2"
    return response


def tokenizer_routes(service: Service) -> APIRouter:
    """Texts to ids and back."""
    router = APIRouter()
    tokenizer = service.tokenizer

    @router.post("/tokenize", summary="A text or a conversation as token ids", response_model=None)
    async def tokenize(body: TokenizeBody, request: Request) -> Response:
        service.find_local(body.model, request.scope["herd"], "how it cuts texts into tokens")
        if (body.prompt is None) == (body.messages is None):
            raise RequestError("usage", "give either prompt or messages", hint="prompt is a text, messages a conversation", param="prompt")
        ids = await asyncio.to_thread(partial(_encode, service, body))
        data: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": service.engine.info.get("context")}
        if body.return_token_strs:
            data["token_strs"] = [token_text(tokenizer.token_bytes(token_id)) for token_id in ids]
        return json_response(data)

    @router.post("/detokenize", summary="Token ids as a text", response_model=None)
    async def detokenize(body: DetokenizeBody, request: Request) -> Response:
        service.find_local(body.model, request.scope["herd"], "how it cuts texts into tokens")
        return json_response({"prompt": tokenizer.decode(body.tokens)})

    @router.get("/tokenizer_info", summary="The tokenizer's facts", response_model=None)
    async def info() -> Response:
        return json_response(
            {
                "tokenizer_class": "llama-herd",
                "vocab_size": tokenizer.vocab_size,
                "bos_token": "<|begin_of_text|>",
                "eos_token": "<|eot_id|>",
                "pad_token": "<|finetune_right_pad_id|>",
                "chat_template": PLAIN_TEMPLATE,
                "max_model_len": service.engine.info.get("context"),
            }
        )

    return router


def _encode(service: Service, body: TokenizeBody) -> list[int]:
    if body.prompt is not None:
        return service.tokenizer.encode(body.prompt, bos=body.add_special_tokens)
    return service.model.preparer.prompt_format.encode(
        service.tokenizer,
        messages_of(body.messages or ()),
        tools=tools_of(body.tools),
        generation_prompt=body.add_generation_prompt,
    )
