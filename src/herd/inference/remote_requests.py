"""What both clients of a remote model have in common: requests as they are built, answers as they are read, errors. Sends nothing itself.

Connecting is tried again; a request that was sent never is, since it may have been answered. The key is read from its variable at every
request and stands nowhere else.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import httpx

from herd.base.errors import HerdError
from herd.inference.port import ChatRequest, CompletionRequest, Part
from herd.inference.providers import ProviderConfig
from herd.inference.remote_body import chat_body, completion_body, embedding_body
from herd.inference.remote_errors import RemoteDownError, RemoteError, error_of
from herd.inference.remote_reader import Lines, RemoteReader
from herd.version import __version__

MAX_BYTES = 64 * 2**20
"""Of one answer."""
_MAX_ERROR_BYTES = 64 * 1024
FIRST_PAUSE_S = 0.2
CONNECTING = (httpx.ConnectError, httpx.ConnectTimeout)


@dataclass(frozen=True, kw_only=True, slots=True)
class Vectors:
    """Texts as vectors, in their order, and the tokens that were read for them."""

    vectors: tuple[tuple[float, ...], ...]
    num_tokens: int


class RemoteRequests:
    """What both kinds of client say the same."""

    def __init__(self, provider: ProviderConfig, model: str, api_key: str | None = None) -> None:
        self.provider, self.model, self._key = provider, model, api_key

    @property
    def _timeout(self) -> httpx.Timeout:
        return httpx.Timeout(self.provider.timeout_s, connect=self.provider.connect_timeout_s)

    def _headers(self) -> dict[str, str]:
        key = self.provider.key() if self._key is None else self._key.strip()
        return {"user-agent": f"llama-herd/{__version__}"} | ({"authorization": f"Bearer {key}"} if key else {})

    def _asked(self, request: ChatRequest | CompletionRequest) -> tuple[str, dict[str, Any]]:
        if isinstance(request, ChatRequest):
            return "/chat/completions", chat_body(self.provider, self.model, request)
        return "/completions", completion_body(self.provider, self.model, request)

    def check(self, request: ChatRequest | CompletionRequest) -> None:
        """Raises UsageError for what the provider cannot be asked; asks it nothing."""
        self._asked(request)

    def _down(self, error: Exception) -> RemoteError:
        name = self.provider.name
        if isinstance(error, httpx.TimeoutException):
            return RemoteDownError(
                f"the provider {name!r} did not answer within {self.provider.timeout_s:g} s", hint="ask again, or raise timeout_s"
            )
        if isinstance(error, CONNECTING):
            return RemoteDownError(f"the provider {name!r} cannot be reached", hint="see that it runs and that base_url is right")
        return RemoteDownError(f"the connection to the provider {name!r} broke", hint="ask again")

    def _refused(self, status: int, body: bytes, retry_after: str | None) -> HerdError:
        try:
            told = json.loads(body)
        except (ValueError, RecursionError):
            told = None
        return error_of(self.provider.name, status, told, retry_after=retry_after)

    def _whole(self, body: bytes) -> Mapping[str, Any]:
        try:
            told = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RemoteError(f"the provider {self.provider.name!r} sent what is not JSON", hint="see that base_url is right") from error
        if not isinstance(told, dict):
            raise RemoteError(f"the provider {self.provider.name!r} sent no object", hint="see that base_url is right")
        return cast("Mapping[str, Any]", told)

    def _built(self, client: httpx.Client | httpx.AsyncClient, method: str, path: str, body: Mapping[str, Any] | None) -> httpx.Request:
        content = None if body is None else json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        headers = self._headers() | ({} if content is None else {"content-type": "application/json"})
        url = self.provider.base_url.rstrip("/") + path
        return client.build_request(method, url, headers=headers, content=content, timeout=self._timeout)

    def _pause_s(self, error: httpx.HTTPError, attempt: int, retries: int) -> float:
        """How long to wait before connecting is tried again. Raises RemoteError where it is not, since the request may have been sent."""
        if not isinstance(error, CONNECTING) or attempt >= retries:
            raise self._down(error) from error
        return FIRST_PAUSE_S * 2**attempt

    def _too_much(self) -> RemoteError:
        return RemoteError(f"the provider {self.provider.name!r} sent over {MAX_BYTES:,} bytes", hint="ask for less")

    def _vectors(self, body: bytes, num: int) -> Vectors:
        told = self._whole(body)
        try:
            rows = sorted(told["data"], key=lambda row: int(row["index"]))
            vectors = tuple(tuple(float(value) for value in row["embedding"]) for row in rows)
            usage: Any = told.get("usage") or {}
            count = int(usage.get("prompt_tokens") or usage.get("total_tokens") or 0)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RemoteError(f"the provider {self.provider.name!r} sent no embeddings", hint="see that the model makes vectors") from error
        if len(vectors) != num:
            raise RemoteError(f"the provider {self.provider.name!r} sent {len(vectors)} vectors for {num} texts", hint="ask again")
        return Vectors(vectors=vectors, num_tokens=count)

    def _embedding(self, texts: Sequence[str | tuple[int, ...]], dimensions: int | None, pooling: str) -> dict[str, Any]:
        listed = [text if isinstance(text, str) else list(text) for text in texts]
        return embedding_body(self.provider, self.model, listed, dimensions, {"pooling": pooling})

    def _body(self) -> Body:
        return Body(MAX_BYTES, self._too_much())

    def _flow(self, reader: RemoteReader) -> Flow:
        return Flow(Lines(self.provider.name), reader, self._too_much())


class Body:
    """A body in pieces. One that is over its limit is cut there, or is the error that is given."""

    def __init__(self, limit: int = _MAX_ERROR_BYTES, error: RemoteError | None = None) -> None:
        self._limit, self._error = limit, error
        self._parts: list[bytes] = []
        self._size = 0

    def push(self, data: bytes) -> bool:
        """Take a piece; whether more are wanted."""
        self._parts.append(data)
        self._size += len(data)
        if self._size <= self._limit:
            return True
        if self._error is not None:
            raise self._error
        return False

    def whole(self) -> bytes:
        """All pieces."""
        return b"".join(self._parts)


class Flow:
    """A stream in pieces, read into parts. `error` is raised once it is over the limit of one answer."""

    def __init__(self, lines: Lines, reader: RemoteReader, error: RemoteError) -> None:
        self._lines, self._reader, self._error = lines, reader, error
        self._size = 0

    def push(self, data: bytes) -> Iterator[Part]:
        """What a piece says, line by line."""
        self._size += len(data)
        if self._size > MAX_BYTES:
            raise self._error
        for line in self._lines.push(data):
            yield from self._reader.line(line)


@cache
def trusted() -> ssl.SSLContext:
    """Whom TLS trusts, read once: it takes longer than a request."""
    return httpx.create_ssl_context()
