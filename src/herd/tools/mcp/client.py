"""One MCP server as a client sees it: connected when first needed and again when it broke, its tools listed and called.

The connection lives in a task of its own, since the SDK's scopes must be left in the task that entered them. A server gets no environment
but a harmless one and what its configuration names; it can ask nothing of the model or of the user through us.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import anyio
import httpx2
import mcp_types as types
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from herd.base.log import get_logger
from herd.tools.errors import ToolError
from herd.tools.mcp.config import McpServerConfig
from herd.tools.mcp.pinned import PinnedTransport
from herd.tools.mcp.pins import RemoteTool
from herd.tools.web.address import WebPolicy
from herd.version import __version__

_log = get_logger(__name__)
_CONNECT_S = 30.0
_STREAM_S = 300.0
_LISTING_S = 30.0
_MAX_TOOLS = 256
_MAX_PAGES = 32
_BROKEN = (MCPError, OSError, RuntimeError, anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream)


class McpConnection:
    """A server by its configuration. Its methods may be called from many tasks of one event loop.

    Args:
        config: the server.
        policy: which addresses it may have, where a stranger named it; None asks whatever the operator wrote.
    """

    def __init__(self, config: McpServerConfig, *, policy: WebPolicy | None = None) -> None:
        self.config, self._policy = config, policy
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._connecting = asyncio.Lock()
        self._listing: list[RemoteTool] = []
        self._listed_at: float | None = None

    async def _connected(self) -> Client:
        async with self._connecting:
            if self._client is not None and self._task is not None and not self._task.done():
                return self._client
            self._stop, self._listed_at = asyncio.Event(), None
            ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._live(ready, self._stop), name=f"mcp-{self.config.name}")
            try:
                async with asyncio.timeout(_CONNECT_S):
                    client = await asyncio.shield(ready)
            except TimeoutError as error:
                await self.close()
                raise self._unreachable() from error
            self._client = client
            return client

    async def _live(self, ready: asyncio.Future[Client], stop: asyncio.Event) -> None:
        """Hold the connection until told to stop, or until it breaks."""
        try:
            async with self._transport() as transport:
                client = Client(
                    transport,
                    client_info=types.Implementation(name="herd", version=__version__),
                    message_handler=self._notified,
                    read_timeout_seconds=self.config.timeout_s,
                    cache=None,
                )
                async with client:
                    ready.set_result(client)
                    await stop.wait()
        except Exception as error:
            _log.debug("MCP server %s: %s", self.config.name, error, exc_info=True)
            if not ready.done():
                ready.set_exception(self._unreachable())
        finally:
            self._client = None
            if not ready.done():
                ready.cancel()

    @contextlib.asynccontextmanager
    async def _transport(self) -> AsyncGenerator[Any, None]:
        if self.config.command:
            program, *arguments = self.config.command
            parameters = StdioServerParameters(command=program, args=arguments, env=dict(self.config.env))
            with open(os.devnull, "w", encoding="utf-8") as silent:
                yield stdio_client(parameters, errlog=silent)
            return
        # A server may hold a stream of events open, so reading has no short end; each call has its own.
        timeout = httpx2.Timeout(_CONNECT_S, read=_STREAM_S)
        transport = None if self._policy is None else PinnedTransport(self._policy)
        async with httpx2.AsyncClient(headers=dict(self.config.headers), timeout=timeout, transport=transport) as http:
            yield streamable_http_client(self.config.url, http_client=http)

    async def _notified(self, message: Any) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self._listed_at = None

    def _unreachable(self) -> ToolError:
        return ToolError(f"the MCP server {self.config.name!r} cannot be reached", hint="see that it runs; `herd tools doctor` tries it")

    async def list_tools(self, *, fresh: bool = True) -> list[RemoteTool]:
        """The tools that the server has now; not `fresh` takes a listing of the last seconds that the server did not take back."""
        client = await self._connected()
        if not fresh and self._listed_at is not None and time.monotonic() - self._listed_at < _LISTING_S:
            return self._listing
        found: list[RemoteTool] = []
        cursor: str | None = None
        try:
            async with asyncio.timeout(self.config.timeout_s):
                for _ in range(_MAX_PAGES):
                    page = await client.list_tools(cursor=cursor)
                    found += map(_remote, page.tools)
                    cursor = page.next_cursor
                    if cursor is None or len(found) > _MAX_TOOLS:
                        break
        except (TimeoutError, *_BROKEN) as error:
            await self.close()
            raise self._unreachable() from error
        if len(found) > _MAX_TOOLS:
            raise ToolError(f"the MCP server {self.config.name!r} lists over {_MAX_TOOLS} tools", hint="name those wanted: tools = [...]")
        wanted = self.config.tools
        self._listing = [tool for tool in found if not wanted or tool.name in wanted]
        self._listed_at = time.monotonic()
        return self._listing

    async def call(self, name: str, arguments: Mapping[str, Any]) -> types.CallToolResult:
        """Call a tool by the server's own name for it. Raises ToolError."""
        client = await self._connected()
        try:
            return await client.call_tool(name, dict(arguments), read_timeout_seconds=self.config.timeout_s)
        except MCPError as error:
            if self._task is None or self._task.done() or error.code == types.CONNECTION_CLOSED:
                await self.close()
                raise ToolError(f"the MCP server {self.config.name!r} went away during the call", hint="call it again") from error
            raise ToolError(f"the MCP server {self.config.name!r} refused the call: {error.message[:500]}") from error
        except _BROKEN as error:
            await self.close()
            raise ToolError(f"the MCP server {self.config.name!r} went away during the call", hint="call it again") from error

    async def close(self) -> None:
        """End the connection, and the server if it was started here."""
        task, self._task, self._client = self._task, None, None
        self._stop.set()
        if task is not None:
            _, waiting = await asyncio.wait([task], timeout=10)
            for late in waiting:
                late.cancel()
                await asyncio.wait([late])


def _remote(tool: types.Tool) -> RemoteTool:
    return RemoteTool(name=tool.name, description=tool.description or "", parameters=tool.input_schema, title=tool.title or "")
