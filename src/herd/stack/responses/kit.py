"""The tools of one response: those that the server runs, by what the body names, and how each is told as an item.

Searches of the web and code are tools of the server's toolbox; a search in files asks its vector stores; servers of MCP are reached as the
body says, at public addresses alone unless the operator allows more. What a function of the client's does is the client's matter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import urlsplit

from herd.base.errors import HerdError
from herd.stack.answers import new_id
from herd.stack.errors import RequestError
from herd.stack.responses.items import CODE, FILE_SEARCH, WEB_SEARCH
from herd.stack.responses.output import ItemDict
from herd.stack.responses.types import CodeInterpreterIn, FileSearchIn, McpApprovalIn, McpFilterIn, McpIn, WebSearchIn
from herd.store.filters import read_filter
from herd.tools.mcp.client import McpConnection
from herd.tools.mcp.config import McpServerConfig
from herd.tools.mcp.pins import RemoteTool
from herd.tools.mcp.tools import result_of, visible
from herd.tools.tool import NAME, Taint, Tool, ToolContext, ToolLimits, ToolResult
from herd.tools.toolbox import Toolbox
from herd.tools.web.address import WebPolicy, read_url

ItemKind = Literal["file_search_call", "web_search_call", "code_interpreter_call", "mcp_call"]
DEFAULT_RESULTS = 10
_QUERY: Mapping[str, Any] = {
    "type": "object",
    "properties": {"query": {"type": "string", "description": "What to look for.", "minLength": 1, "maxLength": 2000}},
    "required": ["query"],
    "additionalProperties": False,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A passage of a file in a vector store."""

    file_id: str
    filename: str
    text: str
    score: float
    attributes: Mapping[str, Any]


@runtime_checkable
class VectorSearch(Protocol):
    """Searches in vector stores of an owner. Raises NotFoundError for a store that is none of theirs."""

    async def check(self, owner: str, store_ids: Sequence[str]) -> None:
        """Whether there are such stores."""
        ...

    async def __call__(
        self, owner: str, store_ids: Sequence[str], query: str, *, limit: int, filters: Mapping[str, Any] | None, least: float
    ) -> list[Found]:
        """The best passages, best first."""
        ...


class FileSearchTool:
    """Finds passages in the vector stores that the body names."""

    name = FILE_SEARCH
    description = "Searches the files of this conversation and returns the best passages with their sources."
    parameters = _QUERY
    taint = Taint(reads_untrusted=True, reads_private=True)
    limits = ToolLimits(timeout_s=60.0)

    def __init__(self, search: VectorSearch, owner: str, asked: FileSearchIn) -> None:
        self._search, self._owner, self._asked = search, owner, asked

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Search for `query`."""
        asked, ranking = self._asked, self._asked.ranking_options
        found = await self._search(
            self._owner,
            asked.vector_store_ids,
            arguments["query"],
            limit=asked.max_num_results or DEFAULT_RESULTS,
            filters=asked.filters,
            least=(ranking and ranking.score_threshold) or 0.0,
        )
        results = [
            {"file_id": one.file_id, "filename": one.filename, "score": one.score, "text": one.text, "attributes": dict(one.attributes)}
            for one in found
        ]
        passages = [
            {"text": one.text, "source": one.filename, "score": one.score, "title": one.filename, "document_id": one.file_id}
            for one in found
        ]
        return ToolResult(text=json.dumps(passages, ensure_ascii=False), data={"passages": passages, "results": results})


class DomainSearchTool:
    """The server's web search, with the results of some domains alone."""

    def __init__(self, inner: Tool, domains: Sequence[str]) -> None:
        self._inner, self._domains = inner, tuple(domain.lower().strip(".") for domain in domains)
        self.name, self.description, self.parameters = inner.name, inner.description, inner.parameters
        self.taint, self.limits = inner.taint, inner.limits

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Search, and leave out what is elsewhere."""
        result = await self._inner.call(arguments, context)
        if not isinstance(result.data, Mapping):
            return result
        kept = [one for one in result.data.get("top_k", ()) if self._is_in(str(one.get("url", "")))]
        data = {**result.data, "top_k": kept}
        return ToolResult(text=json.dumps(data, ensure_ascii=False), data=data, ok=result.ok)

    def _is_in(self, url: str) -> bool:
        try:
            host = (urlsplit(url).hostname or "").lower()
        except ValueError:
            return False
        return any(host == domain or host.endswith("." + domain) for domain in self._domains)


class ServerTool:
    """A tool of an MCP server that the body names."""

    limits = ToolLimits(timeout_s=60.0)
    taint = Taint(reads_untrusted=True, acts_outside=True)
    """What it gives is a stranger's, and it may do something; with private files in the conversation the Rule of Two asks a person."""

    def __init__(self, connection: McpConnection, label: str, name: str, remote: Mapping[str, Any]) -> None:
        self._connection, self.label, self.name, self.remote_name = connection, label, name, str(remote["name"])
        self.description = visible(str(remote.get("description") or ""))[:4000]
        schema = remote.get("input_schema")
        self.parameters: Mapping[str, Any] = schema if isinstance(schema, dict) else {"type": "object", "properties": {}}

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Call it."""
        return result_of(await self._connection.call(self.remote_name, arguments))


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """How a tool's calls are told."""

    item: ItemKind
    label: str = "herd"
    name: str = ""


