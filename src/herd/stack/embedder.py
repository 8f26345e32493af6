"""The served model makes vectors for vector stores: texts go through the engine as any request does, and are paid by their key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import HerdError
from herd.inference.embed import as_array, embed_request
from herd.stack.answers import new_id
from herd.stack.errors import RequestError
from herd.stack.guard import Context
from herd.stack.service import Service
from herd.text.tokenizer import Tokenizer

PRIORITY = 1000
"""Of texts that nobody waits for: behind every request."""
_AGAIN = frozenset({"busy", "rate_limited", "overloaded"})


class ServiceEmbedder:
    """Vectors of the served model: the mean of its last hidden states."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def name(self) -> str:
        """As clients name it."""
        return self._service.config.model_name

    @property
    def dimensions(self) -> int | None:
        """The model's width."""
        return self._service.engine.info.get("hidden_size")

    @property
    def max_tokens(self) -> int:
        """What the engine reads; one place is that of the token that would follow."""
        return self._service.engine.context - 1

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self._service.tokenizer

    async def embed(self, texts: Sequence[str], *, owner: str, in_background: bool) -> NDArray[np.float32]:
        """A row for each text, in order. Raises HerdError."""
        context = self._context(owner)
        rows = [await self._patiently(text, context) if in_background else await self._one(text, context, None) for text in texts]
        return as_array(rows, normalize=True, width=len(rows[0]) if rows else 0)

    async def _patiently(self, text: str, context: Context) -> tuple[float, ...]:
        """Wait for the engine, and for the key's turn."""
        while True:
            while self._service.engine.state != "ready":
                await asyncio.sleep(0.25)
            try:
                return await self._one(text, context, PRIORITY)
            except HerdError as error:
                if error.code not in _AGAIN:
                    raise
                await asyncio.sleep(min(getattr(error, "retry_after_s", None) or 1.0, 30.0))

    async def _one(self, text: str, context: Context, priority: int | None) -> tuple[float, ...]:
        caller = self._service.caller(context, priority=priority, salt=None)
        asked = await self._service.aside(lambda: embed_request(self._service.tokenizer, text, "mean", caller=caller), len(text))
        job = await self._service.embed(asked, context)
        try:
            return await job.vector()
        finally:
            job.close()

    def _context(self, owner: str) -> Context:
        keys = self._service.config.keys
        key = next((key for key in keys if key.name == owner), None)
        if keys and key is None:
            raise RequestError("unauthorized", f"the key {owner!r} of this file is no longer valid", hint="upload it with another")
        return Context(request_id=new_id("emb-"), key=key)
