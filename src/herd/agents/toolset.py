"""The tools of one agent: those that run here, those that the application runs, and how each is offered to the model.

Only what the agent names is offered and can be called; a name that the model makes up finds nothing, whatever the registry holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from herd.agents.config import AgentConfig, ClientTool
from herd.base.errors import ConfigError, NotFoundError, did_you_mean
from herd.text.messages import BUILTIN_TOOLS, ToolDefinition
from herd.tools.registry import Registry
from herd.tools.tool import Tool


class Toolset:
    """What an agent may call.

    Args:
        tools: tools that run here.
        client: tools that the application runs.
        native: offer what Llama 3.1 knows by name by that name.
        aliases: other names of tools, such as the one that a model was trained on.

    Raises:
        ConfigError: a name twice.
    """

    def __init__(
        self, tools: Iterable[Tool] = (), client: Sequence[ClientTool] = (), *, native: bool = False, aliases: dict[str, str] | None = None
    ) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in self._tools:
                raise ConfigError(f"two tools are named {tool.name!r}", hint="rename one of them, or leave it out")
            self._tools[tool.name] = tool
        self._client = {tool.name: tool for tool in client}
        both = next((name for name in self._client if name in self._tools), None)
        if both is not None:
            raise ConfigError(f"the tool {both!r} is the application's and runs here too", hint="leave one of them out")
        self._aliases = {alias: name for alias, name in (aliases or {}).items() if name in self._tools}
        self._native = native

    def find(self, name: str) -> Tool | ClientTool:
        """A tool by name or alias. Raises NotFoundError with the nearest name."""
        name = name if name in self._tools or name in self._client else self._aliases.get(name, name)
        found = self._tools.get(name) or self._client.get(name)
        if found is None:
            hint = did_you_mean(name, self.names, otherwise="tools: " + (", ".join(self.names) or "none"))
            raise NotFoundError(f"there is no tool {name[:80]!r}", hint=hint)
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tools."""
        return (*self._tools, *self._client)

    @property
    def server_tools(self) -> tuple[Tool, ...]:
        """Those that run here."""
        return tuple(self._tools.values())

    def native_names(self) -> tuple[str, ...]:
        """What is offered by a name that the model knows."""
        if not self._native:
            return ()
        known = {name for name in self._tools if name in BUILTIN_TOOLS}
        known |= {alias for alias in self._aliases if alias in BUILTIN_TOOLS}
        return tuple(name for name in BUILTIN_TOOLS if name in known)

    def definitions(self) -> tuple[ToolDefinition, ...]:
        """What is offered by a definition."""
        native = set(self.native_names())
        native |= {self._aliases[name] for name in native if name in self._aliases}
        own = [
            ToolDefinition(name=tool.name, description=tool.description, parameters=tool.parameters)
            for tool in self._tools.values()
            if tool.name not in native
        ]
        return (*own, *(tool.definition for tool in self._client.values()))


def toolset_of(config: AgentConfig, registry: Registry | None = None, *, more: Iterable[Tool] = ()) -> Toolset:
    """The tools that a config names, from a registry, and others beside them. Raises NotFoundError for a name that there is not."""
    chosen: dict[str, Tool] = {tool.name: tool for tool in more}
    aliases: dict[str, str] = {}
    registry = registry or Registry()
    groups = {group.name: group for group in registry.groups}
    for name in config.tools:
        if name in chosen:
            continue
        group = groups.get(name)
        found = group.tools if group is not None else (registry.find(name),)
        chosen.update({tool.name: tool for tool in found if tool.name not in chosen})
    for group in registry.groups:
        aliases |= {alias: name for alias, name in group.aliases.items() if name in chosen}
    return Toolset(chosen.values(), config.client_tools, native=config.native_tools, aliases=aliases)