@dataclass(kw_only=True, slots=True)
class Kit:
    """The tools of a response, by the names that the model calls them by. `close` it."""

    tools: list[Tool] = field(default_factory=list[Tool])
    kinds: dict[str, Kind] = field(default_factory=dict[str, Kind])
    ask: set[str] = field(default_factory=set[str])
    """Tools whose calls wait for a yes."""
    listed: list[ItemDict] = field(default_factory=list[ItemDict])
    """Items that tell what MCP servers have."""
    connections: list[McpConnection] = field(default_factory=list[McpConnection])

    async def close(self) -> None:
        """End the connections."""
        for connection in self.connections:
            await connection.close()

    def add(self, tool: Tool, kind: Kind, *, ask: bool = False) -> None:
        """One more tool."""
        self.tools.append(tool)
        self.kinds[tool.name] = kind
        if ask:
            self.ask.add(tool.name)


def is_server_tool(tool: Any) -> bool:
    """Whether the server runs it."""
    return isinstance(tool, (FileSearchIn, WebSearchIn, CodeInterpreterIn, McpIn))


class Outfitter:
    """Makes kits. `vectors` None: no vector stores here; `policy` says where MCP servers of bodies may be."""

    def __init__(self, toolbox: Toolbox, vectors: VectorSearch | None, policy: WebPolicy) -> None:
        self._toolbox, self._vectors, self._policy = toolbox, vectors, policy

    async def kit(self, owner: str, tools: Sequence[Any], taken: Sequence[str], history: Sequence[ItemDict]) -> Kit:
        """The kit of a body's tools; `taken` are names of the client's functions. Raises RequestError for a tool that is not here."""
        kit = Kit()
        try:
            for number, tool in enumerate(tools):
                place = f"tools[{number}]"
                if isinstance(tool, FileSearchIn):
                    kit.add(await self._file_search(owner, tool, place), Kind(item="file_search_call", name=FILE_SEARCH))
                elif isinstance(tool, WebSearchIn):
                    kit.add(self._web_search(tool, place), Kind(item="web_search_call", name=WEB_SEARCH))
                elif isinstance(tool, CodeInterpreterIn):
                    kit.add(self._own(CODE, "builtin::code_interpreter", place), Kind(item="code_interpreter_call", name=CODE))
                elif isinstance(tool, McpIn):
                    await self._server(kit, tool, [*taken, *kit.kinds], history, place)
            twice = next(
                (tool.name for number, tool in enumerate(kit.tools) if tool.name in [*taken, *[t.name for t in kit.tools[:number]]]), None
            )
            if twice is not None:
                raise RequestError("usage", f"two tools are named {twice!r}", hint="rename the function, or leave one out", param="tools")
        except BaseException:
            await kit.close()
            raise
        return kit

    def _own(self, name: str, group: str, place: str) -> Tool:
        try:
            return self._toolbox.registry.find(name)
        except HerdError as error:
            why = self._toolbox.missing.get(group, "it is not set up")
            raise RequestError("unsupported", f"{place}: this server has no {name}", hint=why[:500], param=place) from error

    def _web_search(self, asked: WebSearchIn, place: str) -> Tool:
        inner = self._own(WEB_SEARCH, "builtin::websearch", place)
        domains = None if asked.filters is None else asked.filters.allowed_domains
        return DomainSearchTool(inner, domains) if domains else inner

    async def _file_search(self, owner: str, asked: FileSearchIn, place: str) -> Tool:
        if self._vectors is None:
            raise RequestError("unsupported", f"{place}: this server has no vector stores", hint="start it with a --state-dir", param=place)
        await self._vectors.check(owner, asked.vector_store_ids)
        if asked.filters is not None:
            read_filter(asked.filters)
        return FileSearchTool(self._vectors, owner, asked)

    async def _server(self, kit: Kit, asked: McpIn, taken: Sequence[str], history: Sequence[ItemDict], place: str) -> None:
        """The tools of an MCP server, from its listing in the conversation or as it tells them now."""
        connection = self._connection(asked, place)
        kit.connections.append(connection)
        told = next((item for item in history if item["type"] == "mcp_list_tools" and item["server_label"] == asked.server_label), None)
        if told is None:
            told = {"type": "mcp_list_tools", "id": new_id("mcpl_"), "server_label": asked.server_label, "tools": [], "error": None}
            try:
                told["tools"] = [_told(remote) for remote in await connection.list_tools()]
            except HerdError as error:
                told["error"] = error.message
            kit.listed.append(told)
        for remote in told["tools"]:
            if not _is_allowed(asked, remote):
                continue
            name = str(remote["name"])
            if name in taken or not NAME.match(name):
                name = f"{re.sub(r'[^A-Za-z0-9_]', '_', asked.server_label)}__{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}"[:64]
            if name in kit.kinds or name in taken or not NAME.match(name):
                continue
            tool = ServerTool(connection, asked.server_label, name, remote)
            kind = Kind(item="mcp_call", label=asked.server_label, name=str(remote["name"]))
            kit.add(tool, kind, ask=needs_approval(asked, str(remote["name"])))

    def _connection(self, asked: McpIn, place: str) -> McpConnection:
        if asked.server_url is None:
            raise RequestError("usage", f"{place} has no server_url", hint="connectors of OpenAI's are not here: give a URL", param=place)
        headers = dict(asked.headers or {})
        if asked.authorization is not None:
            headers["Authorization"] = f"Bearer {asked.authorization}"
        label = re.sub(r"[^A-Za-z0-9]+", "-", asked.server_label).strip("-") or "server"
        try:
            address = read_url(asked.server_url, self._policy)
            return McpConnection(McpServerConfig(name="s" + label[:60], url=str(address), headers=headers), policy=self._policy)
        except HerdError as error:
            raise RequestError("usage", f"{place}: {error.message}", hint=error.hint, param=place) from error


def _told(remote: RemoteTool) -> dict[str, Any]:
    return {"name": remote.name, "description": visible(remote.description), "input_schema": dict(remote.parameters), "annotations": None}


def _is_allowed(asked: McpIn, remote: Mapping[str, Any]) -> bool:
    allowed = asked.allowed_tools
    names = allowed.tool_names if isinstance(allowed, McpFilterIn) else allowed
    return names is None or remote["name"] in names


def needs_approval(asked: McpIn, name: str) -> bool:
    """Whether a call waits for a yes. What nobody said is not to be asked for is asked for."""
    given = asked.require_approval
    if not isinstance(given, McpApprovalIn):
        return given != "never"
    named = partial(_names, name)
    if named(given.never) and not named(given.always):
        return False
    return not (given.always is not None and given.never is None and not named(given.always))


def _names(name: str, given: McpFilterIn | None) -> bool:
    return given is not None and given.tool_names is not None and name in given.tool_names
