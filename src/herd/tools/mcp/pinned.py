"""An MCP server that somebody else named: reached like a web page, at addresses that the policy allows and nowhere else.

A name is resolved when a connection is made, all its addresses are checked, and the connection goes to one of them: what the name resolves
to a moment later does not matter. Redirects are not followed, and no proxy of this machine's environment is asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

import httpcore2
import httpx2
from mcp.client.streamable_http import streamable_http_client

from herd.tools.mcp.client import McpConnection
from herd.tools.mcp.config import McpServerConfig
from herd.tools.web.address import Resolve, WebPolicy, pinned, resolve

_CONNECT_S = 30.0
_STREAM_S = 300.0


class PinnedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to nothing but addresses that the policy allows."""

    def __init__(self, policy: WebPolicy, resolver: Resolve = resolve) -> None:
        self._policy, self._resolver = policy, resolver
        self._inner: Any = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to one of the host's addresses."""
        failed: Exception | None = None
        for address in await pinned(host, port, self._policy, self._resolver):
            try:
                return await self._inner.connect_tcp(address, port, timeout=timeout)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
        raise failed or httpcore2.ConnectError(f"no address of {host}")

    async def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None) -> Any:
        """Never."""
        raise httpcore2.ConnectError("sockets of this machine are not MCP servers of others")


class _PinnedTransport(httpx2.AsyncBaseTransport):
    """httpx2's own transport over such a network."""

    def __init__(self, network: PinnedNetwork) -> None:
        self._inner = httpx2.AsyncHTTPTransport(trust_env=False)
        self._inner._pool = httpcore2.AsyncConnectionPool(  # there is no public way to give it a network
            ssl_context=httpx2.create_ssl_context(trust_env=False), network_backend=network, max_connections=8
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request."""
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


class PinnedConnection(McpConnection):
    """A connection to a server over HTTP that somebody else named."""

    def __init__(self, name: str, url: str, headers: Mapping[str, str], policy: WebPolicy, *, resolver: Resolve = resolve) -> None:
        super().__init__(McpServerConfig(name=name, url=url, headers=headers))
        self._network = PinnedNetwork(policy, resolver)

    @contextlib.asynccontextmanager
    async def _transport(self) -> AsyncGenerator[Any, None]:
        timeout = httpx2.Timeout(_CONNECT_S, read=_STREAM_S)
        transport = _PinnedTransport(self._network)
        async with httpx2.AsyncClient(headers=dict(self.config.headers), timeout=timeout, transport=transport) as http:
            yield streamable_http_client(self.config.url, http_client=http)
