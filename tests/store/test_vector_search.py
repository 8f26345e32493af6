"""Search: filters against an oracle, nearest vectors against all of them, words in many scripts, and indexes that follow the rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import NotFoundError, UsageError
from herd.store.errors import ConflictError
from herd.store.files import Files
from herd.store.filters import check_attributes, read_filter
from herd.store.paging import Cursor
from herd.store.ranking import Ranking, fuse
from herd.store.search import Hit, search
from herd.store.state import State
from herd.store.tables.files import FileRow
from herd.store.tables.vector_stores import FileBatchRow, VectorStoreRow
from herd.store.vector_stores import NewChunk, NewFile, VectorStores
from herd.store.vectors import Vectors
from herd.store.words import terms_of, words_of

WIDTH = 8


class Shelf:
    """A store of one owner, and what tests ask of it."""

    def __init__(self, state: State, *, exact_rows: int = 10_000, owner: str = "ann", store_id: str = "vs_1") -> None:
        self.state, self.owner, self.id = state, owner, store_id
        self.stores = VectorStores(state)
        self.files = Files(state, on_delete=[self.stores.forget_file])
        self.vectors = Vectors(state.indexes_dir, exact_rows=exact_rows)
        self.rng = np.random.default_rng(0)
        if store_id not in self.stores.ids():
            row = VectorStoreRow(id=store_id, owner=owner, created=time.time(), last_active=time.time(), embedding_model="m")
            row.name = row.description = None
            self.stores.add(row)

    def keep(self, file_id: str) -> None:
        fields: dict[str, Any] = {"filename": f"{file_id}.txt", "purpose": "assistants", "size_bytes": 1, "created": time.time()}
        self.files.keep(FileRow(id=file_id, owner=self.owner, **fields), b"x")

    def put(self, file_id: str, texts: Sequence[str], attributes: dict[str, Any] | None = None, vectors: Any = None) -> None:
        """A file of these passages, indexed."""
        self.keep(file_id)
        self.stores.add_files(self.owner, self.id, [NewFile(file_id=file_id, attributes=attributes, chunking={})])
        found = self.rng.normal(size=(len(texts), WIDTH)) if vectors is None else vectors
        chunks = [
            NewChunk(text=text, start=at, end=at + 1, vector=vector) for at, (text, vector) in enumerate(zip(texts, found, strict=True))
        ]
        (row,) = [row for row in self.stores.pending(10) if row.id == file_id]
        assert self.stores.complete(row, chunks)

    def find(self, text: str = "", **how: Any) -> list[Hit]:
        wanted = how.pop("filters", None)
        options = {"mode": "keyword", "limit": 10, **how}
        with self.state.database.read() as session:
            row = self.stores.get(self.owner, self.id)
            return search(session, self.vectors, row, text=text, wanted=None if wanted is None else read_filter(wanted), **options)


# Filters

KEYS = ["a", 'we"ird', "$.x", "ünï"]
VALUES = st.one_of(st.integers(-2, 2), st.sampled_from([0.5, 1.0]), st.booleans(), st.sampled_from(["", "a", "b", "1", "true", "%", "ä'"]))
ATTRIBUTES = st.none() | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3)
LEAF = st.one_of(
    st.builds(lambda t, k, v: {"type": t, "key": k, "value": v}, st.sampled_from(["eq", "ne"]), st.sampled_from(KEYS), VALUES),
    st.builds(
        lambda t, k, v: {"type": t, "key": k, "value": v},
        st.sampled_from(["gt", "gte", "lt", "lte"]),
        st.sampled_from(KEYS),
        VALUES.filter(lambda value: not isinstance(value, bool)),
    ),
    st.builds(
        lambda t, k, v: {"type": t, "key": k, "value": v},
        st.sampled_from(["in", "nin"]),
        st.sampled_from(KEYS),
        st.lists(VALUES, min_size=1, max_size=3),
    ),
)
FILTERS = st.recursive(
    LEAF,
    lambda inner: st.builds(
        lambda t, f: {"type": t, "filters": f}, st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=4,
)


def kind_of(value: Any) -> str:
    return "bool" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


def holds(data: dict[str, Any], attributes: dict[str, Any]) -> bool:
    """What a filter means, in plain Python."""
    kind = data["type"]
    if kind in ("and", "or"):
        return (all if kind == "and" else any)(holds(one, attributes) for one in data["filters"])
    key, value = data["key"], data["value"]
    if kind in ("ne", "nin"):
        return not holds({"type": "eq" if kind == "ne" else "in", "key": key, "value": value}, attributes)
    if kind == "in":
        return any(holds({"type": "eq", "key": key, "value": one}, attributes) for one in value)
    if key not in attributes or kind_of(attributes[key]) != kind_of(value):
        return False
    found = attributes[key]
    return {"eq": found == value, "gt": found > value, "gte": found >= value, "lt": found < value, "lte": found <= value}[kind]


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"folder": tmp_path_factory.mktemp("filters"), "shelves": {}}


@settings(max_examples=30)
@given(data=FILTERS, attributes=st.lists(ATTRIBUTES, min_size=1, max_size=4))
def test_a_filter_finds_what_its_meaning_says(
    filtered: dict[str, Any], data: dict[str, Any], attributes: list[dict[str, Any] | None]
) -> None:
    check_filter(filtered, "sqlite", None, data, attributes)


def check_filter(kept: dict[str, Any], name: str, url: str | None, data: dict[str, Any], attributes: list[dict[str, Any] | None]) -> None:
    if name not in kept["shelves"]:
        kept["shelves"][name] = Shelf(State(kept["folder"] / name, database_url=url))
    shelf: Shelf = kept["shelves"][name]
    for old in shelf.files.page("ann", Cursor(limit=100)).rows:
        shelf.files.delete("ann", old.id)
    for number, one in enumerate(attributes):
        shelf.put(f"file-{number}", ["llama"], one)
    wanted = {f"file-{number}" for number, one in enumerate(attributes) if holds(data, one or {})}
    assert {hit.file_id for hit in shelf.find("llama", filters=data)} == wanted
    assert {hit.file_id for hit in shelf.find(mode="vector", vector=np.ones(WIDTH), filters=data)} == wanted


FIXED: list[dict[str, Any] | None] = [None, {}, {"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": True}, {'we"ird': "b", "a": "B"}, {"a": "ä"}]


@pytest.mark.parametrize("kind", ["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"])
def test_every_comparison_means_the_same_on_every_database(state: State, kind: str) -> None:
    shelf = Shelf(state)
    for number, one in enumerate(FIXED):
        shelf.put(f"file-{number}", ["llama"], one)
    values: list[Any] = [[1, "b"], ["1", True]] if kind in ("in", "nin") else [1, 1.0, "1", "a", *([True] if kind in ("eq", "ne") else [])]
    for key in ("a", 'we"ird', "none"):
        for value in values:
            data = {"type": kind, "key": key, "value": value}
            wanted = {f"file-{number}" for number, one in enumerate(FIXED) if holds(data, one or {})}
            assert {hit.file_id for hit in shelf.find("llama", filters=data)} == wanted, data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "is no object"),
        ({"type": "like", "key": "a", "value": 1}, "choose one of eq"),
        ({"type": "eq", "key": "", "value": 1}, "1 to 64"),
        ({"type": "eq", "key": "a", "value": None}, "give a text or a number"),
        ({"type": "eq", "key": "a", "value": float("nan")}, "give a text"),
        ({"type": "gt", "key": "a", "value": True}, "give a text or a number"),
        ({"type": "eq", "key": "a", "value": "\0"}, "give a text"),
        ({"type": "in", "key": "a", "value": "ab"}, "give 1 to 100 values"),
        ({"type": "in", "key": "a", "value": [1] * 101}, "give 1 to 100 values"),
        ({"type": "and", "filters": []}, "give it a list"),
        ({"type": "or", "filters": [{"type": "eq", "key": "a", "value": 1}] * 101}, "over 100"),
    ],
)
def test_a_filter_that_is_none_is_told(data: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_filter(data)
    assert said in f"{caught.value.message} {caught.value.hint}" and caught.value.param == "filters"  # type: ignore[attr-defined]


def test_filters_that_nest_too_deep_are_refused() -> None:
    data: dict[str, Any] = {"type": "eq", "key": "a", "value": 1}
    for _ in range(10_000):
        data = {"type": "and", "filters": [data]}
    with pytest.raises(UsageError, match="over 8 deep"):
        read_filter(data)


@pytest.mark.parametrize(
    "attributes", [{"": 1}, {"a" * 65: 1}, {"a": None}, {"a": [1]}, {"a": "x" * 513}, {"a": "\0"}, {str(n): n for n in range(17)}]
)
def test_attributes_that_filters_cannot_see_are_refused(attributes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        check_attributes(attributes)


# Vectors


def near(rows: dict[tuple[str, int], np.ndarray], query: np.ndarray, limit: int) -> list[tuple[str, int]]:
    scores = {key: float(row @ query / np.linalg.norm(row) / np.linalg.norm(query)) for key, row in rows.items()}
    return sorted(rows, key=lambda key: -scores[key])[:limit]


def agree(found: list[Any], nearest: list[Any], exact_rows: int) -> bool:
    """Whether all are found in order, or, of a graph, which may miss one, at least eight of ten."""
    if exact_rows > 1_000:
        return found == nearest
    return len(found) == len(nearest) and len(set(found) & set(nearest)) >= 0.8 * len(nearest)


@pytest.mark.parametrize("exact_rows", [10_000, 50], ids=["exact", "hnsw"])
def test_nearest_vectors_are_found_as_rows_come_and_go(state: State, exact_rows: int) -> None:
    shelf = Shelf(state, exact_rows=exact_rows)
    rows: dict[tuple[str, int], np.ndarray] = {}
    for step in range(6):
        name = f"file-{step}"
        vectors = shelf.rng.normal(size=(40, WIDTH))
        shelf.put(name, ["llama"] * 40, {"even": step % 2 == 0}, vectors)
        rows |= {(name, at): vector for at, vector in enumerate(vectors)}
        if step == 3:
            shelf.stores.remove_file("ann", shelf.id, "file-1")
            rows = {key: row for key, row in rows.items() if key[0] != "file-1"}
        query = shelf.rng.normal(size=WIDTH)
        hits = shelf.find(mode="vector", vector=query, limit=10)
        assert agree([(hit.file_id, hit.ordinal) for hit in hits], near(rows, query, 10), exact_rows)
        hits = shelf.find(mode="vector", vector=query, limit=10, filters={"type": "eq", "key": "even", "value": True})
        even = {key: row for key, row in rows.items() if int(key[0][-1]) % 2 == 0}
        assert agree([(hit.file_id, hit.ordinal) for hit in hits], near(even, query, 10), exact_rows)
    assert all(0 <= hit.score <= 1 for hit in hits)


def test_an_index_outlives_a_restart_and_a_damaged_one_is_built_again(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.store.vectors._SAVE_AFTER", 1)
    shelf = Shelf(state, exact_rows=50)
    vectors = shelf.rng.normal(size=(120, WIDTH))
    shelf.put("file-0", ["llama"] * 120, None, vectors)
    query = shelf.rng.normal(size=WIDTH)
    wanted = [hit.ordinal for hit in shelf.find(mode="vector", vector=query)]
    path = state.indexes_dir / "vs_1.usearch"
    assert path.is_file()

    def again() -> tuple[list[int], list[str]]:
        other = Shelf(state, exact_rows=50)
        with state.database.read() as session:
            problems = other.vectors.problems(session, other.stores.get("ann", "vs_1"))
        return [hit.ordinal for hit in other.find(mode="vector", vector=query)], problems

    assert again() == (wanted, [])  # the same graph
    data = path.read_bytes()
    path.write_bytes(data[:1000] + bytes(255 - byte for byte in data[1000:1100]) + data[1100:])
    found, problems = again()
    assert problems == ["the index of vs_1 is damaged"] and agree(found, wanted, 10)
    assert again() == (found, []), "it was built and written again"
    path.write_bytes(b"")
    assert agree(again()[0], wanted, 10)
    (state.indexes_dir / "vs_1.json").write_text("{}")
    assert agree(again()[0], wanted, 10)
    assert shelf.vectors.sweep([]) == 2


def test_a_copied_back_database_does_not_trust_an_index_of_later_rows(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last chunk that the index knows is another one by now: every vector is read again."""
    monkeypatch.setattr("herd.store.vectors._SAVE_AFTER", 1)
    shelf = Shelf(state, exact_rows=10)
    shelf.put("file-0", ["llama"] * 40)
    shelf.find(mode="vector", vector=np.ones(WIDTH))
    fresh = shelf.rng.normal(size=(40, WIDTH)).astype("<f4")
    with state.database.write() as session:
        from herd.store.tables.vector_stores import ChunkRow
        from herd.store.vectors import packed

        for row, vector in zip(session.query(ChunkRow).order_by(ChunkRow.number), fresh, strict=True):
            row.vector = packed(vector)
    other = Shelf(state, exact_rows=10)
    query = shelf.rng.normal(size=WIDTH)
    wanted = near({("file-0", at): vector.astype(np.float64) for at, vector in enumerate(fresh)}, query, 5)
    assert agree([(hit.file_id, hit.ordinal) for hit in other.find(mode="vector", vector=query, limit=5)], wanted, 10)


