"""A JSON service that the operator configured: asked with its key, answered within a size and a time, its refusals in plain words.

Redirects are not followed, since a key would go along; the key is in no message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

from herd.tools.errors import ToolError

_MAX_BYTES = 4 * 1024 * 1024
_WHY = {
    401: "refused the key",
    402: "wants to be paid",
    403: "refused the request",
    422: "did not understand the request",
    429: "is asked too often",
}


class JsonService:
    """A service by its base URL."""

    def __init__(self, name: str, base_url: str, *, timeout_s: float = 15.0, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.name, self.base_url, self._timeout_s, self._transport = name, base_url.rstrip("/"), timeout_s, transport

    async def ask(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None, body: Any = None
    ) -> dict[str, Any]:
        """The JSON object that it answers. Raises ToolError for anything else."""
        try:
            async with (
                httpx.AsyncClient(timeout=self._timeout_s, follow_redirects=False, transport=self._transport) as client,
                client.stream(method, self.base_url + path, params=params, headers=headers, json=body) as response,
            ):
                data = await self._read(response)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ToolError(f"{self.name} cannot be reached", hint="try again later, or answer without it") from error
        if response.status_code != 200:
            why = _WHY.get(response.status_code, "failed")
            raise ToolError(f"{self.name} {why} (status {response.status_code})", hint="answer without it, and say so")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ToolError(f"{self.name} answered with something else than JSON", hint="answer without it, and say so") from error
        if not isinstance(value, dict):
            raise ToolError(f"{self.name} answered with something else than an object", hint="answer without it, and say so")
        return value

    async def _read(self, response: httpx.Response) -> bytes:
        data = bytearray()
        async for piece in response.aiter_bytes(1 << 16):
            data += piece
            if len(data) > _MAX_BYTES:
                raise ToolError(f"{self.name} answered with over {_MAX_BYTES} bytes", hint="ask for less")
        return bytes(data)


def as_dicts(value: Any) -> list[dict[str, Any]]:
    """The objects in a list, if it is one."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def as_text(value: Any, limit: int = 2000) -> str:
    """A string of at most so many characters; nothing for anything else."""
    return value[:limit] if isinstance(value, str) else ""
