"""The tools of this installation, put together from the settings: what there is, and for what there is not, why.

Keys of services come from the environment: BRAVE_SEARCH_API_KEY, TAVILY_SEARCH_API_KEY, WOLFRAM_ALPHA_API_KEY. Group names are those of the
Llama Stack.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from herd.base import settings
from herd.base.errors import HerdError
from herd.tools.code.choose import choose
from herd.tools.code.session import CodeSessions
from herd.tools.code.tool import CodeInterpreterTool
from herd.tools.files.index import FileIndex
from herd.tools.files.root import Root
from herd.tools.files.tools import ListFilesTool, ReadFileTool, SearchFilesTool
from herd.tools.jail.limits import JailLimits
from herd.tools.knowledge import ClockTool, KnowledgeSearchTool
from herd.tools.mcp.client import McpConnection
from herd.tools.mcp.config import McpServerConfig, load_servers
from herd.tools.mcp.pins import Pins
from herd.tools.mcp.tools import mcp_group
from herd.tools.registry import Registry, ToolGroup
from herd.tools.tool import Retriever
from herd.tools.web.fetch_tool import FetchTool
from herd.tools.web.search import Brave, Offline, SearchProvider, SearXNG, Tavily, WebSearchTool
from herd.tools.web.wolfram import WolframAlphaTool

KEYS = ("brave_search_api_key", "tavily_search_api_key", "wolfram_alpha_api_key")


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolboxConfig:
    """Which tools to put together. `from_settings` reads it from where settings are kept."""

    keys: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    searxng_url: str = ""
    search_index: str = ""
    files_root: str = ""
    code: bool = True
    code_limits: JailLimits = field(default_factory=JailLimits)
    warm: int = 1
    """Interpreters that wait, started."""
    max_sessions: int = 32
    servers: tuple[McpServerConfig, ...] = ()
    pins_path: Path | None = None

    @classmethod
    def from_settings(
        cls, *, files_root: str | None = None, search_index: str | None = None, warm: int = 1, code: bool = True
    ) -> ToolboxConfig:
        """By flag, variable, `herd.toml` and `mcp.toml`."""
        return cls(
            keys={name: os.environ[name.upper()] for name in KEYS if os.environ.get(name.upper())},
            searxng_url=settings.value("searxng_url"),
            search_index=settings.value("search_index", search_index),
            files_root=settings.value("files_root", files_root),
            warm=warm,
            code=code,
            servers=tuple(load_servers()),
        )


class Toolbox:
    """The registry of the tools that there are, `missing` with a reason for each group that is not, and what must be closed."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.missing: dict[str, str] = {}
        self.sessions: CodeSessions | None = None
        self._connections: list[McpConnection] = []

    async def close(self) -> None:
        """End interpreters and connections."""
        for connection in self._connections:
            await connection.close()
        if self.sessions is not None:
            await asyncio.to_thread(self.sessions.close)

    def _add(self, name: str, description: str, *tools: object, aliases: Mapping[str, str] | None = None) -> None:
        self.registry.register(ToolGroup(name=name, description=description, tools=tools, aliases=aliases or {}))  # type: ignore[arg-type]

    def _absent(self, name: str, error: HerdError) -> None:
        self.missing[name] = f"{error.message}; {error.hint}" if error.hint else error.message


async def open_toolbox(config: ToolboxConfig, *, retriever: Retriever | None = None) -> Toolbox:
    """Put the tools together. What cannot be is left out with its reason, and nothing else is stopped by it.

    Args:
        config: what to have.
        retriever: what `knowledge_search` asks; default: the index of files, if there is one.
    """
    box = Toolbox()
    box._add("builtin::clock", "Date and time", ClockTool())
    box._add("builtin::fetch", "Pages by their URL", FetchTool())
    index = _index(box, config)
    provider = _provider(config, index)
    if provider is None:
        box.missing["builtin::websearch"] = (
            "no provider; set BRAVE_SEARCH_API_KEY, TAVILY_SEARCH_API_KEY, HERD_SEARXNG_URL or HERD_SEARCH_INDEX"
        )
    else:
        aliases = {"brave_search": "web_search"}
        box._add("builtin::websearch", f"Web search by {provider.name}", WebSearchTool(provider), aliases=aliases)
    wolfram = config.keys.get("wolfram_alpha_api_key")
    if wolfram:
        box._add("builtin::wolfram_alpha", "Computed answers", WolframAlphaTool(wolfram))
    else:
        box.missing["builtin::wolfram_alpha"] = "no key; set WOLFRAM_ALPHA_API_KEY"
    if retriever is not None or index is not None:
        box._add("builtin::rag", "Passages of documents", KnowledgeSearchTool(retriever or index))  # type: ignore[arg-type]
    _files(box, config)
    await _code(box, config)
    await _remote(box, config.servers, Pins(config.pins_path))
    return box


def _index(box: Toolbox, config: ToolboxConfig) -> FileIndex | None:
    if not config.search_index:
        return None
    try:
        return FileIndex(config.search_index)
    except HerdError as error:
        box._absent("builtin::rag", error)
        return None


def _provider(config: ToolboxConfig, index: FileIndex | None) -> SearchProvider | None:
    """The first that is configured: a key is a wish, then one's own server, then the index."""
    if config.keys.get("brave_search_api_key"):
        return Brave(config.keys["brave_search_api_key"])
    if config.keys.get("tavily_search_api_key"):
        return Tavily(config.keys["tavily_search_api_key"])
    if config.searxng_url:
        return SearXNG(config.searxng_url)
    return Offline(index) if index is not None else None


def _files(box: Toolbox, config: ToolboxConfig) -> None:
    if not config.files_root:
        box.missing["builtin::files"] = "no folder is shared; set HERD_FILES_ROOT"
        return
    try:
        root = Root(config.files_root)
    except HerdError as error:
        box._absent("builtin::files", error)
        return
    box._add("builtin::files", f"Files below {root.folder.name}", ListFilesTool(root), ReadFileTool(root), SearchFilesTool(root))


async def _code(box: Toolbox, config: ToolboxConfig) -> None:
    name = "builtin::code_interpreter"
    if not config.code:
        box.missing[name] = "not asked for"
        return
    try:
        spec = await asyncio.to_thread(choose, config.code_limits)
    except HerdError as error:
        box._absent(name, error)
        return
    box.sessions = CodeSessions(spec, warm=config.warm, max_sessions=config.max_sessions)
    box._add(name, f"Python in a jail ({spec.kind})", CodeInterpreterTool(box.sessions))


async def _remote(box: Toolbox, servers: Sequence[McpServerConfig], pins: Pins) -> None:
    for config in servers:
        connection = McpConnection(config)
        box._connections.append(connection)
        try:
            group, left_out = await mcp_group(connection, pins)
        except HerdError as error:
            box._absent(f"mcp::{config.name}", error)
            continue
        box.registry.register(group)
        for tool, reason in left_out.items():
            box.missing[tool] = f"{reason}; look at it and agree: herd tools agree {config.name}"
