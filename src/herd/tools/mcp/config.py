"""Which MCP servers there are: `mcp.toml` in herd's home.

    [servers.files]
    command = ["uvx", "some-mcp-server", "/data"]
    env = { API_TOKEN = "$FILES_TOKEN" }
    taint = ["reads_private"]

    [servers.search]
    url = "https://example.com/mcp"
    headers = { Authorization = "Bearer $SEARCH_TOKEN" }
    tools = ["search"]

A value that begins with `$`, or a word `$NAME` in a header, is taken from the environment, so that no secret stands in the file.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from herd.base.errors import ConfigError, did_you_mean
from herd.base.paths import home
from herd.tools.tool import NAME, Taint

FILE_NAME = "mcp.toml"
_VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
ALL_TAINTS = Taint(reads_untrusted=True, reads_private=True, acts_outside=True)
_TAINTS = tuple(item.name for item in fields(Taint))


@dataclass(frozen=True, kw_only=True, slots=True)
class McpServerConfig:
    """One server: started as a program that speaks over its pipes, or reached over HTTP."""

    name: str
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    tools: tuple[str, ...] = ()
    """The tools to take; all if empty."""
    taint: Taint = ALL_TAINTS
    """What its tools do to a turn. What a server says of itself does not count."""
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not NAME.match(self.name) or "__" in self.name:
            raise ConfigError(f"the MCP server's name {self.name!r} is none", hint="use letters, digits and single '_'")
        if bool(self.command) == bool(self.url):
            raise ConfigError(f"the MCP server {self.name!r} needs either a command or a url", hint="give one of the two")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"the url of the MCP server {self.name!r} is not of http or https", hint="correct it")
        if not 0 < self.timeout_s <= 3600:
            raise ConfigError(f"timeout_s of the MCP server {self.name!r} is {self.timeout_s}", hint="above 0 and at most 3600")


def servers_file() -> Path:
    """Where the servers are listed."""
    return home() / FILE_NAME


def load_servers(path: Path | None = None) -> list[McpServerConfig]:
    """The servers of a file, none where it is absent. Raises ConfigError for what it may not hold."""
    path = path or servers_file()
    if not path.is_file():
        return []
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint="correct the file") from error
    servers = data.get("servers", {})
    if set(data) - {"servers"} or not isinstance(servers, dict):
        raise ConfigError(f"{path} holds something beside [servers.NAME]", hint="one table for each server: [servers.NAME]")
    return [_server(path, name, values) for name, values in servers.items()]


def _server(path: Path, name: str, values: Any) -> McpServerConfig:
    known: dict[str, type] = {"command": list, "env": dict, "url": str, "headers": dict, "tools": list, "taint": list, "timeout_s": float}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: servers.{name} is no table", hint=f"write [servers.{name}]")
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{path}: unknown key {key!r} of server {name!r}", hint=did_you_mean(key, known, otherwise=", ".join(known)))
        kind = known[key]
        texts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if not isinstance(value, (int, float) if kind is float else kind) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"{path}: {key} of server {name!r} is of the wrong type", hint=f"{key} is a {kind.__name__} of strings")
    wrong = [taint for taint in values.get("taint", []) if taint not in _TAINTS]
    if wrong:
        raise ConfigError(f"{path}: {wrong[0]!r} is no taint", hint=f"taints: {', '.join(_TAINTS)}")
    options: dict[str, Any] = {}
    if "taint" in values:
        options["taint"] = Taint(**dict.fromkeys(values["taint"], True))
    if "timeout_s" in values:
        options["timeout_s"] = float(values["timeout_s"])
    return McpServerConfig(
        name=name,
        command=tuple(values.get("command", ())),
        env={key: _expanded(path, name, value) for key, value in values.get("env", {}).items()},
        url=values.get("url", ""),
        headers={key: _expanded(path, name, value) for key, value in values.get("headers", {}).items()},
        tools=tuple(values.get("tools", ())),
        **options,
    )


def _expanded(path: Path, name: str, value: str) -> str:
    def variable(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise ConfigError(f"{path}: server {name!r} wants the variable {found[1]}, which is not set", hint=f"export {found[1]}=...")
        return os.environ[found[1]]

    return _VARIABLE.sub(variable, value)
