"""Stages over the whole corpus: what is kept of duplicates, how many planted ones are found, lines that come too often, odd texts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import ConfigError
from herd.data.curate.config import CurateConfig
from herd.data.curate.run import curate
from herd.data.dedup.corpus_stage import Signatures, ids_of, places_of, save_drops
from herd.data.dedup.distribution import TokenDistribution, divergence
from herd.data.dedup.keys import ExactDedup, UrlDedup, plain_url
from herd.data.dedup.lines import LineDedup, plain_line
from herd.data.dedup.minhash import MinHashDedup, clusters
from herd.data.records import Record, read_records
from herd.data.stages.stage import Drop

WORDS = [f"word{number}" for number in range(3000)]


def run(tmp_path: Path, shards: list[list[Record]], *stages: Any) -> tuple[list[Record], Any]:
    """What is left of some shards after some stages, and the report."""
    for number, records in enumerate(shards):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number:02d}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    report = curate(CurateConfig(sources=(str(tmp_path / "in"),), stages=stages), tmp_path / "out")
    left = [record for path in sorted((tmp_path / "out" / "documents").iterdir()) for record in read_records(path)]
    return left, report


def names(records: list[Record]) -> list[str]:
    return [record["id"] for record in records]


@settings(max_examples=50)
@given(data=st.data())
def test_drops_are_found_again_by_shard(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    shards = data.draw(st.lists(st.sets(st.integers(0, 50)), min_size=1, max_size=5))
    folder = tmp_path_factory.mktemp("drops")
    ids = np.concatenate([ids_of(shard, np.array(sorted(places, reverse=True), dtype=np.int64)) for shard, places in enumerate(shards)])
    save_drops(folder, ids, ids + np.uint64(1))
    for shard, places in enumerate(shards):
        found, kept = places_of(folder, shard)
        assert found.tolist() == sorted(places)
        assert kept.tolist() == (ids_of(shard, found) + np.uint64(1)).tolist()
        alive = Signatures(folders=(), counts=tuple([51] * len(shards)), before=(folder,)).alive(shard)
        assert np.flatnonzero(~alive).tolist() == sorted(places)


@pytest.mark.parametrize("partitions", [1, 3])
def test_of_an_address_the_newest_page_stays(tmp_path: Path, partitions: int) -> None:
    shards = [
        [
            {"id": "a-old", "text": "a", "url": "http://A.org/x/", "date": "2021-01-01T00:00:00Z"},
            {"id": "b", "text": "b", "url": "https://b.org"},
            {"id": "none", "text": "c"},
            {"id": "path", "text": "d", "url": "https://a.org/X"},
        ],
        [
            {"id": "a-new", "text": "a2", "url": "https://www.a.org/x#top", "date": "2022-05-01"},
            {"id": "b-again", "text": "b2", "url": "https://b.org/"},
            {"id": "none-again", "text": "c"},
        ],
    ]
    left, report = run(tmp_path, shards, UrlDedup(partitions=partitions))
    assert names(left) == ["b", "none", "path", "a-new", "none-again"]
    assert report.stages[-1]["dropped"] == {"older page of the address": [2, 3]}
    assert report.stages[-1]["samples"]["older page of the address"][0]["detail"] == "kept: record 0 of shard 1"
    assert plain_url("HTTPS://www.Example.org:80/Path/?q=1#f") == "example.org:80/Path/?q=1"


def test_the_first_of_equal_texts_stays_and_earlier_stages_are_heeded(tmp_path: Path) -> None:
    shards = [
        [{"id": "1", "text": "the  herd\ngrazes", "url": "u", "date": "2020"}, {"id": "2", "text": "other"}],
        [
            {"id": "3", "text": "the herd grazes"},
            {"id": "4", "text": "the herd grazes ", "url": "u", "date": "2021"},
            {"id": "5", "text": "The herd grazes"},
        ],
    ]
    left, _ = run(tmp_path, shards, ExactDedup())
    assert names(left) == ["1", "2", "5"]
    left, report = run(tmp_path, shards, UrlDedup(), ExactDedup())
    assert names(left) == ["2", "3", "5"], "the first copy went by its address, so that the next stays"
    assert [stage["stage"] for stage in report.stages] == ["read", "url_dedup", "exact_dedup"]


def planted(count: int, seed: int = 0) -> tuple[list[Record], dict[str, float]]:
    """Random documents, each with a copy in which some words are others; the true similarity of every copy to its document."""
    rng = random.Random(seed)
    records: list[Record] = []
    similarity: dict[str, float] = {}
    for number in range(count):
        words = [rng.choice(WORDS) for _ in range(rng.randint(60, 300))]
        copy = list(words)
        for place in rng.sample(range(len(words)), rng.choice([0, 1, 2, 4, 20])):
            copy[place] = rng.choice(WORDS)
        grams = [{tuple(part[start : start + 5]) for start in range(len(part) - 4)} for part in (words, copy)]
        similarity[f"copy-{number}"] = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
        records += [{"id": f"doc-{number}", "text": " ".join(words)}, {"id": f"copy-{number}", "text": " ".join(copy)}]
    return records, similarity


@pytest.mark.parametrize("partitions", [1, 4])
def test_planted_near_duplicates_are_found(tmp_path: Path, partitions: int) -> None:
    records, similarity = planted(400)
    shards = [records[start::3] for start in range(3)]
    left, report = run(tmp_path, shards, MinHashDedup(partitions=partitions))
    kept = set(names(left))
    gone = {name.rpartition("-")[2] for name in set(names(records)) - kept}
    found = {name: name.rpartition("-")[2] in gone for name in similarity}
    near = [name for name, value in similarity.items() if value >= 0.8]
    far = [name for name, value in similarity.items() if value < 0.55]
    assert len(near) > 160 and len(far) > 30
    assert sum(found[name] for name in near) / len(near) >= 0.97, "recall from 0.8 on"
    assert sum(found[name] for name in far) / len(far) <= 0.02, "what is not alike stays"
    assert all({f"doc-{number}", f"copy-{number}"} & kept for number in range(400)), "one of a pair always stays"
    assert report.searches["search-0a-minhash_dedup"]["dropped"] == len(records) - len(left)


def test_the_first_of_a_cluster_stays_over_shards_and_short_texts_are_left_alone(tmp_path: Path) -> None:
    text = " ".join(WORDS[:100])
    shards = [
        [{"id": "short", "text": "a b"}, {"id": "one", "text": text}],
        [{"id": "short too", "text": "a b"}, {"id": "two", "text": text + " end"}],
    ]
    left, _ = run(tmp_path, shards, MinHashDedup())
    assert names(left) == ["short", "one", "short too"]
    left, _ = run(tmp_path, [[], shards[0]], MinHashDedup())
    assert names(left) == ["short", "one"]


@settings(max_examples=100)
@given(pairs=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=20))
def test_clusters_are_the_connected_parts(pairs: list[tuple[int, int]]) -> None:
    parent = list(range(13))

    def root(node: int) -> int:
        return node if parent[node] == node else root(parent[node])

    for first, second in pairs:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    assert clusters(np.array(pairs, dtype=np.int64).reshape(-1, 2), 13).tolist() == [root(node) for node in range(13)]


def test_lines_that_come_too_often_are_removed_in_their_bucket(tmp_path: Path) -> None:
    def page(number: int) -> Record:
        return {
            "id": str(number),
            "text": f"Accept all cookies {number}!\nA line of its own about llama number {'abcdefghijklmnop'[number]}\n\n---\nHome",
        }

    shards = [[page(number) for number in range(4)], [page(number) for number in range(4, 8)], [{"id": "only", "text": "Home\nhome."}]]
    left, report = run(tmp_path, shards, LineDedup())
    assert names(left) == [str(number) for number in range(8)]
    assert all("ookies" not in record["text"] and "Home" not in record["text"] and "own about" in record["text"] for record in left)
    assert all(record["text"].endswith("\n\n---") for record in left), "what says nothing stays"
    assert report.stages[-1]["dropped"] == {"only lines that come too often": [1, 10]}
    assert report.stages[-1]["notes"] == {"lines removed": 18}
    assert plain_line("  Page 12 of 300: NEXT! ") == "page 00 of 000 next"
    # In buckets of one shard each no line comes more than six times.
    left, report = run(tmp_path, shards, LineDedup(bucket_documents=4, partitions=2))
    assert len(left) == 9 and report.searches["search-0a-line_dedup"] == {"buckets": 3, "too_often": 0}


def test_tokens_unlike_the_corpus_go(tmp_path: Path, shared_data: Path) -> None:
    prose = [
        {"id": f"prose {number}", "lang": "en", "text": record["text"][:6000]}
        for number, record in zip(
            range(200), (r for r in read_records(shared_data / "corpus" / "openstax_en.jsonl.zst") if len(r["text"]) > 6000), strict=False
        )
    ]
    odd = [
        {"id": "numbers", "lang": "en", "text": " ".join(str(number * 7919 % 1000) for number in range(800))},
        {"id": "one word", "lang": "en", "text": "gnu " * 700},
        {"id": "other language", "lang": "xx", "text": "gnu " * 4000},
        {"id": "short", "lang": "en", "text": "gnu gnu gnu"},
    ]
    left, report = run(tmp_path, [prose + odd], TokenDistribution(min_tokens=1000))
    assert set(names(left)) == {record["id"] for record in prose} | {"other language", "short"}
    assert report.stages[-1]["dropped"]["tokens unlike the corpus"][0] == 2


def test_divergence_is_zero_for_the_same_distribution_and_grows() -> None:
    counts = np.array([1000, 1000, 1000, 1000])
    same, half, one = divergence([0, 1, 2, 3], counts), divergence([0, 1], counts), divergence([0], counts)
    assert same == pytest.approx(0, abs=1e-9) and half == pytest.approx(np.log(2)) and one == pytest.approx(np.log(4))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (UrlDedup, {"partitions": 0}),
        (ExactDedup, {"partitions": 100_000}),
        (MinHashDedup, {"partitions": 15}),
        (MinHashDedup, {"bands": 0}),
        (MinHashDedup, {"min_similarity": 0.0}),
        (LineDedup, {"max_count": 0}),
        (TokenDistribution, {"window": 3}),
    ],
)
def test_values_that_cannot_be_are_refused(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    assert caught.value.hint


def test_a_judge_outside_its_shard_drops_nothing(tmp_path: Path) -> None:
    save_drops(tmp_path, ids_of(1, np.array([0])), ids_of(0, np.array([0])))
    judge = ExactDedup().judge(tmp_path, 0)
    assert judge(0, {"text": "a"}, lambda what, count: None) == {"text": "a"}
    assert isinstance(ExactDedup().judge(tmp_path, 1)(0, {"text": "a"}, lambda what, count: None), Drop)
