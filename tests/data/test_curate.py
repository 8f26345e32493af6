"""Runs of curation: the same documents and report from any number of workers and after kill -9; configs and errors; the report page."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_sources_of_records import PAGE, warc  # pyright: ignore[reportMissingImports]
from test_stages import CODE, PROSE, SENTENCES  # pyright: ignore[reportMissingImports]

from herd.base.errors import ConfigError, FormatError, NotFoundError, UsageError
from herd.data.curate.compile import compile_plan
from herd.data.curate.config import PRESETS, CurateConfig, from_toml, preset, to_toml
from herd.data.curate.page import megabytes
from herd.data.curate.report import read_run
from herd.data.curate.run import curate, prepare
from herd.data.dedup.keys import ExactDedup
from herd.data.records import Record, read_records
from herd.data.stages.heuristics import Heuristics
from herd.data.stages.language import LanguageFilter
from herd.data.stages.overlap import Decontaminate
from herd.data.stages.page import ExtractText
from herd.data.stages.routes import Routes


def sources(folder: Path, count: int = 4) -> Path:
    """Files with texts of several languages, duplicates over files, code, short ones and one page."""
    folder.mkdir(parents=True)
    rng = random.Random(5)
    for number in range(count):
        records: list[Record] = []
        for _ in range(30):
            language = rng.choice(sorted(SENTENCES))
            sentences = [PROSE, *SENTENCES.values()] if language == "en" else [SENTENCES[language]] * 2
            words = " ".join(rng.sample(sentences, min(2, len(sentences)))).split()
            rng.shuffle(words)
            records.append({"text": " ".join(words) + f" {rng.random()}", "url": f"https://site{rng.randrange(20)}.org/{rng.randrange(5)}"})
        records += [{"text": PROSE, "id": f"prose {number}"}, {"text": CODE}, {"text": "short"}, {"other": 1}]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "page.warc").write_bytes(
        warc(("https://a.org/1", PAGE.encode(), "text/html"), ("https://a.org/porn", PAGE.encode(), "text/html"))
    )
    return folder


def outcome(folder: Path) -> dict[str, bytes]:
    """All that a run leaves for its user, and every file of its steps."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def config_of(place: Path, **values: Any) -> CurateConfig:
    stages = tuple(Heuristics(min_words=5) if stage.kind == "heuristics" else stage for stage in preset("web"))
    return CurateConfig(**{"sources": (str(place),), "stages": stages, **values})


def test_a_web_run_keeps_what_it_should_and_counts_the_rest(tmp_path: Path) -> None:
    report = curate(config_of(sources(tmp_path / "in")), tmp_path / "out")
    stages = {stage["stage"]: stage for stage in report.stages}
    assert list(stages) == ["read", *(stage.kind for stage in preset("web"))]
    assert stages["read"]["dropped"]["no text"][0] == 4 and stages["url"]["dropped"]["word in the address"][0] == 1
    assert stages["exact_dedup"]["dropped"]["same text"][0] == 9, "three copies of the prose, of the code and of what is short"
    assert stages["routes"]["notes"]["code"] == 4
    left = [record for path in sorted((tmp_path / "out" / "documents").iterdir()) for record in read_records(path)]
    assert report.total["documents_out"] == len(left) and report.total["documents_in"] == 4 * 34 + 2
    assert sum(record["text"] == PROSE for record in left) == 1 and sum(record.get("route") == "code" for record in left) == 1
    assert any(record.get("url") == "https://a.org/1" and "meadow" in record["text"] for record in left)
    assert len({record["from"] for record in left}) == len(left), "every document tells its file and record"
    dropped = sum(count for stage in report.stages for count, _ in stage["dropped"].values())
    assert report.total["documents_in"] - dropped == report.total["documents_out"]
    assert sum(counts[0] for counts in report.after["languages"].values()) == len(left)


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    place = sources(tmp_path / "in")
    for workers in (1, 4):
        curate(config_of(place), tmp_path / str(workers), workers=workers)
    first, second = outcome(tmp_path / "1"), outcome(tmp_path / "4")
    assert first == second and "report.json" in first and "documents/00000.jsonl.zst" in first


