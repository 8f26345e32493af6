"""herd's tools for other programs, over stdio or streamable HTTP. Every call goes through the registry, as a model's would.

Over HTTP the Host and Origin are checked (a page in a browser cannot reach it by DNS rebinding), and a key is asked for when one is set;
beyond loopback there must be one. State of the code interpreter belongs to a connection: without one there is none to keep.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import mcp_types as types
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings

from herd.base.errors import UsageError
from herd.tools.registry import Registry
from herd.tools.tool import ToolContext, ToolResult
from herd.version import __version__

PATH = "/mcp"
_App = Callable[[Any, Any, Any], Awaitable[None]]


def mcp_server(registry: Registry, *, instructions: str | None = None) -> Server[Any]:
    """An MCP server over a registry's tools. Tools of other MCP servers in it are offered too."""
    only = secrets.token_hex(8)

    async def list_tools(_: Any, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_described(tool) for tool in registry.tools()])

    async def call_tool(request: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        context = ToolContext(session_id=_session(request, only))
        return _answer(await registry.call(params.name, params.arguments or {}, context))

    return Server("herd", version=__version__, instructions=instructions, on_list_tools=list_tools, on_call_tool=call_tool)


def _session(request: Any, only: str) -> str:
    """A name for the caller's conversation: one for the other end of our pipes, the session's over HTTP, a fresh one without any."""
    http = request.request
    if http is None:
        return f"mcp-{only}"
    name = http.headers.get("mcp-session-id")
    return f"mcp-{hashlib.sha256(name.encode()).hexdigest()[:24]}" if name else f"mcp-{secrets.token_hex(12)}"


def _described(tool: Any) -> types.Tool:
    taint = tool.taint
    hints = types.ToolAnnotations(read_only_hint=not taint.acts_outside, open_world_hint=taint.reads_untrusted or taint.acts_outside)
    return types.Tool(name=tool.name, description=tool.description, input_schema=dict(tool.parameters), annotations=hints)


def _answer(result: ToolResult) -> types.CallToolResult:
    content: list[Any] = [types.TextContent(text=result.text)]
    for file in result.attachments:
        data = base64.b64encode(file.data).decode("ascii")
        if file.mime_type.startswith("image/"):
            content.append(types.ImageContent(data=data, mime_type=file.mime_type))
        else:
            resource = types.BlobResourceContents(uri=f"attachment:///{file.name}", blob=data, mime_type=file.mime_type)
            content.append(types.EmbeddedResource(resource=resource))
    structured = result.data if isinstance(result.data, dict) else None
    return types.CallToolResult(content=content, structured_content=structured, is_error=not result.ok)


async def serve_stdio(registry: Registry) -> None:
    """Serve whoever started this process, until it closes our stdin."""
    server = mcp_server(registry)
    async with stdio_server() as (reader, writer):
        await server.run(reader, writer, server.create_initialization_options())


def http_app(registry: Registry, *, host: str = "127.0.0.1", key_digests: Sequence[bytes] = (), allowed_hosts: Sequence[str] = ()) -> _App:
    """An ASGI application that serves MCP at `/mcp`.

    Args:
        registry: the tools.
        host: the address that it will listen on.
        key_digests: SHA-256 of each key that callers may send as `Authorization: Bearer KEY`; may be empty on loopback only.
        allowed_hosts: names that callers may call it by beside its address.

    Raises:
        UsageError: an address beyond loopback and no key.
    """
    if not key_digests and not _is_loopback(host):
        raise UsageError(f"{host} is reached from other machines, and there is no key", hint="give --api-key-file, or listen on 127.0.0.1")
    names = ["127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host, *allowed_hosts]
    security = TransportSecuritySettings(
        allowed_hosts=[entry for name in names for entry in (name, f"{name}:*")],
        allowed_origins=[f"http://{name}:*" for name in names[:3]],
    )
    app = mcp_server(registry).streamable_http_app(streamable_http_path=PATH, host=host, transport_security=security)
    return _Keyed(app, key_digests) if key_digests else app


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Keyed:
    """Lets nothing of HTTP through without a key, whatever the path."""

    def __init__(self, app: _App, key_digests: Sequence[bytes]) -> None:
        self._app, self._digests = app, key_digests

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan" and not self._has_key(scope):
            await send(
                {"type": "http.response.start", "status": 401, "headers": [(b"www-authenticate", b"Bearer"), (b"content-length", b"0")]}
            )
            await send({"type": "http.response.body", "body": b""})
            return
        await self._app(scope, receive, send)

    def _has_key(self, scope: Any) -> bool:
        sent = [value for name, value in scope.get("headers", []) if name == b"authorization"]
        if len(sent) != 1 or not sent[0].lower().startswith(b"bearer "):
            return False
        digest = hashlib.sha256(sent[0][7:].strip()).digest()
        # Every key is compared, so that the time tells nothing of which one was near.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0
