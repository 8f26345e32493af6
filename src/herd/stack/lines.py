"""One request of a batch answered as its route would answer it, without HTTP."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from herd.stack.chat import answer_chat
from herd.stack.completions import answer_completion
from herd.stack.embeddings import answer_embedding
from herd.stack.errors import RequestError
from herd.stack.guard import Context
from herd.stack.invalid import readable
from herd.stack.service import Service
from herd.stack.types import ChatBody, CompletionBody, EmbeddingBody

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")


class LineAnswerer:
    """Answers bodies of the three routes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def answer(self, endpoint: str, body: dict[str, Any], context: Context, priority: int) -> dict[str, Any]:
        """The route's answer. Raises HerdError."""
        if body.get("stream"):
            raise RequestError("usage", "stream is set in a batch", hint="leave it out: answers go into a file", param="stream")
        try:
            if endpoint == "/v1/embeddings":
                return await answer_embedding(self._service, EmbeddingBody.model_validate(body), context, priority=priority)
            if endpoint == "/v1/completions":
                asked = CompletionBody.model_validate(body)
                return await answer_completion(self._service, asked.model_copy(update={"priority": priority}), context)
            chat = ChatBody.model_validate(body)
            return await answer_chat(self._service, chat.model_copy(update={"priority": priority}), context)
        except ValidationError as error:
            raise readable(endpoint, error.errors()) from error
