"""Records from files: what every accepted file gives, and the named error of every file that is not one."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import FormatError, NotFoundError
from herd.data.records import read_jsonl, read_lines, read_plain, read_records, to_messages

RECORDS: list[dict[str, Any]] = [
    {"text": "The herd grazes.", "lang": "en", "id": 1},
    {"text": "ลามะอยู่บนภูเขา। झुंड\u2028पहाड़ 🦙", "lang": "th"},
    {"text": "a line\nand another\r\n", "lang": "en"},
]
JSONL = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def frames(data: bytes, *cuts: int) -> bytes:
    """`data` as a zstd file of several frames, cut anywhere."""
    places = [0, *cuts, len(data)]
    return b"".join(COMPRESS[".zst"](data[begin:end]) for begin, end in pairwise(places))


def lines_of(count: int) -> bytes:
    return b"".join(json.dumps({"text": f"record {number}", "id": number}).encode() + b"\n" for number in range(count))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_json_lines_are_read_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"records.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](JSONL))
    assert list(read_records(path)) == RECORDS


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_text_file_is_one_record_or_one_between_every_two_rules(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"\nOne line.\nAnd one more.\n"))
    assert list(read_records(path)) == [{"text": "One line.\nAnd one more."}]
    path.write_bytes(COMPRESS[suffix]("---\nOne.\n---\n\n  \n---\r\nDeux --- café.\n --- \nthree\n---".encode()))
    assert list(read_records(path)) == [{"text": "One."}, {"text": "Deux --- café."}, {"text": "three"}]


def test_a_markdown_file_is_text(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# A title\n")
    assert list(read_records(path)) == [{"text": "# A title"}]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_an_empty_file_has_no_records(tmp_path: Path, suffix: str) -> None:
    for name in ("empty.jsonl", "empty.txt"):
        path = tmp_path / (name + suffix)
        path.write_bytes(COMPRESS[suffix](b"\n \n"))
        assert list(read_records(path)) == []


def test_blank_lines_count_but_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'\n{"id": 1}\n   \n{"id": 2}')
    assert list(read_records(path)) == [{"id": 1}, {"id": 2}]
    assert [number for number, _ in read_lines(path)] == [1, 2, 3, 4]


@settings(deadline=None, max_examples=60)
@given(cuts=st.lists(st.integers(0, len(JSONL)), max_size=4))
def test_a_zstd_file_of_several_frames_is_read_to_its_end(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    path = tmp_path_factory.mktemp("frames") / "records.jsonl.zst"
    path.write_bytes(frames(JSONL, *sorted(cuts)))
    assert list(read_records(path)) == RECORDS


def test_a_zstd_file_larger_than_every_buffer_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl.zst"
    data = lines_of(30_000)
    path.write_bytes(frames(data, 400_001, 400_002))
    assert [record["id"] for record in read_records(path)] == list(range(30_000))


def test_records_come_one_at_a_time_and_a_bad_line_spares_those_before_it(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(lines_of(3) + b"{\n")
    records = read_records(path)
    assert [record["id"] for record in islice(records, 3)] == [0, 1, 2]
    with pytest.raises(FormatError, match="line 4"):
        next(records)


BAD_LINES = {
    "not JSON": (b"{'text': 1}", "not JSON .Expecting property name"),
    "cut short": (b'{"text": "the her', "not JSON"),
    "two objects": (b'{"a": 1}{"a": 2}', "not JSON .Extra data"),
    "a list": (b'["text"]', "list, not an object"),
    "a number": (b"12", "int, not an object"),
    "null": (b"null", "NoneType, not an object"),
    "a number of many digits": (b'{"id": ' + b"9" * 5000 + b"}", "not JSON"),
    "nesting without end": (b'{"a":' * 100_000, "not JSON"),
    "half a surrogate pair": (rb'{"text": "a \ud83d b"}', "half a surrogate pair"),
    "half a surrogate pair, in capitals": (rb'{"text": "\uDC00"}', "half a surrogate pair"),
    "half a surrogate pair as a key": (rb'{"\ud83d": 1}', "half a surrogate pair"),
    "not UTF-8": (b'{"text": "\xe9t\xe9"}', r"not UTF-8 \(invalid continuation byte at byte 10\)"),
    "a surrogate written in UTF-8": (b'{"text": "\xed\xa0\xbd"}', "not UTF-8"),
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_malformed_line_is_refused_with_its_file_and_number(tmp_path: Path, kind: str, suffix: str) -> None:
    line, message = BAD_LINES[kind]
    path = tmp_path / f"records.jsonl{suffix}"
    # The good lines before it are more than a decoder's buffer: the number has to be the line's all the same.
    path.write_bytes(COMPRESS[suffix](lines_of(1000) + line + b"\n" + lines_of(1)))
    with pytest.raises(FormatError, match=f"^{re.escape(str(path))}, line 1001: {message}") as caught:
        list(read_jsonl(path))
    assert caught.value.hint


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("One line.\nUn café.\n".encode("latin-1"))
    with pytest.raises(FormatError, match=r"latin\.txt, line 2: not UTF-8") as caught:
        list(read_plain(path))
    assert "iconv" in str(caught.value.hint)


def test_a_whole_surrogate_pair_is_its_character(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(rb'{"text": "\ud83e\udd99 and a literal \\ud83d"}')
    assert list(read_jsonl(path)) == [{"text": r"🦙 and a literal \ud83d"}]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.9, 0.9999])
def test_a_compressed_file_cut_anywhere_is_refused(tmp_path: Path, suffix: str, fraction: float) -> None:
    path = tmp_path / f"records.jsonl{suffix}"
    whole = COMPRESS[suffix](lines_of(5000))
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(FormatError, match=f"{re.escape(str(path))} is damaged") as caught:
        list(read_records(path))
    assert caught.value.hint == "fetch the file again"


def test_a_zstd_file_whose_last_frame_has_no_end_is_refused_after_its_whole_frames(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl.zst"
    path.write_bytes(frames(lines_of(2)) + frames(lines_of(1))[:-1])
    records = read_records(path)
    assert [record["id"] for record in islice(records, 2)] == [0, 1]
    with pytest.raises(FormatError, match="no end"):
        list(records)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_that_is_not_compressed_as_its_name_says_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"records.jsonl{suffix}"
    path.write_bytes(JSONL)
    with pytest.raises(FormatError, match="not compressed as its name says"):
        list(read_records(path))


def test_a_gzip_file_with_another_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl.gz"
    damaged = bytearray(COMPRESS[".gz"](JSONL))
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(FormatError, match="damaged"):
        list(read_records(path))


def test_bytes_after_the_last_frame_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl.zst"
    path.write_bytes(frames(JSONL) + b"and more")
    with pytest.raises(FormatError, match="damaged"):
        list(read_records(path))


def test_a_missing_file_is_named_with_a_hint(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(NotFoundError, match=f"cannot read {re.escape(str(path))}") as caught:
            list(read_jsonl(path))
        assert "--data" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["records.json", "records.csv.zst", "records", "jsonl.gz"])
def test_a_file_of_another_kind_is_refused_before_it_is_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match="neither JSON lines nor text") as caught:
        read_records(tmp_path / name)
    assert ".jsonl.zst" in str(caught.value.hint)


def turns(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]


DIALOGUES: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "messages": ({"messages": turns("Hi", "Hello!", "Bye", ""), "lang": "en"}, turns("Hi", "Hello!", "Bye", "")),
    "messages win over a question": ({"messages": turns("Hi"), "question": "q", "answer": "a"}, turns("Hi")),
    "question and answer": ({"question": "Who?", "answer": "A llama."}, turns("Who?", "A llama.")),
    "the first of several answers": ({"question": "Who?", "answer": ["A llama.", "A cria."]}, turns("Who?", "A llama.")),
    "with a context": ({"context": "A tale.", "question": "Who?", "answer": "A fox."}, turns("A tale.\n\nWho?", "A fox.")),
    "with an empty context": ({"context": "", "question": "Who?", "answer": "A fox."}, turns("Who?", "A fox.")),
    "translation": ({"en": "Good day.", "hi": "नमस्ते"}, turns("Translate to Hindi: Good day.", "नमस्ते")),
}


@pytest.mark.parametrize("shape", DIALOGUES)
def test_every_shape_of_dialogue_becomes_turns(shape: str) -> None:
    record, expected = DIALOGUES[shape]
    assert to_messages(record) == expected


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"text": "prose"},
        {"messages": []},
        {"messages": "Hi"},
        {"question": "Who?"},
        {"question": "Who?", "answer": []},
        {"question": "Who?", "answer": [1]},
        {"question": 3, "answer": "4"},
        {"en": "Good day.", "hi": None},
    ],
    ids=str,
)
def test_a_record_without_a_dialogue_is_refused_with_its_fields(record: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=re.escape(f"fields {sorted(record)} holds no dialogue")) as caught:
        to_messages(record)
    assert "`messages`" in str(caught.value.hint)


@pytest.mark.parametrize("turn", ["Hi", None, {}, {"role": "user"}, {"role": "user", "content": None}, {"role": 1, "content": "Hi"}])
def test_a_turn_of_another_shape_is_refused_and_shown(turn: Any) -> None:
    with pytest.raises(FormatError, match="a turn of a dialogue is") as caught:
        to_messages({"messages": [*turns("Hi"), turn]})
    assert str(turn) in caught.value.message
    assert "`role` and `content`" in str(caught.value.hint)


def test_public_files_are_read_whole(shared_data: Path) -> None:
    udhr = list(read_records(shared_data / "corpus" / "udhr.jsonl.zst"))
    assert len({record["lang"] for record in udhr}) >= 8 and all(record["text"].strip() for record in udhr)
    small = list(read_records(shared_data / "instruct" / "chatterbot_smalltalk.jsonl.zst"))
    assert len(small) > 100 and all(len(to_messages(record)) >= 2 for record in small)
    translations = list(read_records(shared_data / "instruct" / "tatoeba_en_hi.jsonl.zst"))
    assert to_messages(translations[-1])[0]["content"].startswith("Translate to Hindi: ")
