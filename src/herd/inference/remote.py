"""A model on an OpenAI-compatible server behind the inference port, for event loops and for threads. No torch.

What the port promises holds here too: what returns has been accepted, what cannot be answered is raised before, closing ends the request.
Connecting is tried again; a request that was sent never is, since it may have been answered. Redirects are not followed: the key would go
along. The key is read from its variable at every request and stands nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import httpx

from herd.base.errors import HerdError, UsageError
from herd.inference.port import ChatRequest, CompletionRequest, Event, Part
from herd.inference.providers import ProviderConfig
from herd.inference.remote_body import chat_body, completion_body, embedding_body
from herd.inference.remote_errors import RemoteDownError, RemoteError, error_of
from herd.inference.remote_reader import Lines, RemoteReader
from herd.version import __version__

MAX_BYTES = 64 * 2**20
"""Of one answer."""
_MAX_ERROR_BYTES = 64 * 1024
_FIRST_PAUSE_S = 0.2
_QUEUE = 256
_CONNECTING = (httpx.ConnectError, httpx.ConnectTimeout)


@dataclass(frozen=True, kw_only=True, slots=True)
class Vectors:
    """Texts as vectors, in their order, and the tokens that were read for them."""

    vectors: tuple[tuple[float, ...], ...]
    num_tokens: int


class _Requests:
    """What both kinds of client say the same."""

    def __init__(self, provider: ProviderConfig, model: str, api_key: str | None = None) -> None:
        self.provider, self.model, self._key = provider, model, api_key

    @property
    def _timeout(self) -> httpx.Timeout:
        return httpx.Timeout(self.provider.timeout_s, connect=self.provider.connect_timeout_s)

    def _headers(self) -> dict[str, str]:
        key = self.provider.key() if self._key is None else self._key.strip()
        return {"user-agent": f"llama-herd/{__version__}"} | ({"authorization": f"Bearer {key}"} if key else {})

    def _url(self, path: str) -> str:
        return self.provider.base_url.rstrip("/") + path

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
        if isinstance(error, _CONNECTING):
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


@cache
def _trusted() -> ssl.SSLContext:
    """Whom TLS trusts, read once: it takes longer than a request."""
    return httpx.create_ssl_context()


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


class AsyncRemoteModel(_Requests):
    """A model of a provider as an `AsyncInference`. Use it in one event loop, and close it there.

    Args:
        provider: the server.
        model: the server's own name of the model.
        client: what speaks HTTP; default: one of its own, with a pool of connections.
    """

    def __init__(self, provider: ProviderConfig, model: str, *, client: httpx.AsyncClient | None = None) -> None:
        super().__init__(provider, model)
        self._client, self._own = client, client is None

    @property
    def client(self) -> httpx.AsyncClient:
        """What speaks HTTP."""
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            self._client = httpx.AsyncClient(verify=_trusted(), timeout=self._timeout, limits=limits)
        return self._client

    async def close(self) -> None:
        """Close its connections."""
        client, self._client = self._client, None
        if client is not None and self._own:
            await client.aclose()

    async def chat(self, request: ChatRequest) -> RemoteStream:
        """Answer a conversation; see `port.AsyncInference.chat`. Raises RemoteError besides."""
        return await self._start(request)

    async def complete(self, request: CompletionRequest) -> RemoteStream:
        """Go on with a text; see `port.AsyncInference.complete`. Raises RemoteError besides."""
        return await self._start(request)

    async def _start(self, request: ChatRequest | CompletionRequest) -> RemoteStream:
        path, body = self._asked(request)
        stream = RemoteStream(self, path, body, RemoteReader(self.provider.name, request.n))
        await stream.accepted()
        return stream

    async def embed(self, texts: Sequence[str | tuple[int, ...]], *, dimensions: int | None = None, pooling: str = "mean") -> Vectors:
        """Texts as vectors. Raises RemoteError, UsageError."""
        async with AsyncExitStack() as stack:
            response = await self._send(stack, "POST", "/embeddings", self._embedding(texts, dimensions, pooling))
            return self._vectors(await self._read(response), len(texts))

    async def list_models(self, *, timeout_s: float) -> list[str]:
        """The names of the server's models, which also tells that it lives. Raises RemoteError."""
        try:
            async with asyncio.timeout(timeout_s), AsyncExitStack() as stack:
                told = self._whole(await self._read(await self._send(stack, "GET", "/models", None, retries=0)))
        except TimeoutError as error:
            raise RemoteDownError(f"the provider {self.provider.name!r} did not answer within {timeout_s:g} s", hint="ask again") from error
        rows = told.get("data") or ()
        return [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]

    async def _send(
        self, stack: AsyncExitStack, method: str, path: str, body: Mapping[str, Any] | None, *, retries: int | None = None
    ) -> httpx.Response:
        """A response whose body is still to be read, of a 2xx status. Raises HerdError."""
        headers = self._headers()
        left = self.provider.connect_retries if retries is None else retries
        pause = _FIRST_PAUSE_S
        while True:
            content = None if body is None else _encoded(body)
            kind = {} if content is None else {"content-type": "application/json"}
            asked = self.client.build_request(method, self._url(path), headers=headers | kind, content=content, timeout=self._timeout)
            try:
                response = await self.client.send(asked, stream=True)
                break
            except _CONNECTING as error:
                if left <= 0:
                    raise self._down(error) from error
                left -= 1
                await asyncio.sleep(pause)
                pause *= 2
            except httpx.HTTPError as error:
                raise self._down(error) from error
        stack.push_async_callback(response.aclose)
        if not response.is_success:
            raise self._refused(
                response.status_code, await self._read(response, limit=_MAX_ERROR_BYTES, cut=True), response.headers.get("retry-after")
            )
        return response

    async def _read(self, response: httpx.Response, *, limit: int = MAX_BYTES, cut: bool = False) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async for data in response.aiter_bytes():
                parts.append(data)
                size += len(data)
                if size > limit:
                    if cut:
                        break
                    raise self._too_much()
        except httpx.HTTPError as error:
            raise self._down(error) from error
        return b"".join(parts)

    async def read_parts(
        self, path: str, body: Mapping[str, Any], reader: RemoteReader, accepted: asyncio.Future[None]
    ) -> AsyncGenerator[list[Part], None]:
        """The parts of an answer as they come; `accepted` is told of the first good sign."""
        async with AsyncExitStack() as stack:
            response = await self._send(stack, "POST", path, body)
            if not accepted.done():
                accepted.set_result(None)
            lines, size = Lines(self.provider.name), 0
            try:
                async for data in response.aiter_bytes():
                    size += len(data)
                    if size > MAX_BYTES:
                        raise self._too_much()
                    parts = [part for line in lines.push(data) for part in reader.line(line)]
                    if parts:
                        yield parts
                    if reader.done:
                        return
            except httpx.HTTPError as error:
                raise self._down(error) from error
            yield reader.finish()


