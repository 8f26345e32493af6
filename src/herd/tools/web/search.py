"""`web_search`, which Llama 3.1 calls `brave_search`: Brave, Tavily or SearXNG by key or URL, or an index of local files, offline.

Whatever the provider, the model reads the same: the query and at most a few results with title, URL and text, as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from herd.tools.errors import ToolError
from herd.tools.tool import Retriever, Taint, ToolContext, ToolLimits, ToolResult
from herd.tools.web.service import JsonService, as_dicts, as_text

NUM_RESULTS = 3
MAX_RESULTS = 10
_TAGS = re.compile(r"</?\w+[^<>]{0,200}>")
_BRAVE_TYPES = ("web", "news", "videos", "faq", "discussions", "infobox", "locations")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """One result."""

    title: str
    url: str
    text: str

    def to_dict(self) -> dict[str, str]:
        """As JSON."""
        return {"title": self.title, "url": self.url, "content": self.text}


@runtime_checkable
class SearchProvider(Protocol):
    """Whoever answers searches."""

    name: str

    async def search(self, query: str, limit: int, context: ToolContext) -> list[SearchResult]:
        """The best results, best first. Raises ToolError."""
        ...


def _key(context: ToolContext, name: str, own: str, provider: str) -> str:
    key = context.secrets.get(name) or own
    if not key:
        raise ToolError(f"{provider} has no key", hint=f"set {name.upper()}")
    return key


class Brave:
    """Brave's web search API."""

    name = "Brave Search"

    def __init__(self, api_key: str = "", *, service: JsonService | None = None) -> None:
        self._key, self._service = api_key, service or JsonService(self.name, "https://api.search.brave.com")

    async def search(self, query: str, limit: int, context: ToolContext) -> list[SearchResult]:
        """Results in the order of Brave's own mix of web, news, videos and the rest."""
        key = _key(context, "brave_search_api_key", self._key, self.name)
        headers = {"X-Subscription-Token": key, "Accept": "application/json"}
        answer = await self._service.ask("GET", "/res/v1/web/search", params={"q": query[:400], "count": MAX_RESULTS}, headers=headers)
        mixed = answer.get("mixed")
        order = as_dicts(mixed.get("main")) if isinstance(mixed, dict) else []
        found: list[SearchResult] = []
        for entry in order or [{"type": "web", "all": True}]:
            kind = entry.get("type")
            if kind in _BRAVE_TYPES:
                found += self._of(answer.get(str(kind)), entry)
        return found[:limit]

    @staticmethod
    def _of(section: Any, entry: Mapping[str, Any]) -> list[SearchResult]:
        items = as_dicts(section.get("results")) if isinstance(section, dict) else []
        index = entry.get("index")
        if not entry.get("all") and isinstance(index, int) and not isinstance(index, bool):
            items = items[index : index + 1] if index >= 0 else []
        return [
            SearchResult(
                title=_plain(item.get("title") or item.get("question")),
                url=as_text(item.get("url")),
                text=_plain(item.get("description") or item.get("answer") or item.get("long_desc")),
            )
            for item in items
        ]


class Tavily:
    """Tavily's search API."""

    name = "Tavily"

    def __init__(self, api_key: str = "", *, service: JsonService | None = None) -> None:
        self._key, self._service = api_key, service or JsonService(self.name, "https://api.tavily.com")

    async def search(self, query: str, limit: int, context: ToolContext) -> list[SearchResult]:
        """Results by Tavily's own score."""
        key = _key(context, "tavily_search_api_key", self._key, self.name)
        body = {"query": query[:400], "max_results": limit}
        answer = await self._service.ask("POST", "/search", headers={"Authorization": f"Bearer {key}"}, body=body)
        return [_result(item) for item in as_dicts(answer.get("results"))[:limit]]


class SearXNG:
    """A SearXNG of one's own, which must have `json` among its `search.formats`."""

    name = "SearXNG"

    def __init__(self, url: str, *, service: JsonService | None = None) -> None:
        self._service = service or JsonService(self.name, url)

    async def search(self, query: str, limit: int, context: ToolContext) -> list[SearchResult]:
        """Results in SearXNG's order."""
        answer = await self._service.ask("GET", "/search", params={"q": query, "format": "json"})
        return [_result(item) for item in as_dicts(answer.get("results"))[:limit]]


class Offline:
    """Any retriever as a search provider: with an index of files, searches work with the network cable out."""

    name = "the offline index"

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever

    async def search(self, query: str, limit: int, context: ToolContext) -> list[SearchResult]:
        """The best passages."""
        passages = await self._retriever.retrieve(query, limit=limit, context=context)
        return [SearchResult(title=passage.title or passage.source, url=passage.source, text=passage.text) for passage in passages]


def _result(item: Mapping[str, Any]) -> SearchResult:
    return SearchResult(title=_plain(item.get("title")), url=as_text(item.get("url")), text=_plain(item.get("content")))


def _plain(value: Any) -> str:
    """Text without the tags that mark the words found."""
    return _TAGS.sub("", as_text(value)).strip()


class WebSearchTool:
    """Searches by one provider."""

    name = "web_search"
    description = "Searches the web and returns the best results with title, URL and text."
    taint = Taint(reads_untrusted=True)
    limits = ToolLimits(timeout_s=20.0)
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "What to search for.", "minLength": 1, "maxLength": 2000},
            "num_results": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_RESULTS,
                "description": f"How many results; {NUM_RESULTS} if left out.",
            },
        },
        "required": ["query"],
        "additionalProperties": False,
    }

    def __init__(self, provider: SearchProvider) -> None:
        self.provider = provider

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Search for `query`."""
        limit = arguments.get("num_results", NUM_RESULTS)
        results = await self.provider.search(arguments["query"], limit, context)
        data = {"query": arguments["query"], "top_k": [result.to_dict() for result in results[:limit]]}
        return ToolResult(text=json.dumps(data, ensure_ascii=False), data=data)
