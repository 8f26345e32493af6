"""The Llama Stack's rag tool as llama-stack-client 0.2.12 calls it: documents in, passages out as text; URLs by the policy of the tools."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import ThreadServer, bearer, keyed_server, open_server  # noqa: F401  # pyright: ignore[reportMissingImports]

from herd.stack.rag_tool import _filled  # pyright: ignore[reportPrivateUsage]

INSERT, QUERY = "/v1/tool-runtime/rag-tool/insert", "/v1/tool-runtime/rag-tool/query"
RHINE = "The Rhine flows to the North Sea. It rises in the Alps. "


def document(name: str = "rhine", content: Any = RHINE, **fields: Any) -> dict[str, Any]:
    return {"document_id": name, "content": content, "mime_type": "text/plain", "metadata": {"year": 2024}, **fields}


@pytest.fixture(name="store")
def store_fixture(server: ThreadServer) -> Iterator[str]:
    with server.client() as client:
        assert client.post("/v1/vector-dbs", json={"vector_db_id": "rivers", "embedding_model": "tiny"}).status_code == 200
        yield "rivers"
        client.delete("/v1/vector-dbs/rivers")


def test_the_stacks_client_keeps_documents_and_asks_for_passages(server: ThreadServer, store: str) -> None:
    stack = pytest.importorskip("llama_stack_client", reason="needs llama-stack-client 0.2.12")
    with stack.LlamaStackClient(base_url=server.url, api_key="none", max_retries=0) as client:
        rag = client.tool_runtime.rag_tool
        long = document("danube", "The Danube flows to the Black Sea. " * 60)
        rag.insert(vector_db_id=store, documents=[document(), long], chunk_size_in_tokens=100)
        config = {"mode": "keyword", "max_chunks": 2, "max_tokens_in_context": 4000,
                  "chunk_template": "[{index}] {chunk.content} {metadata}",
                  "query_generator_config": {"type": "default", "separator": " "}}  # fmt: skip
        found = rag.query(content="Where does the Rhine rise?", vector_db_ids=[store], query_config=config)
        assert found.metadata["document_ids"][0] == "rhine" and found.metadata["vector_db_ids"][0] == store
        texts = [item.text for item in found.content]
        assert "BEGIN of knowledge_search tool results" in texts[0] and texts[-1].startswith("END of")
        assert texts[1].startswith("[1] The Rhine flows") and '"year": 2024' in texts[1]
        many = rag.query(content="Danube Black Sea", vector_db_ids=[store], query_config={**config, "max_chunks": 50})
        assert set(many.metadata["document_ids"]) >= {"danube"} and len(many.metadata["chunks"]) > 3, "a long text is cut"
        plain = rag.query(content=[{"type": "text", "text": "The"}, {"type": "text", "text": "Rhine"}], vector_db_ids=[store])
        assert plain.metadata["chunks"] and plain.metadata["omitted"] == 0
        rag.insert(vector_db_id=store, documents=[document()], chunk_size_in_tokens=100)
        once = rag.query(content="Rhine", vector_db_ids=[store], query_config=config)
        assert once.metadata["document_ids"].count("rhine") == 1, "what is there is not kept twice"


def test_what_does_not_fit_into_the_context_is_counted_and_nothing_found_says_so(server: ThreadServer, store: str) -> None:
    with server.client() as client:
        body = {"vector_db_id": store, "documents": [document(), document("b", RHINE + "More.")], "chunk_size_in_tokens": 100}
        assert client.post(INSERT, json=body).status_code == 200
        ask: dict[str, Any] = {"content": "Rhine", "vector_db_ids": [store]}
        small = client.post(QUERY, json={**ask, "query_config": {"mode": "keyword", "max_tokens_in_context": 1}}).json()
        assert small["content"] is None and small["metadata"]["omitted"] == 2 and small["metadata"]["chunks"] == []
        none = client.post(QUERY, json={**ask, "content": "zebra", "query_config": {"mode": "keyword"}}).json()
        assert none["content"] is None and none["metadata"]["omitted"] == 0
        for ranker in ({"type": "weighted", "alpha": 0.3}, {"type": "rrf", "impact_factor": 20.0}):
            both = client.post(QUERY, json={**ask, "query_config": {"mode": "hybrid", "ranker": ranker}}).json()
            assert set(both["metadata"]["document_ids"]) == {"rhine", "b"}


def test_a_data_url_and_a_page_are_read_as_text(server: ThreadServer, store: str) -> None:
    html = base64.b64encode(b"<html><body><h1>Nile</h1><script>no()</script><p>The Nile flows north.</p></body></html>").decode()
    documents = [
        document("nile", {"uri": f"data:text/html;base64,{html}"}, mime_type=None),
        document("po", {"uri": "data:,The%20Po%20flows%20east."}),
        document("ebro", [{"type": "text", "text": "The Ebro"}, {"type": "text", "text": "flows too."}]),
    ]
    with server.client() as client:
        body = {"vector_db_id": store, "documents": documents, "chunk_size_in_tokens": 100}
        assert client.post(INSERT, json=body).status_code == 200
        for word, name in (("Nile", "nile"), ("Po", "po"), ("Ebro", "ebro")):
            ask = {"content": word, "vector_db_ids": [store], "query_config": {"mode": "keyword"}}
            found = client.post(QUERY, json=ask).json()["metadata"]
            assert found["document_ids"] == [name] and "no()" not in found["chunks"][0]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"documents": [document(content="  ")]}, 400, "has no text"),
        ({"documents": [document(), document("b", {"uri": "data:text/plain;base64,§"})]}, 400, "not base64"),
        ({"documents": [document(), document("b", {"uri": "http://127.0.0.1:8080/x"})]}, 403, "not"),
        ({"documents": [document(content={"uri": "http://169.254.169.254/latest/meta-data"})]}, 403, "not"),
        ({"documents": [document(content={"uri": "file:///etc/passwd"})]}, None, "http"),
        ({"chunk_size_in_tokens": 99}, 400, "chunk_size_in_tokens is 99"),
        ({"chunk_size_in_tokens": 1_000_000}, 400, "reads"),
        ({"vector_db_id": None}, 400, "no store is named"),
        ({"vector_db_id": "other"}, 404, "other"),
        ({"documents": []}, 400, "documents"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_nothing_of_it_is_kept(
    server: ThreadServer, store: str, change: dict[str, Any], status: int | None, words: str
) -> None:
    body = {"vector_db_id": store, "documents": [document()], "chunk_size_in_tokens": 100}
    with server.client() as client:
        told = client.post(INSERT, json={**body, **change})
        assert told.status_code in ((400, 403) if status is None else (status,)) and words in told.json()["error"]["message"], told.text
        found = client.post(QUERY, json={"content": "Rhine", "vector_db_ids": [store], "query_config": {"mode": "keyword"}}).json()
        assert found["content"] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query_config": {"query_generator_config": {"type": "llm", "model": "m", "template": "t"}}}, "not written by a model"),
        ({"query_config": {"chunk_template": "nothing"}}, "chunk_template"),
        ({"content": " "}, "no text"),
        ({"vector_db_ids": []}, "no store is named"),
    ],
)
def test_what_cannot_be_asked_is_refused(server: ThreadServer, store: str, change: dict[str, Any], words: str) -> None:
    with server.client() as client:
        told = client.post(QUERY, json={"content": "x", "vector_db_ids": [store], **change})
    assert told.status_code == 400 and words in told.json()["error"]["message"]


def test_a_store_of_another_key_is_not_there(keyed: ThreadServer) -> None:
    with keyed.client() as client:
        made = client.post("/v1/vector-dbs", json={"vector_db_id": "hers", "embedding_model": "tiny"}, headers=bearer("anna"))
        assert made.status_code == 200
        body = {"vector_db_id": "hers", "documents": [document()], "chunk_size_in_tokens": 100}
        assert client.post(INSERT, json=body, headers=bearer("bert")).status_code == 404
        assert client.post(QUERY, json={"content": "x", "vector_db_ids": ["hers"]}, headers=bearer("bert")).status_code == 404
        client.delete("/v1/vector-dbs/hers", headers=bearer("anna"))


def test_a_template_is_filled_once() -> None:
    assert (
        _filled("{index}{chunk.content}{x}{metadata}", 3, "{index}{metadata}", {"a": "{index}"}) == '3{index}{metadata}{x}{"a": "{index}"}'
    )