class RemoteStream:
    """The parts of one request's answers. For one consumer."""

    def __init__(self, model: AsyncRemoteModel, path: str, body: Mapping[str, Any], reader: RemoteReader) -> None:
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue: asyncio.Queue[list[Part] | BaseException | None] = asyncio.Queue(_QUEUE)
        self._closed = False
        self._task = asyncio.create_task(self._pump(model, path, body, reader), name=f"herd-remote-{model.provider.name}")

    async def accepted(self) -> None:
        """Wait until the server has taken the request. Raises what it was refused with."""
        try:
            await asyncio.shield(self._accepted)
        except asyncio.CancelledError:
            self.close()
            raise

    async def _pump(self, model: AsyncRemoteModel, path: str, body: Mapping[str, Any], reader: RemoteReader) -> None:
        end: BaseException | None = None
        try:
            async with aclosing(model.read_parts(path, body, reader, self._accepted)) as ticks:
                async for parts in ticks:
                    await self._queue.put(parts)
        except Exception as error:
            end = error
        if not self._accepted.done():
            self._accepted.set_exception(end or RemoteDownError(f"the provider {model.provider.name!r} said nothing", hint="ask again"))
            self._accepted.add_done_callback(lambda told: told.cancelled() or told.exception())
        await self._queue.put(end)

    def close(self) -> None:
        """End the request now. What was not read is dropped."""
        if not self._closed:
            self._closed = True
            self._task.cancel()
            while not self._queue.empty():
                self._queue.get_nowait()
            self._queue.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[list[Part]]:
        return self._read()

    async def _read(self) -> AsyncGenerator[list[Part], None]:
        try:
            while not self._closed:
                found = await self._queue.get()
                if isinstance(found, BaseException):
                    raise found
                if found is None or self._closed:
                    return
                yield found
        finally:
            self.close()


