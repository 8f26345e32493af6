"""herd as an MCP server for the SDK's client: over stdio and HTTP, with a key, and not for a page in a browser."""

# ruff: noqa: SIM117

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import httpx
import httpx2
import mcp_types as types
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from test_mcp_client import Served  # pyright: ignore[reportMissingImports]

from herd.base.errors import UsageError
from herd.tools.mcp.server import http_app
from herd.tools.registry import Registry, ToolGroup
from herd.tools.tool import Attachment, Taint, ToolContext, ToolLimits, ToolResult

PICTURE = Attachment(name="p.png", mime_type="image/png", data=b"\x89PNG")
FILE = Attachment(name="out/d.csv", mime_type="text/csv", data=b"1,2")


def digests(*keys: str) -> list[bytes]:
    return [hashlib.sha256(key.encode()).digest() for key in keys]


class Shout:
    name = "shout"
    description = "Says it loudly."
    parameters: Mapping[str, Any] = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    taint = Taint()
    limits = ToolLimits()

    def __init__(self) -> None:
        self.sessions: list[str] = []

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        self.sessions.append(context.session_id)
        if arguments["text"] == "fail":
            raise RuntimeError("internal 0xdeadbeef")
        return ToolResult(text=arguments["text"].upper(), data={"length": len(arguments["text"])}, attachments=(PICTURE, FILE))


def registry(tool: Shout | None = None) -> Registry:
    return Registry([ToolGroup(name="t", description="", tools=(tool or Shout(),))])


async def check(client: Client) -> None:
    listed = await client.list_tools()
    assert [(tool.name, tool.description) for tool in listed.tools] == [("shout", "Says it loudly.")]
    assert listed.tools[0].input_schema["required"] == ["text"]
    answer = await client.call_tool("shout", {"text": "hi"})
    assert not answer.is_error and answer.structured_content == {"length": 2}
    text, picture, file = answer.content
    assert isinstance(text, types.TextContent) and text.text == "HI"
    assert isinstance(picture, types.ImageContent) and picture.mime_type == "image/png"
    assert isinstance(file, types.EmbeddedResource) and isinstance(file.resource, types.BlobResourceContents)
    assert str(file.resource.uri) == "attachment:///out/d.csv"
    failed = await client.call_tool("shout", {"text": "fail"})
    assert failed.is_error and "0xdeadbeef" not in str(failed)
    for name, arguments in (("shout", {"text": 3}), ("none", {})):
        wrong = await client.call_tool(name, arguments)
        assert wrong.is_error


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_sdks_client_over_http(mode: str) -> None:
    tool = Shout()
    served = Served(http_app(registry(tool)))

    async def main() -> None:
        async with Client(f"http://127.0.0.1:{served.port}/mcp", mode=mode) as client:
            await check(client)
        async with Client(f"http://127.0.0.1:{served.port}/mcp", mode=mode) as client:
            await client.call_tool("shout", {"text": "other"})

    try:
        asyncio.run(main())
    finally:
        served.close()
    assert tool.sessions[-1] not in tool.sessions[:-1], "two clients share no interpreter"


def test_a_key_is_asked_for_on_every_path() -> None:
    served = Served(http_app(registry(), key_digests=digests("k-1", "k-2")))
    base = f"http://127.0.0.1:{served.port}"

    async def main() -> None:
        async with httpx2.AsyncClient(headers={"Authorization": "Bearer k-2"}) as http:
            async with Client(streamable_http_client(f"{base}/mcp", http_client=http)) as client:
                await check(client)

    try:
        asyncio.run(main())
        client = httpx.Client()
        for path in ("/mcp", "/mcp/", "//mcp", "/%6dcp", "/", "/anything"):
            for method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS"):
                for headers in ({}, {"Authorization": "Bearer k-3"}, {"Authorization": "Basic k-1"}, {"Authorization": "Bearer"}):
                    assert client.request(method, base + path, headers=headers).status_code == 401
        client.close()
    finally:
        served.close()


def test_a_page_in_a_browser_cannot_reach_it() -> None:
    """DNS rebinding: the page's name resolves to loopback, but Host and Origin still tell."""
    served = Served(http_app(registry()))
    url = f"http://127.0.0.1:{served.port}/mcp"
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    accept = {"Accept": "application/json, text/event-stream"}
    try:
        assert httpx.post(url, json=body, headers={**accept, "Host": "evil.example"}).status_code in (403, 421)
        assert httpx.post(url, json=body, headers={**accept, "Origin": "http://evil.example"}).status_code in (403, 421)
    finally:
        served.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_beyond_loopback_there_must_be_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="there is no key"):
        http_app(registry(), host=host)
    assert http_app(registry(), host=host, key_digests=digests("k"))


def test_the_sdks_client_over_stdio_to_the_command() -> None:
    environment = {**os.environ, "HERD_CODE_JAIL": "off", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = StdioServerParameters(command=sys.executable, args=["-m", "herd", "tools", "serve"], env=environment)

    async def main() -> None:
        async with Client(command) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert "clock" in names and "fetch_url" in names
            answer = await client.call_tool("clock", {"timezone": "Europe/Berlin"})
            assert not answer.is_error and "Europe/Berlin" in str(answer.content)

    asyncio.run(main())
