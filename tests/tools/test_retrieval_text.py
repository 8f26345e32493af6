"""Files as text and text as passages: every kind that is read, hostile ones, and places that lead back to the text."""

from __future__ import annotations

import io
import itertools
import zipfile
from typing import Any

import pytest
from docx import Document
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from herd.base.errors import UsageError
from herd.tools.retrieval.chunking import Chunking, cut, token_ends
from herd.tools.retrieval.extract import ExtractLimits, InvalidFileError, UnsupportedFileError, extract_text, reason_of


class Bytes:
    """A token for each two bytes: borders fall into characters."""

    def __init__(self, size: int = 2) -> None:
        self.size, self.parts = size, list[bytes]()

    def encode(self, text: str) -> list[int]:
        data = text.encode("utf-8", "replace")
        self.parts = [data[at : at + self.size] for at in range(0, len(data), self.size)]
        return list(range(len(self.parts)))

    def token_bytes(self, token_id: int) -> bytes:
        return self.parts[token_id]


def pdf(text: str, **encryption: Any) -> bytes:
    writer = PdfWriter()
    page = writer.add_blank_page(300, 300)
    font = DictionaryObject({NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1")})
    font[NameObject("/BaseFont")] = NameObject("/Helvetica")
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})})
    stream = DecodedStreamObject()
    stream.set_data(f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode())
    page[NameObject("/Contents")] = writer._add_object(stream)
    if encryption:
        writer.encrypt(**encryption)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def docx(*lines: str) -> bytes:
    document = Document()
    for line in lines:
        document.add_paragraph(line)
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "river", "Nile"
    document.add_paragraph("the end")
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.txt", "Größe\r\n🦙".encode(), "Größe\r\n🦙"),
        ("README", b"no ending", "no ending"),
        ("a.md", b"\xef\xbb\xbf# A title", "# A title"),
        ("a.txt", "Größe".encode("utf-16"), "Größe"),
        ("a.txt", b"a\0b", "a\ufffdb"),
        ("a.html", b"<title>T</title><script>no()</script><p>One<p>Two", "T\nOne\nTwo"),
        ("a.csv", b"name,age\nann,3\nbob,\n", "name: ann; age: 3\nname: bob"),
        ("a.tsv", b"name\tage\nann\t3\n", "name: ann; age: 3"),
        ("a.json", b'{"a": "\\u00e4"}', '{\n "a": "ä"\n}'),
        ("a.jsonl", b'{"a": 1}\n\n{"a": 2}\n', '{"a": 1}\n{"a": 2}'),
        ("A.PDF", pdf("Hello rivers"), "Hello rivers"),
        ("noname", pdf("Hello rivers"), "Hello rivers"),
        ("a.docx", docx("First", "Größe"), "First\nGröße\nriver | Nile\nthe end"),
    ],
)
def test_a_file_is_read_as_its_text(name: str, data: bytes, text: str) -> None:
    assert extract_text(name, data) == text


def bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"0" * 40_000_000)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.png", b"\x89PNG....", "is no text"),
        ("a.txt", b"PK\x03\x04", "is no text"),
        ("a.exe", b"text", "is of a kind that is not read"),
    ],
)
def test_a_kind_that_is_not_read_is_named(name: str, data: bytes, said: str) -> None:
    with pytest.raises(UnsupportedFileError, match=said) as caught:
        extract_text(name, data)
    assert reason_of(caught.value)[0] == "unsupported_file"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"\xff\xff", "is not UTF-8"),
        ("a.json", b"{", "is not JSON"),
        ("a.json", b"[" * 100_000, "is not JSON"),
        ("a.txt", b"x" * 200_001, "200,000 are read at most"),
        ("a.pdf", b"%PDF-1.4 nothing", "the pdf file cannot be read"),
        ("a.pdf", pdf("secret", user_password="x"), "locked with a password"),
        ("a.docx", b"no zip", "it is no Word file"),
        ("a.docx", bomb(), r"unpacked it has over 1,000,000 bytes"),
    ],
)
def test_what_is_damaged_or_hostile_is_refused_by_name(name: str, data: bytes, said: str) -> None:
    with pytest.raises(InvalidFileError, match=said) as caught:
        extract_text(name, data, ExtractLimits(file_bytes=200_000, unpacked_bytes=1_000_000))
    assert reason_of(caught.value)[0] == "invalid_file"


def test_a_reader_that_takes_too_long_is_ended() -> None:
    with pytest.raises(InvalidFileError, match="took over"):
        extract_text("a.pdf", pdf("x"), ExtractLimits(timeout_s=0.001))


def test_the_log_has_what_a_client_is_not_told() -> None:
    assert reason_of(ValueError("at 0x7f")) == ("server_error", "an error of the server; its log tells more")


TEXTS = st.text(alphabet=st.sampled_from("ab \n\tä🦙ไ."), max_size=1500)


@settings(max_examples=40)
@given(TEXTS, st.integers(1, 5), st.integers(100, 140), st.integers(0, 50))
def test_passages_are_places_of_the_text_and_cover_it(text: str, size: int, tokens: int, overlap: int) -> None:
    counter = Bytes(size)
    spans = cut(text, Chunking(max_tokens=tokens, overlap=overlap), counter)
    covered: set[int] = set()
    for span in spans:
        piece = text[span.start : span.end]
        assert piece and piece == piece.strip()
        assert len(piece.encode()) <= tokens * size + 4 * 2
        covered |= set(range(span.start, span.end))
    assert [one.start for one in spans] == sorted(one.start for one in spans)
    assert all(text[at].isspace() for at in range(len(text)) if at not in covered)


@given(st.text(max_size=300), st.integers(1, 7))
def test_tokens_end_behind_characters(text: str, size: int) -> None:
    ends = token_ends(text, Bytes(size))
    assert ends == sorted(ends) and (ends[-1] if ends else 0) == len(text)


def test_passages_share_what_they_are_told_to() -> None:
    text = " ".join(f"word{number:04d}" for number in range(400))
    spans = cut(text, Chunking(max_tokens=200, overlap=100), Bytes(4))
    for one, two in itertools.pairwise(spans):
        assert 300 <= one.end - two.start <= 500, "about 100 tokens of four bytes"
        assert text[two.start - 1].isspace() or text[two.start : two.start + 4].isalnum()


@pytest.mark.parametrize(
    ("tokens", "overlap", "said"), [(99, 0, "it must be 100 to 4,096"), (5000, 0, "4,096"), (200, 101, "half of"), (200, -1, "half of")]
)
def test_sizes_that_cannot_be_are_refused(tokens: int, overlap: int, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Chunking(max_tokens=tokens, overlap=overlap)
    assert said in (caught.value.hint or "")


def test_a_small_model_gets_smaller_passages() -> None:
    assert Chunking().within(500) == Chunking(max_tokens=500, overlap=250)
    assert Chunking().within(4000) == Chunking()
