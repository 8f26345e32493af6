"""Sources: globs, folders and URLs name the same files everywhere; Parquet, WARC and HTML give records; damaged and endless ones do not."""

from __future__ import annotations

import gzip
import json
from datetime import date
from pathlib import Path

import fsspec
import pytest
import zstandard

from herd.base.errors import FormatError, NotFoundError
from herd.data import records
from herd.data.records import read_raw, read_records
from herd.data.sources import expand
from herd.data.web import html_to_text

PAGE = """<!DOCTYPE html><html><head><title>Herds</title><script>var x = 1;</script><style>p {color: red}</style></head><body>
<nav><a href="/">Home</a> <a href="/about">About us</a></nav>
<article><h1>How llamas graze</h1><p>A herd of llamas moves slowly over the high meadow, and every one keeps an eye on its neighbours.</p>
<p>The area of a round meadow is <math alttext="A = \\pi r^2"><mi>A</mi><mo>=</mo></math>, and its rim
<math><semantics><mi>U</mi><annotation encoding="application/x-tex">U = 2 \\pi r</annotation></semantics></math>.</p>
<pre><code>for llama in herd:
    llama.graze()
</code></pre><p><img src="a.png" alt="A llama on a rock"> looks down while they eat the short grass of the afternoon.</p></article>
<footer>Copyright nobody</footer></body></html>"""


def warc(*pages: tuple[str, bytes, str]) -> bytes:
    """A WARC file of responses, as a crawler writes it."""
    out = b""
    for url, body, kind in pages:
        http = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        head = (
            "WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:12345678-1234-1234-1234-123456789012>\r\n"
            f"WARC-Target-URI: {url}\r\nWARC-Date: 2023-05-01T10:00:00Z\r\nContent-Type: application/http; msgtype=response\r\n"
            f"Content-Length: {len(http)}\r\n\r\n"
        )
        out += head.encode() + http + b"\r\n\r\n"
    return out


def test_a_page_gives_its_main_text_with_formulas_code_and_pictures() -> None:
    text = html_to_text(PAGE)
    assert "A herd of llamas moves slowly" in text
    assert "$A = \\pi r^2$" in text and "$U = 2 \\pi r$" in text
    assert "for llama in herd:\n    llama.graze()" in text
    assert "A llama on a rock" in text
    assert not any(word in text for word in ("About us", "Copyright", "var x", "color", "#", "**"))
    assert html_to_text("") == ""
    assert html_to_text('<p>f <math alttext="a"><math alttext="b"><mi>c</mi></math></math></p>') == "f $a$"
    assert html_to_text("<div>" * 400_000) == "", "nested without end, it would take hours"
    assert len(html_to_text("<p>a<br>" * 30_000)) > 30_000


@pytest.mark.parametrize("packed", [False, True])
def test_a_warc_file_gives_its_pages(tmp_path: Path, packed: bool) -> None:
    data = warc(
        ("https://a.org/1", PAGE.encode(), "text/html; charset=utf-8"),
        ("https://a.org/2.png", b"\x89PNG", "image/png"),
        ("https://a.org/3", "<p>Un café à la montagne, très haut.</p>".encode("latin-1"), "text/html; charset=iso-8859-1"),
    )
    path = tmp_path / ("crawl.warc.gz" if packed else "crawl.warc")
    path.write_bytes(gzip.compress(data) if packed else data)
    raw = list(read_raw(path))
    assert [record["url"] for record in raw] == ["https://a.org/1", "https://a.org/3"]
    assert raw[0]["html"] == PAGE and raw[0]["date"] == "2023-05-01T10:00:00Z"
    assert "café à la montagne" in list(read_records(path))[1]["text"]


def test_the_text_of_a_wet_file_is_taken_as_it_is(tmp_path: Path) -> None:
    body = b"Des lamas.\nUn troupeau."
    head = "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: https://b.fr\r\n"
    head += "WARC-Date: 2023-01-01T00:00:00Z\r\nContent-Type: text/plain\r\n"
    path = tmp_path / "crawl.warc.wet.gz"
    path.write_bytes(gzip.compress(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n\r\n"))
    assert list(read_records(path)) == [{"text": body.decode(), "url": "https://b.fr", "date": "2023-01-01T00:00:00Z"}]


def test_a_warc_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "crawl.warc.gz"
    whole = gzip.compress(
        warc(*((f"https://a.org/{n}", PAGE.encode() + bytes(str(n * 7919), "ascii") * 50, "text/html") for n in range(50)))
    )
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="damaged"):
        list(read_raw(path))


def test_an_html_file_is_one_record(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGE)
    (record,) = read_records(path)
    assert record["text"].startswith("How llamas graze") and record["url"] == str(path)


def test_rows_of_a_parquet_file_are_records(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"text": f"row {number}", "lang": "en" if number % 2 else None, "when": date(2020, 1, 1)} for number in range(1300)]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    read = list(read_records(path))
    assert read[0] == {"text": "row 0", "when": "2020-01-01"} and read[1299]["lang"] == "en" and len(read) == 1300
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FormatError, match="no whole Parquet file"):
        list(read_records(path))


def test_a_url_is_read_as_a_file_is(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"text": f"line {number}"}).encode() + b"\n" for number in range(3))
    memory = fsspec.filesystem("memory")
    memory.pipe({"/herd-test/a.jsonl.zst": zstandard.compress(lines), "/herd-test/sub/b.jsonl": lines, "/herd-test/c.bin": b""})
    try:
        assert expand(["memory://herd-test"]) == ["memory:///herd-test/a.jsonl.zst", "memory:///herd-test/sub/b.jsonl"]
        assert expand(["memory://herd-test/*.zst"]) == ["memory:///herd-test/a.jsonl.zst"]
        for url in expand(["memory://herd-test"]):
            assert [record["text"] for record in read_records(url)] == ["line 0", "line 1", "line 2"]
        with pytest.raises(NotFoundError, match="memory://herd-test/none"):
            expand(["memory://herd-test/none.jsonl"])
        with pytest.raises(NotFoundError, match="cannot read"):
            list(read_records("memory://herd-test/none.jsonl"))
    finally:
        memory.rm("/herd-test", recursive=True)


def test_files_folders_and_globs_are_expanded_in_order_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jsonl", "a.txt", "sub/c.jsonl.gz", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(tmp_path / name) for name in ("a.txt", "b.jsonl", "sub/c.jsonl.gz")]
    assert expand([tmp_path]) == names
    assert expand([tmp_path / "b.jsonl", f"{tmp_path}/*.txt", f"{tmp_path}/**/*.gz", tmp_path]) == [names[1], names[0], names[2]]
    monkeypatch.chdir(tmp_path)
    assert expand(["*.jsonl", "sub"]) == ["b.jsonl", "sub/c.jsonl.gz"]
    for nothing in ("none.jsonl", "*.parquet", str(tmp_path / "sub" / "none")):
        with pytest.raises(NotFoundError, match="no file of records"):
            expand([nothing])


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 2**20)
    data = b'{"text": "short"}\n{"text": "' + b"a" * (2**20)
    path = tmp_path / f"endless.jsonl{suffix}"
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix](data))
    lines = read_records(path)
    assert next(lines) == {"text": "short"}
    with pytest.raises(FormatError, match="line 2: longer than 1 MiB"):
        next(lines)
