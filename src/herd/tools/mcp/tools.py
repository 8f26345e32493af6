"""Tools of an MCP server as tools of herd: `SERVER__TOOL`, offered only as they were agreed to, checked again before each call."""

from __future__ import annotations

import base64
import binascii
import unicodedata
from collections.abc import Mapping
from typing import Any

import mcp_types as types

from herd.base.errors import FormatError
from herd.tools.arguments import check_schema
from herd.tools.errors import ConsentError
from herd.tools.mcp.client import McpConnection
from herd.tools.mcp.pins import Agreements, RemoteTool
from herd.tools.registry import ToolGroup
from herd.tools.tool import NAME, Attachment, Taint, ToolContext, ToolLimits, ToolResult

_MAX_NAME = 64
_MAX_DESCRIPTION_CHARS = 4000
_ENDINGS = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp", "audio/wav": "wav", "audio/mpeg": "mp3"}


class McpTool:
    """One tool of a server."""

    def __init__(self, connection: McpConnection, pins: Agreements, remote: RemoteTool) -> None:
        self._connection, self._pins, self._remote = connection, pins, remote
        self.name = exposed_name(connection.config.name, remote.name)
        self.description = visible(remote.description)[:_MAX_DESCRIPTION_CHARS]
        self.parameters: Mapping[str, Any] = remote.parameters
        self.taint: Taint = connection.config.taint
        self.limits = ToolLimits(timeout_s=connection.config.timeout_s)

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Call it, if it still is what was agreed to. Raises ConsentError, ToolError."""
        server = self._connection.config.name
        now = next((tool for tool in await self._connection.list_tools(fresh=False) if tool.name == self._remote.name), None)
        if now is None:
            raise ConsentError(f"the MCP server {server!r} no longer has the tool {self._remote.name!r}", hint="use another tool")
        if now.digest != self._remote.digest or self._pins.state(server, now) != "agreed":
            raise ConsentError(
                f"the MCP server {server!r} changed its tool {self._remote.name!r} since it was agreed to",
                hint=f"a person must look at it: `herd tools agree {server}`",
            )
        return result_of(await self._connection.call(self._remote.name, arguments))


def exposed_name(server: str, tool: str) -> str:
    """The name that a model calls a tool by."""
    return f"{server}__{tool}"


def visible(text: str) -> str:
    """A description without characters that a person who agrees to it would not see: tags, joiners, direction marks, controls."""
    kept = (character for character in text if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    return "".join(kept)


async def mcp_group(connection: McpConnection, pins: Agreements) -> tuple[ToolGroup, dict[str, str]]:
    """The group of a server's tools that were agreed to, and why each other one is not in it."""
    server = connection.config.name
    tools: list[McpTool] = []
    left_out: dict[str, str] = {}
    for remote in await connection.list_tools():
        state = pins.state(server, remote)
        name = exposed_name(server, remote.name)
        if state != "agreed":
            left_out[name] = f"{state}: nobody agreed to it yet" if state == "new" else "changed since it was agreed to"
            continue
        try:
            if not NAME.match(name) or len(name) > _MAX_NAME:
                raise FormatError(f"its name is no name of at most {_MAX_NAME} letters, digits, '_' and '-'")
            check_schema(name, remote.parameters)
        except FormatError as error:
            left_out[visible(name)[:_MAX_NAME]] = error.message
            continue
        tools.append(McpTool(connection, pins, remote))
    where = connection.config.url or connection.config.command[0]
    return ToolGroup(
        name=f"mcp::{server}", description=f"MCP server {server}", tools=tuple(tools), provider="mcp", metadata={"server": where}
    ), left_out


def result_of(answer: types.CallToolResult) -> ToolResult:
    """What a server's tool gave, as a result of herd's."""
    texts: list[str] = []
    files: list[Attachment] = []
    for number, block in enumerate(answer.content, start=1):
        if isinstance(block, types.TextContent):
            texts.append(block.text)
        elif isinstance(block, (types.ImageContent, types.AudioContent)):
            texts.append(_attach(files, block.data, block.mime_type, number))
        elif isinstance(block, types.EmbeddedResource):
            resource = block.resource
            if isinstance(resource, types.TextResourceContents):
                texts.append(resource.text)
            else:
                texts.append(_attach(files, resource.blob, resource.mime_type or "application/octet-stream", number))
        else:
            texts.append(f"[resource: {block.uri}]")
    text = "\n".join(text for text in texts if text)
    return ToolResult(
        text=text,
        ok=not answer.is_error,
        error_code="mcp_tool" if answer.is_error else None,
        data=answer.structured_content,
        attachments=tuple(files),
    )


def _attach(files: list[Attachment], data: str, mime_type: str, number: int) -> str:
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return "[an attachment that is damaged]"
    kind = mime_type.partition(";")[0].strip().lower()
    kind = kind if kind in _ENDINGS else "application/octet-stream"
    file = Attachment(name=f"attachment-{number}.{_ENDINGS.get(kind, 'bin')}", mime_type=kind, data=raw)
    files.append(file)
    return f"[attached: {file.name}]"