def test_a_vector_of_another_width_is_told(state: State) -> None:
    shelf = Shelf(state)
    shelf.put("file-0", ["llama"])
    with pytest.raises(ConflictError, match="the query's vector has 3 numbers, those of 'vs_1' have 8"):
        shelf.find(mode="vector", vector=np.ones(3))
    with pytest.raises(ConflictError, match="a vector has 3 numbers"):
        shelf.put("file-1", ["llama"], None, np.ones((1, 3)))
    assert shelf.stores.get("ann", "vs_1").num_chunks == 1


# Words


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("zurich", "Straßen in Zürich und Genf"),
        ("STRASSEN", "Straßen in Zürich und Genf"),
        ("नदी", "भारत की सबसे लंबी नदी गंगा है"),
        ("กรุงเทพ", "เมืองหลวงของประเทศไทยคือกรุงเทพมหานคร"),
        ("北京", "中国的首都是北京"),
        ("l'été", "Il fait chaud pendant l'été à Paris"),
        ("llama-3.1", "Das Modell heißt Llama 3.1"),
    ],
)
def test_words_are_found_in_every_script_on_every_database(state: State, query: str, found: str) -> None:
    shelf = Shelf(state)
    shelf.put("file-0", [*["a filler about rivers and mountains"] * 5, found])
    hits = shelf.find(query)
    assert [hit.text for hit in hits] == [found] and 0 < hits[0].score <= 1


