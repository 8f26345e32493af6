"""Tool groups by name, and the one way to call a tool: arguments checked, time and size held, every failure a result that a model can read.

A failure says what the caller can mend and never what is inside: no trace, no path, no address of this machine. Those go to the log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from herd.base.errors import FormatError, HerdError, NotFoundError, UsageError, did_you_mean
from herd.base.log import get_logger
from herd.tools.arguments import check_arguments, check_schema
from herd.tools.errors import ToolError
from herd.tools.tool import NAME, Attachment, Tool, ToolContext, ToolLimits, ToolResult, failure

_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolGroup:
    """Tools that are switched on together, such as all of one MCP server."""

    name: str
    description: str
    tools: tuple[Tool, ...]
    provider: str = "herd"
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    """Other names of tools of the group, such as the one that a model was trained on."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if not NAME.match(self.name.replace("::", ".")):
            raise FormatError(f"the tool group's name {self.name!r} is none", hint="use letters, digits, '_', '-', '.' and '::'")
        for tool in self.tools:
            if not NAME.match(tool.name):
                raise FormatError(f"the tool's name {tool.name!r} is none", hint="use letters, digits, '_', '-' and '.'")
            check_schema(tool.name, tool.parameters)


class Registry:
    """The tool groups that there are. A tool's name is unique across them: a group that would shadow another's tool is refused."""

    def __init__(self, groups: Iterable[ToolGroup] = ()) -> None:
        self._groups: dict[str, ToolGroup] = {}
        self._tools: dict[str, tuple[Tool, str]] = {}
        self._aliases: dict[str, str] = {}
        for group in groups:
            self.register(group)

    def register(self, group: ToolGroup) -> None:
        """Add a group. Raises UsageError if its name or one of its tools' names is taken."""
        if group.name in self._groups:
            raise UsageError(f"there is a tool group {group.name!r} already", hint="unregister it first")
        names = [tool.name for tool in group.tools]
        for name in names:
            if name in self._tools or names.count(name) > 1:
                owner = self._tools[name][1] if name in self._tools else group.name
                raise UsageError(f"the tool {name!r} of {group.name!r} is in {owner!r} already", hint="rename it, or leave one of them out")
        self._groups[group.name] = group
        self._tools.update({tool.name: (tool, group.name) for tool in group.tools})
        for alias, name in group.aliases.items():
            self._aliases.setdefault(alias, name)

    def unregister(self, name: str) -> None:
        """Take a group away. Raises NotFoundError if there is none."""
        self.group(name)
        for tool in self._groups.pop(name).tools:
            del self._tools[tool.name]
        self._aliases = {alias: name for alias, name in self._aliases.items() if name in self._tools}

    def group(self, name: str) -> ToolGroup:
        """A group by name. Raises NotFoundError."""
        if name not in self._groups:
            raise NotFoundError(f"there is no tool group {name!r}", hint=did_you_mean(name, self._groups, otherwise="`herd tools list`"))
        return self._groups[name]

    @property
    def groups(self) -> tuple[ToolGroup, ...]:
        """All groups, in the order in which they came."""
        return tuple(self._groups.values())

    def tools(self, groups: Sequence[str] | None = None) -> tuple[Tool, ...]:
        """The tools of some groups, or all."""
        chosen = self.groups if groups is None else [self.group(name) for name in groups]
        return tuple(tool for group in chosen for tool in group.tools)

    def find(self, name: str) -> Tool:
        """A tool by name or alias. Raises NotFoundError with the nearest name."""
        name = name if name in self._tools else self._aliases.get(name, name)
        if name not in self._tools:
            hint = did_you_mean(name, self._tools, otherwise="tools: " + (", ".join(self._tools) or "none"))
            raise NotFoundError(f"there is no tool {name[:80]!r}", hint=hint)
        return self._tools[name][0]

    def group_of(self, name: str) -> str:
        """The name of the group that a tool is in. Raises NotFoundError."""
        return self._tools[self.find(name).name][1]

    async def call(self, name: str, arguments: Any, context: ToolContext | None = None) -> ToolResult:
        """Call a tool by name; whatever goes wrong comes back as a result. Only cancellation is raised."""
        started = time.monotonic()
        try:
            tool = self.find(name)
            result = await call_tool(tool, arguments, context or ToolContext())
        except HerdError as error:
            result = failure(error.code, _sentence(error))
        return replace(result, elapsed_s=time.monotonic() - started)


async def call_tool(tool: Tool, arguments: Any, context: ToolContext) -> ToolResult:
    """Call one tool within its limits. Raises HerdError for arguments that do not fit; the tool's own failures are results."""
    limits = tool.limits
    checked = check_arguments(tool.name, tool.parameters, arguments, max_bytes=limits.max_argument_bytes)
    within = asyncio.timeout(limits.timeout_s)
    try:
        async with within:
            result = await tool.call(checked, context)
    except TimeoutError:
        if not within.expired():
            _log.exception("tool %s failed", tool.name)
            return failure("tool_failed", f"{tool.name} could not answer: a connection timed out")
        return failure("timeout", f"{tool.name} did not answer within {limits.timeout_s:g} seconds")
    except HerdError as error:
        return failure(error.code, _sentence(error))
    except Exception:
        _log.exception("tool %s failed", tool.name)
        return failure("tool_failed", f"{tool.name} failed by an error of its own; trying the same call again will not help")
    return _within(result, limits)


def _sentence(error: HerdError) -> str:
    return f"{error.message}; {error.hint}" if error.hint and isinstance(error, (ToolError, NotFoundError)) else error.message


def _within(result: ToolResult, limits: ToolLimits) -> ToolResult:
    text, cut = cut_text(result.text, limits.max_text_chars)
    attachments, left_out = _fitting(result.attachments, limits.max_attachment_bytes)
    if left_out:
        over = f"over the limit of {limits.max_attachment_bytes} bytes"
        text += f"\n[{len(left_out)} attachment(s) left out, {over}: {', '.join(left_out)[:500]}]"
    return replace(result, text=text, attachments=attachments, truncated=result.truncated or cut or bool(left_out))


def cut_text(text: str, limit: int) -> tuple[str, bool]:
    """A text of at most about `limit` characters, its beginning and end kept and the gap told; and whether anything was cut."""
    if len(text) <= limit:
        return text, False
    head, tail = limit * 3 // 4, limit - limit * 3 // 4
    end = text[len(text) - tail :] if tail else ""
    return f"{text[:head]}\n[... {len(text) - limit} of {len(text)} characters left out ...]\n{end}", True


def _fitting(attachments: Sequence[Attachment], limit: int) -> tuple[tuple[Attachment, ...], list[str]]:
    kept: list[Attachment] = []
    left_out: list[str] = []
    room = limit
    for attachment in attachments:
        if len(attachment.data) <= room:
            room -= len(attachment.data)
            kept.append(attachment)
        else:
            left_out.append(attachment.name)
    return tuple(kept), left_out