class RemoteModel(_Requests):
    """A model of a provider as an `Inference`, for threads. Close it, or use it as a context manager. A key given here is used first."""

    def __init__(self, provider: ProviderConfig, model: str, *, client: httpx.Client | None = None, api_key: str | None = None) -> None:
        super().__init__(provider, model, api_key)
        self._client = client or httpx.Client(verify=_trusted(), timeout=self._timeout)

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Answer a conversation; see `port.Inference.chat`. Raises RemoteError besides."""
        return self._start(request)

    def complete(self, request: CompletionRequest) -> Iterator[Event]:
        """Go on with a text; see `port.Inference.complete`. Raises RemoteError besides."""
        return self._start(request)

    def embed(self, texts: Sequence[str | tuple[int, ...]], *, dimensions: int | None = None, pooling: str = "mean") -> Vectors:
        """Texts as vectors. Raises RemoteError, UsageError."""
        with ExitStack() as stack:
            response = self._send(stack, "/embeddings", self._embedding(texts, dimensions, pooling))
            return self._vectors(self._read(response), len(texts))

    def served(self) -> list[dict[str, Any]]:
        """The models that the server lists, as it tells them. Raises RemoteError."""
        with ExitStack() as stack:
            told = self._whole(self._read(self._send(stack, "/models", None)))
        return [dict(row) for row in told.get("data") or () if isinstance(row, Mapping) and "id" in row]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]

    def _start(self, request: ChatRequest | CompletionRequest) -> Iterator[Event]:
        if request.n != 1:
            raise UsageError(f"n is {request.n}, this gives one answer", hint="AsyncRemoteModel gives several")
        path, body = self._asked(request)
        with ExitStack() as stack:
            response = self._send(stack, path, body)
            return self._events(response, RemoteReader(self.provider.name, 1), stack.pop_all())

    def _events(self, response: httpx.Response, reader: RemoteReader, stack: ExitStack) -> Generator[Event, None, None]:
        with stack:
            lines, size = Lines(self.provider.name), 0
            try:
                for data in response.iter_bytes():
                    size += len(data)
                    if size > MAX_BYTES:
                        raise self._too_much()
                    for line in lines.push(data):
                        for part in reader.line(line):
                            yield part.event
                    if reader.done:
                        return
            except httpx.HTTPError as error:
                raise self._down(error) from error
            for part in reader.finish():
                yield part.event

    def _send(self, stack: ExitStack, path: str, body: Mapping[str, Any] | None) -> httpx.Response:
        """A response whose body is still to be read, to a POST of a body or to a GET without one. Raises HerdError."""
        method, content = ("GET", None) if body is None else ("POST", _encoded(body))
        headers = self._headers() | ({} if body is None else {"content-type": "application/json"})
        left, pause = self.provider.connect_retries, _FIRST_PAUSE_S
        while True:
            asked = self._client.build_request(method, self._url(path), headers=headers, content=content, timeout=self._timeout)
            try:
                response = self._client.send(asked, stream=True)
                break
            except _CONNECTING as error:
                if left <= 0:
                    raise self._down(error) from error
                left -= 1
                time.sleep(pause)
                pause *= 2
            except httpx.HTTPError as error:
                raise self._down(error) from error
        stack.callback(response.close)
        if not response.is_success:
            raise self._refused(
                response.status_code, self._read(response, limit=_MAX_ERROR_BYTES, cut=True), response.headers.get("retry-after")
            )
        return response

    def _read(self, response: httpx.Response, *, limit: int = MAX_BYTES, cut: bool = False) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            for data in response.iter_bytes():
                parts.append(data)
                size += len(data)
                if size > limit:
                    if cut:
                        break
                    raise self._too_much()
        except httpx.HTTPError as error:
            raise self._down(error) from error
        return b"".join(parts)