@pytest.mark.parametrize("query", ["", "   ", "'", '"', "* OR NOT", "a AND (", "NEAR(a b)", "col:x", "\\", "x" * 10_000, "; --", "''':*"])
def test_no_query_is_syntax(state: State, query: str) -> None:
    shelf = Shelf(state)
    shelf.put("file-0", ["a plain text about llamas"])
    shelf.find(query)


def test_a_score_tells_nothing_of_other_owners_texts(state: State) -> None:
    shelf = Shelf(state)
    shelf.put("file-0", ["the quick llama", "a slow river"])
    before = [(hit.text, hit.score) for hit in shelf.find("llama river")]
    other = Shelf(state, owner="bob", store_id="vs_2")
    other.put("file-1", ["llama"] * 50)
    assert [(hit.text, hit.score) for hit in shelf.find("llama river")] == before
    with pytest.raises(NotFoundError):
        shelf.stores.get("bob", "vs_1")


@given(st.text(max_size=60))
def test_words_are_the_same_however_often_they_are_cut(text: str) -> None:
    words = words_of(text)
    assert words_of(" ".join(words)) == words or any(len(word) == 2 for word in words)
    assert all(word and not set(word) & set(" '\"\\\0") for word in words)
    assert terms_of(text) == list(dict.fromkeys(words))[:32]


