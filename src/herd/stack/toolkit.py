"""The server's tools: those of its installation, for everyone, and MCP servers that a key registered, for that key alone.

The installation's are put together when someone first asks, so that a start neither waits for a jail nor for a network. A registered server
is a stranger's word: its address has to be public unless the operator allowed its network, its tools are agreed to as they were at the
registration, and one that changes is not called before it is registered anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from herd.base.errors import ConfigError, HerdError, NotFoundError
from herd.stack.errors import RequestError
from herd.stack.registrations import Registrations
from herd.tools.mcp.client import McpConnection
from herd.tools.mcp.config import McpServerConfig
from herd.tools.mcp.pins import AgreedTools, RemoteTool
from herd.tools.mcp.tools import mcp_group
from herd.tools.registry import Registry, ToolGroup
from herd.tools.tool import Tool, ToolContext, ToolResult
from herd.tools.toolbox import Toolbox, ToolboxConfig, open_toolbox
from herd.tools.web.address import PORTS, IPNetwork, WebPolicy, pinned, read_url

MCP_PROVIDER = "model-context-protocol"
OWN_PROVIDER = "herd-tools"
TIMEOUT_S = 30.0
_MAX_HEADERS, _MAX_HEADER_CHARS = 32, 4096
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}\Z")
_REFUSED_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection"})


def networks_of(texts: Sequence[str]) -> tuple[IPNetwork, ...]:
    """Networks as a command line names them. Raises ConfigError."""
    found: list[IPNetwork] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text.strip()))
        except ValueError as error:
            raise ConfigError(f"{text!r:.60} is no network", hint="write it as 127.0.0.0/8 or 10.1.2.3/32") from error
    return tuple(found)


@dataclass(slots=True, eq=False)
class _Own:
    """What one key registered, as far as it is connected."""

    registry: Registry = field(default_factory=Registry)
    connections: dict[str, McpConnection] = field(default_factory=dict[str, McpConnection])
    missing: dict[str, str] = field(default_factory=dict[str, str])
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundTool:
    """A tool, and the group that it is in."""

    tool: Tool
    group: str


class ServerTools:
    """All tools of a server. For one event loop; close it there.

    Args:
        registrations: where registered groups are kept, with what was agreed to of each.
        networks: private networks whose MCP servers may be registered.
        config: which tools the installation has; default: by its settings.
    """

    def __init__(
        self,
        registrations: Registrations,
        *,
        networks: Sequence[IPNetwork] = (),
        config: ToolboxConfig | None = None,
    ) -> None:
        self._registrations, self._config = registrations, config
        ports = frozenset(range(1, 65536)) if networks else PORTS
        self._policy = WebPolicy(ports=ports, allowed_networks=tuple(networks))
        self._box: Toolbox | None = None
        self._opening = asyncio.Lock()
        self._own: dict[str, _Own] = {}

    @property
    def policy(self) -> WebPolicy:
        """Where servers that clients name may be."""
        return self._policy

    async def box(self) -> Toolbox:
        """The installation's tools."""
        async with self._opening:
            if self._box is None:
                config = self._config or ToolboxConfig.from_settings(warm=0)
                self._box = await open_toolbox(config)
            return self._box

    async def close(self) -> None:
        """End interpreters and connections."""
        for own in self._own.values():
            for connection in own.connections.values():
                await connection.close()
        self._own.clear()
        box, self._box = self._box, None
        if box is not None:
            await box.close()

    async def _of(self, owner: str) -> _Own:
        """A key's own groups, connected where they can be."""
        own = self._own.setdefault(owner, _Own())
        async with own.lock:
            for name, record in self._registrations.all(owner, "toolgroups").items():
                if name not in own.connections:
                    try:
                        await self._connect(own, name, record["uri"], record["headers"], record.get("agreed") or {})
                        own.missing.pop(name, None)
                    except HerdError as error:
                        own.missing[name] = error.message
        return own

    async def _connect(
        self, own: _Own, name: str, uri: str, headers: Mapping[str, str], agreed: Mapping[str, str] | None
    ) -> Mapping[str, str]:
        """Add a server's group, of the tools that were agreed to; None agrees to them all as they are. What is agreed to then."""
        connection = await self._connection(_server_name(name), uri, headers)
        try:
            if agreed is None:
                agreed = {tool.name: tool.digest for tool in await connection.list_tools()}
            group, left_out = await mcp_group(connection, AgreedTools(agreed))
            aliases = {tool.name.partition("__")[2]: tool.name for tool in group.tools}
            group = replace(group, name=name, aliases=aliases, provider="mcp", metadata={"server": uri})
            await self._check_free(group)
            own.registry.register(group)
        except BaseException:
            await connection.close()
            raise
        own.connections[name] = connection
        own.missing |= left_out
        return agreed

    async def _check_free(self, group: ToolGroup) -> None:
        """Raises RequestError if a tool of the group would shadow one of the installation."""
        shared = (await self.box()).registry
        taken = {tool.name for tool in shared.tools()}
        twice = next((tool.name for tool in group.tools if tool.name in taken), None)
        if twice is not None:
            raise RequestError("conflict", f"there is a tool {twice!r} already", hint="choose another toolgroup_id")

    async def _connection(self, server: str, uri: str, headers: Mapping[str, str]) -> McpConnection:
        """A connection by the policy. Raises DeniedAddressError, ToolError before anything is sent."""
        address = read_url(uri, self._policy)
        await pinned(address.host, address.port, self._policy)
        config = McpServerConfig(name=server, url=str(address), headers=dict(headers), timeout_s=TIMEOUT_S)
        return McpConnection(config, policy=self._policy)

    async def groups(self, owner: str) -> list[dict[str, Any]]:
        """All groups that a key can use, as the Llama Stack tells them. Asks no network."""
        shared = [_group_object(group.name, _provider(group), _place(group), None) for group in (await self.box()).registry.groups]
        records = self._registrations.all(owner, "toolgroups")
        return [*shared, *(_group_object(name, MCP_PROVIDER, record["uri"], record["args"]) for name, record in records.items())]

    async def missing(self, owner: str) -> dict[str, str]:
        """Why groups and tools that could be there are not."""
        own = self._own.get(owner)
        return (await self.box()).missing | ({} if own is None else own.missing)

    async def tools(self, owner: str, group: str | None = None) -> list[FoundTool]:
        """The tools of a group, or all that a key can use. Raises NotFoundError."""
        shared, own = (await self.box()).registry, (await self._of(owner)).registry
        found = [FoundTool(tool=tool, group=one.name) for registry in (shared, own) for one in registry.groups for tool in one.tools]
        if group is None:
            return found
        if group not in {one["identifier"] for one in await self.groups(owner)}:
            missing = (await self.missing(owner)).get(group)
            raise NotFoundError(
                f"there is no tool group {group!r:.100}" + (f": {missing}" if missing else ""),
                hint="GET /v1/toolgroups lists those there are",
            )
        return [one for one in found if one.group == group]

    async def _registry_with(self, owner: str, name: str) -> Registry:
        """The registry that a tool is in, by its own name before any alias. Raises NotFoundError."""
        shared, own = (await self.box()).registry, (await self._of(owner)).registry
        for registry in (shared, own):
            if any(tool.name == name for tool in registry.tools()):
                return registry
        for registry in (own, shared):
            try:
                registry.find(name)
            except NotFoundError:
                continue
            return registry
        shared.find(name)
        raise AssertionError(name)

    async def find(self, owner: str, name: str) -> FoundTool:
        """A tool by name or alias. Raises NotFoundError."""
        registry = await self._registry_with(owner, name)
        tool = registry.find(name)
        return FoundTool(tool=tool, group=registry.group_of(tool.name))

    async def invoke(self, owner: str, name: str, arguments: Any) -> ToolResult:
        """Call a tool as a key; each has an interpreter and files of its own. Raises NotFoundError."""
        registry = await self._registry_with(owner, name)
        session = "api-" + hashlib.sha256(owner.encode()).hexdigest()[:32]
        return await registry.call(name, arguments, ToolContext(session_id=session))

    async def list_remote(self, uri: str) -> list[RemoteTool]:
        """What an MCP server offers, which may be registered or not. Raises DeniedAddressError, ToolError."""
        connection = await self._connection("listed", uri, {})
        try:
            return await connection.list_tools()
        finally:
            await connection.close()

    async def register(self, owner: str, name: str, uri: str, args: Mapping[str, Any]) -> None:
        """Register an MCP server as a group, and agree to its tools as they are. Raises RequestError, DeniedAddressError, ToolError."""
        if not self._registrations.outlives_a_restart:
            raise RequestError("conflict", "this server keeps no state", hint="start it with a --state-dir")
        if any(group["identifier"] == name for group in await self.groups(owner)):
            raise RequestError("conflict", f"there is a tool group {name!r} already", hint="unregister it first", param="toolgroup_id")
        headers = _headers(args)
        own = await self._of(owner)
        async with own.lock:
            agreed = await self._connect(own, name, uri, headers, None)
            told = {key: value for key, value in args.items() if key != "headers"}
            record = {"uri": uri, "headers": headers, "args": told, "agreed": dict(agreed)}
            try:
                await asyncio.to_thread(self._registrations.put, owner, "toolgroups", name, record)
            except BaseException:
                await self._forget(own, name)
                raise

    async def unregister(self, owner: str, name: str) -> None:
        """Take a group of a key away. Raises NotFoundError, RequestError for one of the installation."""
        if any(group.name == name for group in (await self.box()).registry.groups):
            raise RequestError("forbidden", f"the tool group {name!r} is the installation's", hint="only registered groups can be deleted")
        if not await asyncio.to_thread(self._registrations.drop, owner, "toolgroups", name):
            raise NotFoundError(f"there is no tool group {name!r:.100}", hint="GET /v1/toolgroups lists those there are")
        own = self._own.get(owner)
        if own is not None:
            async with own.lock:
                await self._forget(own, name)

    async def _forget(self, own: _Own, name: str) -> None:
        own.missing.pop(name, None)
        connection = own.connections.pop(name, None)
        if connection is not None:
            own.registry.unregister(name)
            await connection.close()


