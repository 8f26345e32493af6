"""`knowledge_search`, which asks a retriever, and `clock`, since a model does not know what day it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from herd.tools.errors import ToolError
from herd.tools.tool import Retriever, Taint, ToolContext, ToolLimits, ToolResult

_MAX_PASSAGES = 20


class KnowledgeSearchTool:
    """Finds passages in documents, each with its source for a citation."""

    name = "knowledge_search"
    description = "Searches the documents of this conversation or installation and returns the best passages with their sources."
    taint = Taint(reads_untrusted=True, reads_private=True)
    limits = ToolLimits()
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "What to look for.", "minLength": 1, "maxLength": 2000},
            "num_results": {"type": "integer", "minimum": 1, "maximum": _MAX_PASSAGES, "description": "How many passages; 5 if left out."},
        },
        "required": ["query"],
        "additionalProperties": False,
    }

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Search for `query`."""
        passages = await self._retriever.retrieve(arguments["query"], limit=arguments.get("num_results", 5), context=context)
        data = {"query": arguments["query"], "passages": [passage.to_dict() for passage in passages]}
        return ToolResult(text=json.dumps(data, ensure_ascii=False), data=data)


class ClockTool:
    """Tells the date and time."""

    name = "clock"
    description = "Tells the current date, weekday and time in a time zone."
    taint = Taint()
    limits = ToolLimits(timeout_s=5.0)
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"timezone": {"type": "string", "description": "A name such as Europe/Berlin; UTC if left out.", "maxLength": 64}},
        "additionalProperties": False,
    }

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """The time in `timezone`."""
        name = arguments.get("timezone", "UTC")
        try:
            zone = UTC if name == "UTC" else ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ToolError(f"there is no time zone {name!r}", hint="name one as Europe/Berlin, Asia/Kolkata or UTC") from error
        now = datetime.now(zone)
        data = {"iso": now.isoformat(timespec="seconds"), "weekday": now.strftime("%A"), "timezone": name}
        return ToolResult(text=f"{data['weekday']} {data['iso']} ({name})", data=data)