# Both


def test_both_rankings_become_one() -> None:
    assert fuse([(1, 0.9), (2, 0.5)], [(2, 0.8)], Ranking()) == [(2, pytest.approx(0.5 * (61 / 62) + 0.5)), (1, pytest.approx(0.5))]
    assert fuse([(1, 0.9), (2, 0.5)], [(2, 0.8)], Ranking(vector_weight=1.0, keyword_weight=0.0))[0][0] == 1
    weighted = fuse([(1, 0.9), (2, 0.5), (3, 0.1)], [(2, 0.8), (3, 0.2)], Ranking(method="weighted"))
    assert weighted == [(2, pytest.approx(0.75)), (1, pytest.approx(0.5)), (3, pytest.approx(0.0))]
    with pytest.raises(UsageError, match="the weights are 0 and 0"):
        Ranking(vector_weight=0.0, keyword_weight=0.0)


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1)), unique_by=lambda one: one[0]), st.sampled_from(["rrf", "weighted"]))
def test_scores_are_shares_and_in_order(found: list[tuple[int, float]], method: Any) -> None:
    fused = fuse(sorted(found, key=lambda one: -one[1]), [], Ranking(method=method))
    assert {number for number, _ in fused} == {number for number, _ in found}
    assert all(0 <= score <= 1 for _, score in fused) and fused == sorted(fused, key=lambda one: (-one[1], one[0]))


