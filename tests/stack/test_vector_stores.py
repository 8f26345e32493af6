"""Files and vector stores through OpenAI's client, on SQLite and on a real PostgreSQL; the Llama Stack's routes; other keys; kill -9."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from client_server import LiveServer, needs_cria  # pyright: ignore[reportMissingImports]
from openai import OpenAI

from herd.base.paths import bundled_model
from herd.store.check import check
from herd.store.state import State
from herd.store.vectors import Vectors
from postgres_server import fresh_database  # pyright: ignore[reportMissingImports]

KEYS = {"ann": "ann-key-0123456789", "bob": "bob-key-0123456789"}
NILE = "The Nile is a long river in Africa. "
PERU = "Llamas carry loads over the mountains of Peru. "


class Served:
    """A server with keys, and a client for each."""

    def __init__(self, home: Path, database_url: str | None) -> None:
        (home / "keys").write_text("".join(f"{name} {key}\n" for name, key in KEYS.items()))
        self.home, self.database_url = home, database_url
        options = () if database_url is None else ("--database", database_url)
        self.server = LiveServer("--api-key-file", str(home / "keys"), *options, home=home)
        self.clients = {name: OpenAI(base_url=self.server.url + "/v1", api_key=key, max_retries=0) for name, key in KEYS.items()}
        self.ann, self.bob = self.clients["ann"], self.clients["bob"]

    def http(self, method: str, path: str, key: str = "ann", **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEYS[key]}"}
        return httpx.request(method, self.server.url + path, headers=headers, json=body or None, timeout=60)

    def close(self) -> None:
        for client in self.clients.values():
            client.close()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    needs_cria()
    made = Served(tmp_path_factory.mktemp(request.param), None if request.param == "sqlite" else fresh_database())
    yield made
    made.close()
    assert made.server.stop() == 0


def until(check_it: Callable[[], Any], *, seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check_it()):
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)
    return found


def upload(client: OpenAI, text: str | bytes, name: str = "a.txt", **fields: Any) -> str:
    return client.files.create(file=(name, text.encode() if isinstance(text, str) else text), purpose="assistants", **fields).id


def settled(client: OpenAI, store_id: str) -> Any:
    """The store, once nothing of it waits."""

    def done() -> Any:
        store = client.vector_stores.retrieve(store_id)
        return store if store.status == "completed" else None

    return until(done)


def test_files_have_every_field_pages_and_an_end(served: Served) -> None:
    client = served.bob
    made = client.files.create(file=("q.txt", b"abc"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600})
    assert made.expires_at == made.created_at + 3600 and made.status == "processed"
    ids = [made.id, *(upload(client, str(number)) for number in range(4))]
    page = client.files.list(limit=2, order="asc")
    assert [file.id for file in page.data] == ids[:2] and page.has_more
    assert [file.id for file in client.files.list(limit=2, order="asc")] == ids
    back = served.http("GET", f"/v1/files?before={ids[3]}&limit=2&order=asc", "bob").json()
    assert [file["id"] for file in back["data"]] == ids[1:3] and back["has_more"] and back["first_id"] == ids[1]
    told = served.http("GET", "/v1/files?after=file-none", "bob")
    assert told.status_code == 404 and told.json()["error"]["code"] == "not_found"
    for seconds, said in (("60", "3,600 to"), ("x", "3,600 to")):
        form = {"purpose": "user_data", "expires_after[anchor]": "created_at", "expires_after[seconds]": seconds}
        headers = {"Authorization": f"Bearer {KEYS['bob']}"}
        refused = httpx.post(served.server.url + "/v1/files", headers=headers, data=form, files={"file": ("a", b"x")})
        assert refused.status_code == 400 and said in refused.json()["error"]["message"]


def test_a_store_is_made_searched_changed_and_deleted(served: Served) -> None:
    client = served.ann
    nile, peru = upload(client, NILE * 4, "nile.txt"), upload(client, f"# Peru\n{PERU * 4}", "peru.md")
    made = client.vector_stores.create(
        name="rivers", file_ids=[nile, peru], metadata={"for": "test"}, expires_after={"anchor": "last_active_at", "days": 2}
    )
    assert (made.name, made.metadata, made.file_counts.total) == ("rivers", {"for": "test"}, 2)
    assert made.expires_at == pytest.approx(made.last_active_at + 2 * 86400, abs=1)
    store = settled(client, made.id)
    assert (store.file_counts.completed, store.file_counts.failed) == (2, 0) and store.usage_bytes > 0
    client.vector_stores.files.update(peru, vector_store_id=made.id, attributes={"year": 2024, "kind": "animal"})
    for mode in ("vector", "keyword", "hybrid"):
        hits = client.vector_stores.search(made.id, query="llamas of Peru", extra_body={"search_mode": mode}).data
        assert peru in [hit.file_id for hit in hits] and all(0 <= hit.score <= 1 for hit in hits)
        if mode != "vector":
            assert (hits[0].file_id, hits[0].filename) == (peru, "peru.md") and "Llamas" in hits[0].content[0].text
    older: Any = {"type": "and", "filters": [{"type": "lt", "key": "year", "value": 2024}]}
    animals: Any = {"type": "in", "key": "kind", "value": ["animal"]}
    assert client.vector_stores.search(made.id, query="river", filters=older).data == []
    assert [hit.file_id for hit in client.vector_stores.search(made.id, query="river", filters=animals).data] == [peru]
    options: Any = {"ranker": "weighted", "score_threshold": 0.9, "hybrid_search": {"embedding_weight": 0, "text_weight": 1}}
    strict = client.vector_stores.search(made.id, query=["Nile", "Africa"], ranking_options=options, max_num_results=1).data
    assert [hit.file_id for hit in strict] == [nile]
    text = "".join(part.text or "" for part in client.vector_stores.files.content(nile, vector_store_id=made.id))
    assert text == (NILE * 4).strip()
    changed = client.vector_stores.update(made.id, name="other", expires_after=None)
    assert (changed.name, changed.expires_at, changed.metadata) == ("other", None, {"for": "test"})
    client.files.delete(peru)
    assert peru not in [hit.file_id for hit in client.vector_stores.search(made.id, query="llamas of Peru").data]
    assert client.vector_stores.files.delete(nile, vector_store_id=made.id).deleted
    assert client.vector_stores.retrieve(made.id).file_counts.total == 0 and client.files.retrieve(nile).id == nile
    assert client.vector_stores.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(made.id)


def test_a_batch_of_files_tells_which_failed_and_why(served: Served) -> None:
    client = served.ann
    store = client.vector_stores.create(name="batch")
    good, picture, broken = upload(client, NILE), upload(client, b"\x89PNG..", "a.png"), upload(client, b"\xff\xfe\xfd", "b.json")
    batch = client.vector_stores.file_batches.create(store.id, file_ids=[good, picture, broken], attributes={"n": 1})

    def done() -> Any:
        found = client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id)
        return found if found.status != "in_progress" else None

    ended = until(done)
    assert (ended.status, ended.file_counts.completed, ended.file_counts.failed) == ("completed", 1, 2)
    files = {file.id: file for file in client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id, limit=1)}
    assert set(files) == {good, picture, broken} and files[good].attributes == {"n": 1}
    assert files[picture].last_error is not None and files[picture].last_error.code == "unsupported_file"
    assert files[broken].last_error is not None and files[broken].last_error.code == "invalid_file"
    failed = client.vector_stores.files.list(store.id, filter="failed")
    assert {file.id for file in failed} == {picture, broken}


def test_a_cancelled_batch_is_not_indexed_and_its_files_stay(served: Served) -> None:
    client = served.ann
    store = client.vector_stores.create(name="cancelled")
    ids = [upload(client, NILE * 3000) for _ in range(3)]
    strategy: Any = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 50}}
    batch = client.vector_stores.file_batches.create(store.id, file_ids=ids, chunking_strategy=strategy)
    cancelled = client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    assert cancelled.status == "cancelled" and cancelled.file_counts.in_progress == 0 and cancelled.file_counts.cancelled >= 2
    assert client.vector_stores.search(store.id, query="Nile").data == []
    assert {client.files.retrieve(one).id for one in ids} == set(ids)


def test_what_cannot_be_asked_for_is_told_by_name(served: Served) -> None:
    client = served.ann
    store = client.vector_stores.create(name="x")
    cases: list[tuple[str, dict[str, Any], int, str]] = [
        ("/v1/vector_stores", {"colour": "red"}, 400, "colour"),
        ("/v1/vector_stores", {"embedding_model": "other"}, 404, "there is no model 'other'"),
        ("/v1/vector_stores", {"file_ids": ["file-none"]}, 404, "file-none"),
        (f"/v1/vector_stores/{store.id}/search", {"query": ""}, 400, "query"),
        (f"/v1/vector_stores/{store.id}/search", {"query": "a", "filters": {"type": "like"}}, 400, "filters"),
        (f"/v1/vector_stores/{store.id}/search", {"query": "a", "rewrite_query": True}, 400, "rewrite_query"),
        (f"/v1/vector_stores/{store.id}/search", {"query": "a", "max_num_results": 51}, 400, "max_num_results"),
        (f"/v1/vector_stores/{store.id}/files", {"file_id": "file-none"}, 404, "file-none"),
        (f"/v1/vector_stores/{store.id}/file_batches", {"file_ids": ["a"], "files": [{"file_id": "b"}]}, 400, "give one of them"),
        ("/v1/vector-io/query", {"query": "a"}, 400, "give vector_store_id"),
    ]
    for path, body, status, said in cases:
        told = served.http("POST", path, **body)
        assert (told.status_code, said in told.text) == (status, True), (path, told.text)
    file_id = upload(client, "x")
    strategy = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 80}}
    told = served.http("POST", f"/v1/vector_stores/{store.id}/files", file_id=file_id, chunking_strategy=strategy)
    assert told.status_code == 400 and "half of max_chunk_size_tokens" in told.text


def test_another_keys_store_does_not_exist(served: Served) -> None:
    mine, file_id = served.ann.vector_stores.create(name="mine").id, upload(served.ann, NILE)
    batch = served.ann.vector_stores.file_batches.create(mine, file_ids=[file_id]).id
    theirs = served.bob.vector_stores.create(name="theirs").id
    for method, path, body in (
        ("GET", f"/v1/vector_stores/{mine}", {}),
        ("POST", f"/v1/vector_stores/{mine}", {"name": "stolen"}),
        ("DELETE", f"/v1/vector_stores/{mine}", {}),
        ("POST", f"/v1/vector_stores/{mine}/search", {"query": "Nile"}),
        ("GET", f"/v1/vector_stores/{mine}/files", {}),
        ("GET", f"/v1/vector_stores/{mine}/files/{file_id}/content", {}),
        ("POST", f"/v1/vector_stores/{mine}/files", {"file_id": file_id}),
        ("GET", f"/v1/vector_stores/{mine}/file_batches/{batch}", {}),
        ("POST", f"/v1/vector_stores/{mine}/file_batches/{batch}/cancel", {}),
        ("POST", f"/v1/vector_stores/{theirs}/files", {"file_id": file_id}),
        ("GET", f"/v1/vector_stores/{theirs}/file_batches/{batch}", {}),
        ("POST", "/v1/vector-io/query", {"vector_db_id": mine, "query": "Nile"}),
        ("POST", "/v1/vector-io/insert", {"vector_db_id": mine, "chunks": [{"content": "x"}]}),
    ):
        assert served.http(method, path, "bob", **body).status_code == 404, path
    assert mine not in [store.id for store in served.bob.vector_stores.list()]
    assert served.ann.vector_stores.retrieve(mine).name == "mine"


def test_the_llama_stacks_routes_keep_and_find_passages(served: Served) -> None:
    size = json.loads((bundled_model() / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    made = served.http("POST", "/v1/vector-dbs", vector_db_id="docs", embedding_model="cria", embedding_dimension=size, provider_id="faiss")
    assert made.json()["identifier"] == "docs" and made.json()["embedding_dimension"] == size
    assert served.http("POST", "/v1/vector-dbs", vector_db_id="docs").status_code == 409
    assert served.http("POST", "/v1/vector-dbs", "bob", vector_db_id="docs").status_code == 200, "a name is one's own"
    chunks = [
        {"content": NILE, "metadata": {"document_id": "d1", "lang": "en"}},
        {"content": [{"type": "text", "text": PERU}], "metadata": {"document_id": "d2", "lang": "en", "deep": {"x": 1}}},
    ]
    for _ in range(2):  # a passage that is there is not kept twice
        assert served.http("POST", "/v1/vector-io/insert", vector_db_id="docs", chunks=chunks).status_code == 200
    found = served.http(
        "POST", "/v1/vector-io/query", vector_db_id="docs", query="Nile", params={"mode": "keyword", "max_chunks": 5}
    ).json()
    assert [chunk["content"] for chunk in found["chunks"]] == [NILE] and len(found["scores"]) == 1
    filters = {"type": "eq", "key": "lang", "value": "en"}
    both = served.http("POST", "/v1/vector-io/query", vector_db_id="docs", query="Peru", params={"filters": filters}).json()["chunks"]
    assert [chunk["metadata"]["document_id"] for chunk in both] == ["d2", "d1"] and both[0]["metadata"]["deep"] == {"x": 1}
    empty = served.http("POST", "/v1/vector-io/query", "bob", vector_db_id="docs", query="Nile").json()
    assert empty == {"chunks": [], "scores": []}
    assert [one["identifier"] for one in served.http("GET", "/v1/vector-dbs", "bob").json()["data"] if one["identifier"] == "docs"] == [
        "docs"
    ]
    assert served.http("DELETE", "/v1/vector-dbs/docs").status_code == 200
    assert served.http("GET", "/v1/vector-dbs/docs").status_code == 404
    assert served.http("GET", "/v1/vector-dbs/docs", "bob").status_code == 200


def test_what_is_kept_is_whole_while_the_server_runs(served: Served) -> None:
    """As `herd db check` looks at it."""
    from herd.store.state import blobs_of, database_of

    folder = served.home / "server"
    database = database_of(folder, served.database_url)
    found = check(database, blobs_of(folder, None), Vectors(folder / "indexes"), deep=True)
    database.close()
    assert found.problems == [] and found.counts["files"] > 0


def test_indexing_outlives_kill_and_restart(tmp_path: Path) -> None:
    needs_cria()
    server = LiveServer(home=tmp_path)
    with OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        store_id = client.vector_stores.create(name="killed").id
        ids = [upload(client, f"{NILE * 30} number {number}") for number in range(12)]
        client.vector_stores.file_batches.create(store_id, file_ids=ids)
        until(lambda: client.vector_stores.retrieve(store_id).file_counts.completed >= 2)
        server.kill()
    state = State(tmp_path / "server")
    assert [one for one in check(state.database, state.blobs, Vectors(state.indexes_dir)).problems if one.kind != "orphan"] == []
    state.close()
    server = LiveServer(home=tmp_path)
    with OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        store = settled(client, store_id)
        assert (store.file_counts.completed, store.file_counts.total) == (12, 12)
        hits = client.vector_stores.search(store_id, query="number 7", max_num_results=50).data
        assert {hit.file_id for hit in hits} == set(ids)
    assert server.stop() == 0
