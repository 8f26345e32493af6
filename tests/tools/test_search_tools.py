"""Web search and Wolfram Alpha against local servers that answer in the providers' documented shapes, and in none."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fake_http import Answer, Asked, FakeServer, serving  # pyright: ignore[reportMissingImports]

from herd.tools.registry import Registry, ToolGroup
from herd.tools.tool import Passage, ToolContext, ToolResult
from herd.tools.web.search import Brave, Offline, SearchProvider, SearXNG, Tavily, WebSearchTool
from herd.tools.web.service import JsonService
from herd.tools.web.wolfram import WolframAlphaTool

BRAVE = {
    "type": "search",
    "query": {"original": "llama", "more_results_available": True},
    "mixed": {
        "type": "mixed",
        "main": [
            {"type": "web", "index": 1, "all": False},
            {"type": "news", "all": True},
            {"type": "web", "index": 0, "all": False},
            {"type": "ads"},
        ],
        "top": [],
        "side": [],
    },
    "web": {
        "type": "search",
        "results": [
            {
                "type": "search_result",
                "title": "Zero",
                "url": "https://a.example/0",
                "description": "a <strong>llama</strong>",
                "profile": {"x": 1},
            },
            {"type": "search_result", "title": "One", "url": "https://a.example/1", "description": "another", "page_age": "2024"},
        ],
    },
    "news": {"type": "news", "results": [{"title": "News", "url": "https://n.example", "description": "new", "breaking": False}]},
}
TAVILY = {
    "query": "llama",
    "answer": None,
    "results": [{"title": "T", "url": "https://t.example", "content": "text", "score": 0.9, "raw_content": None}],
    "response_time": 1.0,
}
SEARXNG = {
    "query": "llama",
    "number_of_results": 1,
    "results": [{"title": "S", "url": "https://s.example", "content": "c", "engine": "x"}],
    "answers": [],
}
WOLFRAM = {
    "queryresult": {
        "success": True,
        "error": False,
        "numpods": 3,
        "datatypes": "",
        "pods": [
            {"title": "Input", "scanner": "Identity", "id": "Input", "subpods": [{"title": "", "plaintext": "2+2"}]},
            {"title": "Result", "scanner": "Simplification", "id": "Result", "subpods": [{"title": "", "plaintext": "4"}]},
            {"title": "Number line", "scanner": "NumberLine", "subpods": [{"title": "", "plaintext": ""}]},
        ],
    }
}


def answering(value: Any, status: int = 200) -> Any:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return serving(
        lambda _: Answer(status=status, headers={"Content-Type": "application/json", "Location": "http://127.0.0.1:1/"}, body=body)
    )


def search(provider: SearchProvider, secrets: dict[str, str] | None = None, **arguments: Any) -> ToolResult:
    registry = Registry([ToolGroup(name="s", description="", tools=(WebSearchTool(provider),), aliases={"brave_search": "web_search"})])
    return asyncio.run(registry.call("brave_search", {"query": "llama", **arguments}, ToolContext(secrets=secrets or {})))


def brave(server: FakeServer, key: str = "k3y") -> Brave:
    return Brave(key, service=JsonService("Brave Search", server.url))


def asked(server: FakeServer) -> tuple[Asked, dict[str, list[str]]]:
    return server.asked[-1], parse_qs(urlsplit(server.asked[-1].path).query)


def test_brave_in_its_own_order_with_three_results_and_no_other_fields() -> None:
    with answering(BRAVE) as server:
        result = search(brave(server))
        request, query = asked(server)
    assert request.headers["x-subscription-token"] == "k3y"
    assert request.path.startswith("/res/v1/web/search?") and query["q"] == ["llama"]
    assert json.loads(result.text) == {
        "query": "llama",
        "top_k": [
            {"title": "One", "url": "https://a.example/1", "content": "another"},
            {"title": "News", "url": "https://n.example", "content": "new"},
            {"title": "Zero", "url": "https://a.example/0", "content": "a llama"},
        ],
    }


def test_the_number_of_results_is_held() -> None:
    with answering(BRAVE) as server:
        assert len(search(brave(server), num_results=1).data["top_k"]) == 1
        assert search(brave(server), num_results=100).error_code == "tool_arguments"


def test_tavily() -> None:
    with answering(TAVILY) as server:
        result = search(Tavily("tvly", service=JsonService("Tavily", server.url)))
        request = server.asked[-1]
    assert (request.method, request.path, request.headers["authorization"]) == ("POST", "/search", "Bearer tvly")
    assert json.loads(request.body) == {"query": "llama", "max_results": 3}
    assert result.data["top_k"] == [{"title": "T", "url": "https://t.example", "content": "text"}]


def test_searxng() -> None:
    with answering(SEARXNG) as server:
        result = search(SearXNG(server.url + "/"))
        _, query = asked(server)
    assert query == {"q": ["llama"], "format": ["json"]}
    assert result.data["top_k"] == [{"title": "S", "url": "https://s.example", "content": "c"}]


def test_a_retriever_is_a_provider_too() -> None:
    class Shelf:
        async def retrieve(self, query: str, *, limit: int, context: ToolContext) -> list[Passage]:
            return [Passage(text=query, source="a.txt", score=1.0, title="A")]

    assert search(Offline(Shelf())).data["top_k"] == [{"title": "A", "url": "a.txt", "content": "llama"}]


def test_the_key_of_the_request_goes_before_the_servers_own() -> None:
    with answering(BRAVE) as server:
        search(brave(server), secrets={"brave_search_api_key": "theirs"})
        assert server.asked[-1].headers["x-subscription-token"] == "theirs"


def test_without_a_key_the_tool_says_which() -> None:
    result = search(Brave())
    assert (result.ok, result.text) == (False, "Brave Search has no key; set BRAVE_SEARCH_API_KEY")


@pytest.mark.parametrize(
    ("value", "status", "says"),
    [
        ({}, 401, "refused the key (status 401)"),
        ({}, 429, "is asked too often"),
        ({}, 302, "failed (status 302)"),
        (b"<html>", 200, "something else than JSON"),
        (b"[" * 100_000, 200, "something else than JSON"),
        ([], 200, "something else than an object"),
        (b"{" + b" " * (5 << 20) + b"}", 200, "over 4194304 bytes"),
    ],
)
def test_a_provider_that_fails_is_told_without_the_key(value: Any, status: int, says: str) -> None:
    with answering(value, status) as server:
        result = search(brave(server))
        assert len(server.asked) == 1
    assert not result.ok and says in result.text
    assert "k3y" not in json.dumps(result.to_dict()) and "127.0.0.1" not in result.text


def test_a_provider_that_is_not_there_is_told() -> None:
    result = search(Brave("k3y", service=JsonService("Brave Search", "http://127.0.0.1:1")))
    assert "cannot be reached" in result.text and "127.0.0.1" not in result.text


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"web": None, "mixed": 3},
        {
            "mixed": {"main": [{"type": "web", "index": -1}, {"type": "web", "index": True}, {"type": []}, 7]},
            "web": {"results": [None, {"title": 3}]},
        },
        {"web": {"results": {"a": 1}}},
    ],
)
def test_answers_of_another_shape_are_no_crash(value: Any) -> None:
    with answering(value) as server:
        assert search(brave(server)).ok
        assert search(Tavily("k", service=JsonService("Tavily", server.url))).ok
        assert search(SearXNG(server.url)).ok


def wolfram(value: Any, key: str = "app-id") -> tuple[ToolResult, Any]:
    with answering(value) as server:
        tool = WolframAlphaTool(key, service=JsonService("Wolfram Alpha", server.url))
        registry = Registry([ToolGroup(name="w", description="", tools=(tool,))])
        result = asyncio.run(registry.call("wolfram_alpha", {"query": "2+2"}))
        return result, parse_qs(urlsplit(server.asked[-1].path).query) if server.asked else None


def test_wolfram_alpha_up_to_its_result() -> None:
    result, query = wolfram(WOLFRAM)
    assert query == {"input": ["2+2"], "appid": ["app-id"], "format": ["plaintext"], "output": ["json"]}
    pods = json.loads(result.text)["queryresult"]["pods"]
    assert [(pod["title"], pod["subpods"][0]["plaintext"]) for pod in pods] == [("Input", "2+2"), ("Result", "4")]
    assert set(pods[0]) == {"title", "subpods"}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"queryresult": {"success": False, "didyoumeans": {"score": "0.4", "val": "two"}}}, "did it mean 'two'"),
        ({"queryresult": {"success": False, "didyoumeans": [{"val": "three"}]}}, "did it mean 'three'"),
        ({"queryresult": {"success": False}}, "has no answer to this;"),
        ({"queryresult": None}, "has no answer"),
    ],
)
def test_wolfram_alpha_without_an_answer(value: Any, says: str) -> None:
    result, _ = wolfram(value)
    assert (result.ok, result.error_code) == (False, "no_result")
    assert says in result.text


def test_wolfram_alpha_without_a_key() -> None:
    result, query = wolfram(WOLFRAM, key="")
    assert "set WOLFRAM_ALPHA_API_KEY" in result.text and query is None
