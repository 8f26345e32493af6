"""Which descriptions of remote tools a person agreed to, by digest.

A tool's description goes into the prompt, so whoever can change it can instruct the model. What was agreed to is pinned: a tool that is new
or whose name, description or schema changed is not offered and not called until somebody agrees again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from herd.base.atomic import atomic_file
from herd.base.errors import ConfigError
from herd.base.paths import home

FILE_NAME = "mcp-agreed.json"
State = Literal["agreed", "new", "changed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteTool:
    """A tool as its server describes it."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    title: str = ""

    @property
    def digest(self) -> str:
        """Of everything that a model could read of it."""
        said = [self.name, self.title, self.description, self.parameters]
        return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode("utf-8")).hexdigest()


@runtime_checkable
class Agreements(Protocol):
    """What was agreed to, wherever it is kept."""

    def state(self, server: str, tool: RemoteTool) -> State:
        """Whether a tool is as it was agreed to."""
        ...


class AgreedTools:
    """The agreements about one server's tools, by name: in memory, and kept by whoever made it."""

    def __init__(self, digests: Mapping[str, str]) -> None:
        self._digests = dict(digests)

    def state(self, server: str, tool: RemoteTool) -> State:
        """Whether a tool is as it was agreed to."""
        return _state(self._digests.get(tool.name), tool)


def _state(pinned: str | None, tool: RemoteTool) -> State:
    return "new" if pinned is None else "agreed" if pinned == tool.digest else "changed"


class Pins:
    """The agreements, in a file. Each change is written at once and whole."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or home() / FILE_NAME

    def _read(self) -> dict[str, dict[str, str]]:
        if not self.path.is_file():
            return {}
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if not all(isinstance(digest, str) for tools in data.values() for digest in tools.values()):
                raise ValueError("digests are strings")
        except (ValueError, AttributeError) as error:
            raise ConfigError(
                f"{self.path} is damaged", hint="remove it, and agree to the tools again: `herd tools agree SERVER`"
            ) from error
        return data

    def state(self, server: str, tool: RemoteTool) -> State:
        """Whether a tool is as it was agreed to."""
        return _state(self._read().get(server, {}).get(tool.name), tool)

    def agree(self, server: str, tools: Iterable[RemoteTool]) -> None:
        """Take these tools as they are now, and forget those of the server that are not among them."""
        data = self._read()
        data[server] = {tool.name: tool.digest for tool in tools}
        with atomic_file(self.path) as path:
            path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def forget(self, server: str) -> None:
        """Take back what was agreed to of a server."""
        data = self._read()
        if data.pop(server, None) is not None:
            with atomic_file(self.path) as path:
                path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