PROGRAM = """
import sys
from pathlib import Path
from herd.data.curate.report import read_run
from herd.data.curate.run import curate
if __name__ == "__main__":
    curate(read_run(Path(sys.argv[1]))[0], Path(sys.argv[1]), workers=int(sys.argv[2]))
"""


@pytest.mark.parametrize(("workers", "fraction"), [(1, 0.3), (2, 0.6)])
def test_a_run_killed_halfway_ends_in_the_same_bytes(tmp_path: Path, workers: int, fraction: float) -> None:
    config = config_of(sources(tmp_path / "in"))
    curate(config, tmp_path / "whole")
    plan = prepare(config, tmp_path / "out")
    total = sum(len(step.shards) for step in plan.steps)
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, str(tmp_path / "program.py"), str(tmp_path / "out"), str(workers)], env=environment)
    started = time.monotonic()
    while len(list((tmp_path / "out").glob("*/[!.]*/done.json"))) < fraction * total:
        assert child.poll() is None and time.monotonic() - started < 60
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = set((tmp_path / "out").glob("*/[!.]*/done.json"))
    times = {path: path.stat().st_mtime_ns for path in done}
    while True:
        try:
            curate(config, tmp_path / "out")
            break
        except UsageError:  # a worker of the killed run still ends
            assert time.monotonic() - started < 60
            time.sleep(0.05)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == times[path] for path in done), "what was done is not done again"


def test_public_text_gives_the_same_bytes_from_one_and_four_workers_and_after_a_kill(tmp_path: Path, shared_data: Path) -> None:
    full = os.environ.get("HERD_TEST_FULL") == "1"
    names = ["openstax_es", "tldr_pages", "onestop_english", "ms_courses", "klexikon_de"] if full else ["udhr", "childrens_stories"]
    files = tuple(str(shared_data / "corpus" / f"{name}.jsonl.zst") for name in names)
    evals = shared_data / "evals_public"
    against = Decontaminate(against=(str(evals if full else evals / "mmlu_dev.jsonl.zst"),))
    config = CurateConfig(sources=files, stages=(*preset("clean")[:7], against, *preset("clean")[7:]))
    curate(config, tmp_path / "one")
    plan = prepare(config, tmp_path / "four")
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, str(tmp_path / "program.py"), str(tmp_path / "four"), "4"], env=environment)
    started = time.monotonic()
    while len(list((tmp_path / "four").glob("*/[!.]*/done.json"))) < sum(len(step.shards) for step in plan.steps) // 2:
        assert child.poll() is None and time.monotonic() - started < 500
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    curate(config, tmp_path / "four", workers=4)
    assert outcome(tmp_path / "four") == outcome(tmp_path / "one")


def test_a_changed_stage_redoes_what_depends_on_it_only(tmp_path: Path) -> None:
    place = sources(tmp_path / "in")
    stages = (LanguageFilter(), ExactDedup(), Heuristics(min_words=5))
    curate(CurateConfig(sources=(str(place),), stages=stages), tmp_path / "out")
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/[!.]*/done.json")}
    curate(CurateConfig(sources=(str(place),), stages=(*stages[:2], Heuristics(min_words=8))), tmp_path / "out")
    changed = {path.parent.parent.name for path, when in first.items() if path.stat().st_mtime_ns != when}
    assert changed == {"pass-1"}


def test_a_changed_evaluation_set_is_noticed(tmp_path: Path) -> None:
    place = sources(tmp_path / "in")
    (tmp_path / "eval.jsonl").write_text(json.dumps({"q": "nothing of this kind is in any of the many files here at all"}))
    config = CurateConfig(sources=(str(place),), stages=(Decontaminate(against=(str(tmp_path / "eval.jsonl"),)),))
    assert curate(config, tmp_path / "out").stages[-1]["dropped"] == {}
    (tmp_path / "eval.jsonl").write_text(json.dumps({"q": " ".join(PROSE.split()[:14])}))
    assert curate(config, tmp_path / "out").stages[-1]["dropped"]["13-gram of an evaluation set"] == [4, 4 * len(PROSE)]


