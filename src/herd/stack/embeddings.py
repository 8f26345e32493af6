"""POST /v1/embeddings: texts or token ids as unit vectors, in the order in which they were given."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from herd.engine.pooling import Pooling
from herd.inference.embed import as_array, embed_request
from herd.inference.port import Caller
from herd.stack.answers import json_response, unless_gone
from herd.stack.errors import RequestError
from herd.stack.guard import Context
from herd.stack.jobs import EmbedJob
from herd.stack.served import ServedModel
from herd.stack.service import Service
from herd.stack.translate import prompts_of
from herd.stack.types import EmbeddingBody


def embedding_routes(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/embeddings", summary="Texts as vectors", response_model=None)
    async def embed(body: EmbeddingBody, request: Request) -> Response:
        """Pooled hidden states of the model, made unit length; for search by rough likeness."""
        context: Context = request.scope["herd"]
        return json_response(await unless_gone(request, answer_embedding(service, body, context)))

    return router


async def answer_embedding(service: Service, body: EmbeddingBody, context: Context, *, priority: int | None = None) -> dict[str, Any]:
    """The vectors of a body. Raises HerdError."""
    served = service.find_for(body.model, context)
    texts = prompts_of(body.input, service.config.caps, param="input")
    if served.remote is not None:
        return await _of_remote(service, served, body, texts, context)
    caller = service.caller(context, priority=priority, salt=None)
    jobs = await _start(service, texts, body.pooling, caller, context)
    try:
        vectors = await asyncio.gather(*(job.vector() for job in jobs))
    finally:
        for job in jobs:
            job.close()
    width = len(vectors[0])
    if body.dimensions is not None and body.dimensions > width:
        raise RequestError(
            "usage", f"dimensions is {body.dimensions:,}, the model has {width:,}", hint=f"ask for {width:,} at most", param="dimensions"
        )
    kept = [vector[: body.dimensions] for vector in vectors]
    rows = as_array(kept, normalize=True, width=len(kept[0]))
    num_tokens = sum(len(job.request.prompt) for job in jobs)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _written(row, body.encoding_format)} for index, row in enumerate(rows)
        ],
        "model": service.config.model_name,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


async def _of_remote(
    service: Service, served: ServedModel, body: EmbeddingBody, texts: Sequence[str | tuple[int, ...]], context: Context
) -> dict[str, Any]:
    """As the remote makes them, which is not always of unit length."""
    if not all(texts):
        raise RequestError("usage", "an input is empty", hint="leave it out", param="input")
    made = await service.embed_remote(served, texts, context, dimensions=body.dimensions, pooling=body.pooling)
    rows = [np.asarray(vector, dtype=np.float32) for vector in made.vectors]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _written(row, body.encoding_format)} for index, row in enumerate(rows)
        ],
        "model": served.id,
        "usage": {"prompt_tokens": made.num_tokens, "total_tokens": made.num_tokens},
    }


async def _start(
    service: Service, texts: Sequence[str | tuple[int, ...]], pooling: Pooling, caller: Caller, context: Context
) -> list[EmbedJob]:
    """Start all or none."""
    jobs: list[EmbedJob] = []
    try:
        for text in texts:
            if not text:
                raise RequestError("usage", "an input is empty", hint="leave it out", param="input")
            asked = await service.aside(lambda text=text: embed_request(service.tokenizer, text, pooling, caller=caller), len(text))
            jobs.append(await service.embed(asked, context))
    except BaseException:
        for job in jobs:
            job.close()
        raise
    return jobs


def _written(row: NDArray[np.float32], form: str) -> list[float] | str:
    return row.tolist() if form == "float" else base64.b64encode(row.astype("<f4").tobytes()).decode()