def test_a_threshold_and_a_limit_hold(state: State) -> None:
    shelf = Shelf(state)
    shelf.put("file-0", ["llama river", "llama", "river", "stone"], None, np.eye(4, WIDTH))
    hits = shelf.find("llama river", mode="hybrid", vector=np.eye(1, WIDTH)[0], limit=2)
    assert hits[0].text == "llama river" and len(hits) == 2
    strict = shelf.find("llama river", mode="hybrid", vector=np.eye(1, WIDTH)[0], ranking=Ranking(threshold=0.999))
    assert [hit.text for hit in strict] == ["llama river"]


# Files in stores


def test_a_file_goes_through_its_states_and_counts_follow(state: State) -> None:
    shelf = Shelf(state)
    for number in range(4):
        shelf.keep(f"file-{number}")
    batch = FileBatchRow(id="vsfb_1", owner="ann", created=1.0, store_id="vs_1", cancelled=False)
    files = [NewFile(file_id=f"file-{number}", attributes={"n": number}, chunking={}) for number in range(4)]
    shelf.stores.add_files("ann", "vs_1", files, batch=batch)
    first, second, *_ = shelf.stores.pending(10)
    assert shelf.stores.complete(first, [NewChunk(text="one two", start=0, end=7, vector=np.ones(WIDTH))])
    shelf.stores.fail(second, "invalid_file", "it is damaged")
    _, counts = shelf.stores.batch("ann", "vs_1", "vsfb_1")
    assert counts == {"in_progress": 2, "completed": 1, "failed": 1, "cancelled": 0, "total": 4, "bytes": 7 + 4 * WIDTH}
    shelf.stores.cancel_batch("ann", "vs_1", "vsfb_1")
    row, counts = shelf.stores.batch("ann", "vs_1", "vsfb_1")
    assert row.cancelled and (counts["cancelled"], counts["completed"]) == (2, 1)
    assert not shelf.stores.complete(shelf.stores.file("ann", "vs_1", "file-2"), []), "a cancelled file stays so"
    told = shelf.stores.file("ann", "vs_1", second.id)
    assert (told.status, told.error_code, told.error_message) == ("failed", "invalid_file", "it is damaged")
    shelf.files.delete("ann", first.id)
    store = shelf.stores.get("ann", "vs_1")
    assert (store.num_chunks, store.num_words) == (0, 0) and shelf.find("one") == []
    shelf.stores.delete("ann", "vs_1")
    assert shelf.stores.ids() == [] and shelf.files.get("ann", "file-2").id == "file-2"


def test_attributes_change_what_filters_find(state: State) -> None:
    shelf = Shelf(state)
    shelf.put("file-0", ["llama"], {"n": 1})
    wanted = {"type": "eq", "key": "n", "value": 2}
    assert shelf.find("llama", filters=wanted) == []
    shelf.stores.set_attributes("ann", "vs_1", "file-0", {"n": 2})
    assert [hit.attributes for hit in shelf.find("llama", filters=wanted)] == [{"n": 2}]


def test_an_expired_store_is_told(state: State) -> None:
    shelf = Shelf(state)
    shelf.stores.change("ann", "vs_1", expires_days=1, last_active=time.time() - 2 * 86400)
    with pytest.raises(ConflictError, match="is expired"):
        shelf.stores.touch("ann", "vs_1")


def test_the_state_directory_holds_no_more_than_that(state: State, tmp_path: Path) -> None:
    assert {path.name for path in (tmp_path / "state").iterdir()} <= {
        *("files", "batches", "indexes", "lock", "server.db", "server.db-wal", "server.db-shm")
    }
