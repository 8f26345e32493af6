"""A model on an OpenAI-compatible server behind the inference port, for event loops and for threads. No torch.

What the port promises holds here too: what returns has been accepted, what cannot be answered is raised before, closing ends the request.
Redirects are not followed: the key would go along. What is said and read, and what is tried again, is in `remote_requests`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing
from typing import Any

import httpx

from herd.base.errors import UsageError
from herd.inference.port import ChatRequest, CompletionRequest, Event, Part
from herd.inference.providers import ProviderConfig
from herd.inference.remote_errors import RemoteDownError
from herd.inference.remote_reader import RemoteReader
from herd.inference.remote_requests import Body, RemoteRequests, Vectors, trusted

_QUEUE = 256


class AsyncRemoteModel(RemoteRequests):
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
            self._client = httpx.AsyncClient(verify=trusted(), timeout=self._timeout, limits=limits)
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
            return self._vectors(await self._read(response, self._body()), len(texts))

    async def list_models(self, *, timeout_s: float) -> list[str]:
        """The names of the server's models, which also tells that it lives. Raises RemoteError."""
        try:
            async with asyncio.timeout(timeout_s), AsyncExitStack() as stack:
                told = self._whole(await self._read(await self._send(stack, "GET", "/models", None, retries=0), self._body()))
        except TimeoutError as error:
            raise RemoteDownError(f"the provider {self.provider.name!r} did not answer within {timeout_s:g} s", hint="ask again") from error
        rows = told.get("data") or ()
        return [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]

    async def _send(
        self, stack: AsyncExitStack, method: str, path: str, body: Mapping[str, Any] | None, *, retries: int | None = None
    ) -> httpx.Response:
        """A response whose body is still to be read, of a 2xx status. Raises HerdError."""
        allowed = self.provider.connect_retries if retries is None else retries
        attempt = 0
        while True:
            try:
                response = await self.client.send(self._built(self.client, method, path, body), stream=True)
                break
            except httpx.HTTPError as error:
                await asyncio.sleep(self._pause_s(error, attempt, allowed))
                attempt += 1
        stack.push_async_callback(response.aclose)
        if not response.is_success:
            raise self._refused(response.status_code, await self._read(response, Body()), response.headers.get("retry-after"))
        return response

    async def _read(self, response: httpx.Response, body: Body) -> bytes:
        try:
            async for data in response.aiter_bytes():
                if not body.push(data):
                    break
        except httpx.HTTPError as error:
            raise self._down(error) from error
        return body.whole()

    async def read_parts(
        self, path: str, body: Mapping[str, Any], reader: RemoteReader, accepted: asyncio.Future[None]
    ) -> AsyncGenerator[list[Part], None]:
        """The parts of an answer as they come; `accepted` is told of the first good sign."""
        async with AsyncExitStack() as stack:
            response = await self._send(stack, "POST", path, body)
            if not accepted.done():
                accepted.set_result(None)
            flow = self._flow(reader)
            try:
                async for data in response.aiter_bytes():
                    parts = list(flow.push(data))
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


class RemoteModel(RemoteRequests):
    """A model of a provider as an `Inference`, for threads. Close it, or use it as a context manager. A key given here is used first."""

    def __init__(self, provider: ProviderConfig, model: str, *, client: httpx.Client | None = None, api_key: str | None = None) -> None:
        super().__init__(provider, model, api_key)
        self._client = client or httpx.Client(verify=trusted(), timeout=self._timeout)

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
            return self._vectors(self._read(response, self._body()), len(texts))

    def served(self) -> list[dict[str, Any]]:
        """The models that the server lists, as it tells them. Raises RemoteError."""
        with ExitStack() as stack:
            told = self._whole(self._read(self._send(stack, "/models", None), self._body()))
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
            flow = self._flow(reader)
            try:
                for data in response.iter_bytes():
                    yield from (part.event for part in flow.push(data))
                    if reader.done:
                        return
            except httpx.HTTPError as error:
                raise self._down(error) from error
            for part in reader.finish():
                yield part.event

    def _send(self, stack: ExitStack, path: str, body: Mapping[str, Any] | None) -> httpx.Response:
        """A response whose body is still to be read, to a POST of a body or to a GET without one. Raises HerdError."""
        method = "GET" if body is None else "POST"
        attempt = 0
        while True:
            try:
                response = self._client.send(self._built(self._client, method, path, body), stream=True)
                break
            except httpx.HTTPError as error:
                time.sleep(self._pause_s(error, attempt, self.provider.connect_retries))
                attempt += 1
        stack.callback(response.close)
        if not response.is_success:
            raise self._refused(response.status_code, self._read(response, Body()), response.headers.get("retry-after"))
        return response

    def _read(self, response: httpx.Response, body: Body) -> bytes:
        try:
            for data in response.iter_bytes():
                if not body.push(data):
                    break
        except httpx.HTTPError as error:
            raise self._down(error) from error
        return body.whole()