def test_routes_keep_stages_apart(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": CODE}) + "\n" + json.dumps({"text": "Too short."}))
    report = curate(CurateConfig(sources=(str(tmp_path / "in.jsonl"),), stages=(Routes(), Heuristics())), tmp_path / "out")
    assert report.stages[-1]["seen"] == 1 and report.total["documents_out"] == 1


def test_a_damaged_file_ends_the_run_or_is_left_from_there(tmp_path: Path) -> None:
    place = sources(tmp_path / "in")
    (place / "9.jsonl").write_text(json.dumps({"text": PROSE}) + "\n{broken\n")
    with pytest.raises(FormatError, match=r"step pass-0, shard 00004: .*9\.jsonl, line 2"):
        curate(config_of(place), tmp_path / "out")
    report = curate(config_of(place, on_damage="skip"), tmp_path / "out")
    assert report.stages[0]["dropped"]["damaged file, left from there on"][0] == 1


def test_another_field_may_hold_the_text(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"body": PROSE, "lang": "en"}))
    curate(CurateConfig(sources=(str(tmp_path / "in.jsonl"),), stages=(LanguageFilter(),), text_field="body"), tmp_path / "out")
    (record,) = read_records(tmp_path / "out" / "documents" / "00000.jsonl.zst")
    assert record == {"lang": "en", "text": PROSE, "from": "in.jsonl:0"}


def test_files_may_share_a_shard(tmp_path: Path) -> None:
    place = sources(tmp_path / "in")
    plan = compile_plan(config_of(place, files_per_shard=2))
    assert [len(shard.files) for shard in plan.steps[0].shards] == [2, 2, 1]


# The page


def test_the_page_needs_nothing_else_and_shows_all(tmp_path: Path) -> None:
    place = sources(tmp_path / "in")
    (place / "-.jsonl").write_text(json.dumps({"text": "<script>alert('x')</script>", "id": "<b>"}))
    curate(config_of(place, name="<herd>"), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"<[^>]*(src|href)=|<script|<link|@import|url\(", page)
    assert "&lt;script&gt;alert" in page and "Curation: &lt;herd&gt;" in page
    assert page.count("<svg") == 5 and "samples: too short" in page
    for stage in preset("web"):
        assert f"<h3>{stage.kind}</h3>" in page
    from xml.etree import ElementTree

    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    assert [megabytes(size) for size in (0, 999, 1e3, 2.5e9)] == ["0 B", "999 B", "1.0 kB", "2.5 GB"]


# Configurations


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_written_and_read_back(name: str) -> None:
    config = CurateConfig(name=name, sources=("a", "b"), stages=preset(name))
    assert from_toml(to_toml(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages = 3", "stages is no list"),
        ("[[stages]]\nmin_words = 3", "has no kind"),
        ('[[stages]]\nkind = "heuristic"', "unknown kind 'heuristic'"),
        ('[[stages]]\nkind = "heuristics"\nmin_word = 3', "unknown key 'stages.0.min_word'"),
        ('[[stages]]\nkind = "heuristics"\nmin_words = "3"', "must be of type int"),
        ("source = []", "unknown key 'source'"),
        ("schema_version = 99", "schema_version 99"),
        ("[[", "not TOML"),
        ('on_damage = "ignore"', "on_damage is 'ignore'"),
        ("files_per_shard = 0", "files_per_shard is 0"),
    ],
)
def test_a_config_that_is_none_is_refused_by_its_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_toml(text)
    assert caught.value.hint


def test_a_run_needs_sources_stages_and_a_folder_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="language comes before extract"):
        compile_plan(CurateConfig(sources=("x",), stages=(LanguageFilter(), ExtractText())))
    for config in (CurateConfig(sources=("x",)), CurateConfig(stages=preset("web"))):
        with pytest.raises(ConfigError, match="the config has no"):
            compile_plan(config)
    with pytest.raises(NotFoundError, match="no file of records"):
        compile_plan(CurateConfig(sources=(str(tmp_path / "none"),), stages=preset("web")))
    with pytest.raises(UsageError, match="unknown preset 'wep'") as caught:
        preset("wep")
    assert "web" in str(caught.value.hint)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match="no run of curation"):
        prepare(config_of(sources(tmp_path / "in")), tmp_path / "full")
    with pytest.raises(NotFoundError, match="holds no run"):
        read_run(tmp_path / "full")
