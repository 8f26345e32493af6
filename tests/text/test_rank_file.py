"""Rank files: what is written is read back, and every way of being damaged is refused with its line and what to do."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import NotFoundError, TokenizerError
from herd.text import rank_file
from herd.text.rank_file import MAX_TOKEN_BYTES, Ranks, check_ranks, parse_ranks, read_ranks, write_ranks

SINGLE = [bytes([byte]) for byte in range(256)]
FILE = Path("tokenizer.model")


def lines(*tokens: bytes) -> list[bytes]:
    """A well-formed file of the 256 bytes and these tokens, line by line."""
    return [base64.b64encode(token) + b" " + str(rank).encode() for rank, token in enumerate([*SINGLE, *tokens])]


def refusal(data: bytes) -> TokenizerError:
    with pytest.raises(TokenizerError) as caught:
        parse_ranks(data, FILE)
    assert caught.value.hint
    return caught.value


def test_a_line_is_base64_a_space_and_the_rank() -> None:
    ranks = parse_ranks(b"\n".join(lines(b"he", b" the")) + b"\n", FILE)
    assert (ranks[b"\x00"], ranks[b"A"], ranks[b"he"], ranks[b" the"]) == (0, 65, 256, 257)


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["no last line end", "last line end"])
@pytest.mark.parametrize("separator", [b"\n", b"\r\n"], ids=["unix", "windows"])
def test_line_ends_of_both_kinds_are_read(separator: bytes, end: bytes) -> None:
    assert parse_ranks(separator.join(lines(b"ab")) + end, FILE) == {token: rank for rank, token in enumerate([*SINGLE, b"ab"])}


@settings(deadline=None, max_examples=100)
@given(st.lists(st.binary(min_size=2, max_size=12), unique=True, max_size=20))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, longer: list[bytes]) -> None:
    ranks = {token: rank for rank, token in enumerate([*SINGLE, *longer])}
    path = tmp_path_factory.getbasetemp() / "written.model"
    write_ranks(ranks, path)
    assert read_ranks(path) == ranks
    assert path.read_bytes() == b"\n".join(lines(*longer)) + b"\n"


def test_metas_file_is_written_back_byte_for_byte(llama3_file: Path, tmp_path: Path) -> None:
    write_ranks(read_ranks(llama3_file), tmp_path / "copy.model")
    assert (tmp_path / "copy.model").read_bytes() == llama3_file.read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b"", "line 301: b'' is not `base64 rank`"),
        (b"aGU=", "line 301: b'aGU=' is not `base64 rank`"),
        (b"aGU= 300 extra", "line 301: b'aGU= 300 extra' is not `base64 rank`"),
        (b"aGU=\t300", "is not `base64 rank`"),
        (b"a*b= 300", "line 301: b'a*b=' is not base64"),
        (b"aGVs# 300", "is not base64"),
        (b"a 300", "line 301: b'a' is not base64"),
        (b" 300", "line 301: a token of 0 bytes (limit 4096)"),
        (b"AAECAwQF 301", "line 301: rank b'301' where 300 was due"),
        (b"AAECAwQF -1", "rank b'-1' where 300 was due"),
        (b"AAECAwQF 0300", "rank b'0300' where 300 was due"),
        (b"AAECAwQF three", "rank b'three' where 300 was due"),
        (base64.b64encode(b"x" * (MAX_TOKEN_BYTES + 1)) + b" 300", "line 301: a token of 4097 bytes (limit 4096)"),
        (b"QQ== 300", "line 301: token b'A' is there twice (ranks 65 and 300)"),
    ],
)
def test_a_damaged_line_is_named_with_its_number(damage: bytes, message: str) -> None:
    whole = lines(*(b"token %d" % number for number in range(100)))
    error = refusal(b"\n".join([*whole[:300], damage, *whole[301:]]))
    assert message in error.message
    assert str(FILE) in error.message


def test_a_long_line_is_shown_in_part_only() -> None:
    assert len(refusal(b"\n".join([*lines(), b"x" * 1_000_000])).message) < 200


def test_an_empty_file_lacks_all_bytes() -> None:
    assert "lacks 256 of the 256 single bytes, the first is 0x00" in refusal(b"").message


def test_a_file_that_is_cut_short_lacks_bytes() -> None:
    assert "lacks 56 of the 256 single bytes, the first is 0xc8" in refusal(b"\n".join(lines()[:200])).message


def test_another_kind_of_file_is_refused_at_its_first_line() -> None:
    assert "line 1" in refusal(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n").message


@settings(deadline=None, max_examples=300)
@given(place=st.integers(0, 5000), replacement=st.binary(min_size=1, max_size=4))
def test_any_change_of_bytes_is_read_or_refused_by_name(place: int, replacement: bytes) -> None:
    data = b"\n".join(lines(b"ab", b"abc")) + b"\n"
    place %= len(data)
    changed = data[:place] + replacement + data[place + len(replacement) :]
    try:
        ranks = parse_ranks(changed, FILE)
    except TokenizerError as error:
        assert str(FILE) in error.message and error.hint
    else:
        check_ranks(ranks, "a file that was accepted")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rank_file, "_all_at_once", lambda _: None)
            assert parse_ranks(changed, FILE) == ranks, "read line by line it is the same"


def test_a_file_as_it_is_written_is_read_at_once() -> None:
    data = b"\n".join(lines(b"ab", b"abc")) + b"\n"
    assert rank_file._all_at_once(data) == parse_ranks(data, FILE)
    assert [rank_file._all_at_once(other) for other in (data[:-1], data.replace(b"\n", b"\r\n"), data + lines(b"ab")[0])] == [None] * 3


def test_a_file_over_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\n".join(lines()))
    monkeypatch.setattr(rank_file, "MAX_FILE_BYTES", 100)
    with pytest.raises(TokenizerError, match=r"has 2,\d\d\d bytes \(limit 100\)") as caught:
        read_ranks(path)
    assert caught.value.hint and "2 MB" in caught.value.hint


@pytest.mark.parametrize("name", ["absent.model", "."], ids=["absent", "a folder"])
def test_what_cannot_be_read_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match="cannot read") as caught:
        read_ranks(tmp_path / name)
    assert caught.value.hint == "check the path"


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({token: rank for rank, token in enumerate(SINGLE[1:])}, "the vocabulary lacks 1 of the 256 single bytes, the first is 0x00"),
        ({token: rank + (rank > 99) for rank, token in enumerate(SINGLE)}, "the ranks of the vocabulary have holes or repeat"),
        ({token: min(rank, 254) for rank, token in enumerate(SINGLE)}, "the ranks of the vocabulary have holes or repeat"),
        ({token: rank for rank, token in enumerate([*SINGLE, b""])}, "the vocabulary holds a token of 0 bytes (limit 4,096)"),
        ({token: rank for rank, token in enumerate([*SINGLE, b"x" * 5000])}, "holds a token of 5,000 bytes (limit 4,096)"),
    ],
    ids=["a byte missing", "a hole", "a repeat", "an empty token", "a long token"],
)
def test_a_vocabulary_that_cannot_spell_every_text_is_refused(ranks: Ranks, message: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        check_ranks(ranks, "the vocabulary")
    assert message in caught.value.message and caught.value.hint


def test_the_order_of_single_bytes_is_free() -> None:
    check_ranks({token: rank for rank, token in enumerate(reversed(SINGLE))}, "the vocabulary")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"old")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_ranks({token: rank for rank, token in enumerate(SINGLE)}, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
