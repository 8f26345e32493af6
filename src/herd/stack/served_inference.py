"""The server's models as an `AsyncInference` for one request: whatever it asks is admitted, counted and limited as a client is."""

from __future__ import annotations

from herd.inference.port import ChatRequest, CompletionRequest
from herd.stack.guard import Context
from herd.stack.jobs import Job
from herd.stack.service import Service


class ServedInference:
    """What the loop of an agent asks. `guarded`: by the server's shields; else the loop has its own."""

    def __init__(self, service: Service, context: Context, model: str, *, guarded: bool) -> None:
        self._service, self._context, self._model, self._guarded = service, context, model, guarded

    async def chat(self, request: ChatRequest) -> Job:
        """Answer a conversation."""
        return await self._service.answer(request, self._context, self._model, guarded=self._guarded)

    async def complete(self, request: CompletionRequest) -> Job:
        """Go on with a text."""
        return await self._service.answer(request, self._context, self._model, guarded=self._guarded)