def _provider(group: ToolGroup) -> str:
    return OWN_PROVIDER if group.provider == "herd" else MCP_PROVIDER


def _place(group: ToolGroup) -> str | None:
    where = group.metadata.get("server")
    return str(where) if where and str(where).startswith(("http://", "https://")) else None


def _group_object(name: str, provider: str, uri: str | None, args: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "identifier": name,
        "type": "tool_group",
        "provider_id": provider,
        "provider_resource_id": name,
        "mcp_endpoint": None if uri is None else {"uri": uri},
        "args": None if args is None else dict(args),
    }


def _server_name(group: str) -> str:
    """A group's name as the beginning of its tools' names: `mcp::web-search` is `web-search`."""
    name = re.sub(r"[^A-Za-z0-9-]+", "_", group.removeprefix("mcp::")).strip("_")[:40] or "mcp"
    return name if name[0].isalpha() else "m" + name


def _headers(args: Mapping[str, Any]) -> dict[str, str]:
    """The headers that a registration gives. Raises RequestError for what is none."""
    given: Any = args.get("headers") or {}
    if not isinstance(given, dict) or len(given) > _MAX_HEADERS:  # pyright: ignore[reportUnknownArgumentType]
        raise RequestError(
            "usage", "args.headers is no object of a few headers", hint='write {"Authorization": "Bearer ..."}', param="args"
        )
    found: dict[str, str] = {}
    for name, value in given.items():  # pyright: ignore[reportUnknownVariableType]
        plain = isinstance(value, str) and len(value) <= _MAX_HEADER_CHARS and value.isprintable() and value.isascii()
        if not plain or not _HEADER.match(str(name)) or str(name).lower() in _REFUSED_HEADERS:  # pyright: ignore[reportUnknownArgumentType]
            raise RequestError(
                "usage", f"args.headers: {str(name)!r:.60} is no header that can be sent", hint="send plain ASCII", param="args"
            )  # pyright: ignore[reportUnknownArgumentType]
        found[str(name)] = str(value)  # pyright: ignore[reportUnknownArgumentType]
    return found
