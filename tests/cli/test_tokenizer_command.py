"""`herd tokenizer train | encode | decode`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard
from herd_command import HerdCommand  # pyright: ignore[reportMissingImports]

from herd.text.tokenizer import Tokenizer, load_tokenizer
from tiny_model import TEXT  # pyright: ignore[reportMissingImports]


def test_ids_of_a_text_are_printed_on_one_line(herd: HerdCommand, tiny_folder: Path, tiny_tokenizer: Tokenizer) -> None:
    result = herd("tokenizer", "encode", "-m", tiny_folder, "The herd grazes")
    assert (result.code, result.err) == (0, "")
    assert result.out == " ".join(map(str, tiny_tokenizer.encode("The herd grazes"))) + "\n"


def test_with_json_every_id_has_its_bytes(herd: HerdCommand, tiny_folder: Path) -> None:
    data = herd("tokenizer", "encode", "-m", tiny_folder, "--json", "a€").json
    assert list(data) == ["token_ids", "tokens", "num_tokens", "num_bytes"]
    assert data["num_tokens"] == len(data["token_ids"]) == len(data["tokens"]) and data["num_bytes"] == 4
    assert "".join(data["tokens"]) == r"a\xe2\x82\xac"


def test_special_tokens_are_text_unless_they_are_asked_for(herd: HerdCommand, tiny_folder: Path, tiny_tokenizer: Tokenizer) -> None:
    text = "<|eot_id|>"
    plain = herd("tokenizer", "encode", "-m", tiny_folder, "--json", text).json
    assert tiny_tokenizer.eot_id not in plain["token_ids"]
    asked = herd("tokenizer", "encode", "-m", tiny_folder, "--bos", "--specials", "--json", text).json
    assert asked["token_ids"] == [tiny_tokenizer.bos_id, tiny_tokenizer.eot_id]
    assert asked["tokens"] == ["<|begin_of_text|>", "<|eot_id|>"]


@pytest.mark.parametrize("text", ["", "a", "  two  spaces\n", "Où est le troupeau? ลามะ 🦙", "<|eot_id|>"])
def test_what_is_encoded_decodes_to_itself(herd: HerdCommand, tiny_folder: Path, text: str) -> None:
    ids = herd("tokenizer", "encode", "-m", tiny_folder, stdin=text).out
    assert herd("tokenizer", "decode", "-m", tiny_folder, "--json", stdin=ids).json == {"text": text, "num_tokens": len(ids.split())}
    assert herd("tokenizer", "decode", "-m", tiny_folder, stdin=ids.replace(" ", ", ")).out == text + "\n"


def test_ids_may_be_arguments(herd: HerdCommand, tiny_folder: Path) -> None:
    assert herd("tokenizer", "decode", "-m", tiny_folder, "72", "105").out == "Hi\n"


def test_text_may_be_piped_in_to_its_last_byte(herd: HerdCommand, tiny_folder: Path) -> None:
    assert herd("tokenizer", "encode", "-m", tiny_folder, "--json", stdin="a\n").json["num_bytes"] == 2
    assert herd("tokenizer", "encode", "-m", tiny_folder, "-", stdin="a").out == "97\n"


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_terminal_is_not_waited_for(herd: HerdCommand, tiny_folder: Path, command: str) -> None:
    assert "was given" in herd("tokenizer", command, "-m", tiny_folder).refusal(2)[0]


@pytest.mark.parametrize(
    ("stdin", "code", "fragment"),
    [("576", 1, "token id 576 is out of range"), ("-1", 1, "token id -1"), ("one 2", 2, "'one'"), ("1.5", 2, "'1.5'")],
)
def test_what_is_no_id_is_refused(herd: HerdCommand, tiny_folder: Path, stdin: str, code: int, fragment: str) -> None:
    assert fragment in herd("tokenizer", "decode", "-m", tiny_folder, stdin=stdin).refusal(code)[0]


def test_a_tokenizer_file_alone_can_be_used(herd: HerdCommand, tiny_folder: Path) -> None:
    expected = herd("tokenizer", "encode", "-m", tiny_folder, "The herd").out
    for name in ("tokenizer.model", "tokenizer.json"):
        assert herd("tokenizer", "encode", "-m", tiny_folder / name, "The herd").out == expected


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of training text in every form that is read."""
    folder = tmp_path / "texts"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.txt").write_text(TEXT * 4)
    (folder / "b.jsonl").write_text(
        json.dumps({"text": TEXT}) + "\n" + json.dumps({"messages": [{"role": "user", "content": TEXT}]}) + "\n"
    )
    (folder / "deeper" / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress((json.dumps({"text": TEXT}) + "\n").encode()))
    (folder / "ignored.bin").write_bytes(b"\xff\xfe")
    return folder


def test_a_tokenizer_is_trained_from_a_folder_of_texts(herd: HerdCommand, texts: Path, tmp_path: Path) -> None:
    result = herd("tokenizer", "train", texts, "-o", tmp_path / "out", "--vocab-size", "300")
    assert (result.code, result.out) == (0, "")
    assert f"wrote 300 + 256 tokens to {tmp_path / 'out'}" in result.err
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.num_base == 300 and tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"tokenizer.model", "tokenizer.json"}
    assert herd("tokenizer", "encode", "-m", tmp_path / "out", "a").out == "97\n"


def test_training_twice_gives_the_same_file(herd: HerdCommand, texts: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert herd("tokenizer", "train", texts / "a.txt", texts / "b.jsonl", "-o", tmp_path / name, "--vocab-size", "280").code == 0
    assert (tmp_path / "one" / "tokenizer.model").read_bytes() == (tmp_path / "two" / "tokenizer.model").read_bytes()


def test_a_folder_that_is_not_empty_is_replaced_only_when_asked(herd: HerdCommand, texts: Path, tmp_path: Path) -> None:
    words = ("tokenizer", "train", texts, "-o", tmp_path / "out", "--vocab-size", "260")
    assert herd(*words).code == 0
    assert "--overwrite" in herd(*words).refusal(2)[1]
    assert herd(*words, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("size", "code", "fragment"),
    [("255", 1, "it must be 256"), ("30000", 1, "tokens of the 30,000 asked for"), ("many", 2, "--vocab-size")],
)
def test_a_size_that_cannot_be_is_refused_and_nothing_is_left(
    herd: HerdCommand, texts: Path, tmp_path: Path, size: str, code: int, fragment: str
) -> None:
    assert fragment in herd("tokenizer", "train", texts, "-o", tmp_path / "out", "--vocab-size", size).refusal(code)[0]
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


@pytest.mark.parametrize("record", ['{"messages": 5}', '{"messages": ["Hi"]}', '{"title": "no text"}', '{"text": null}'])
def test_a_record_without_text_is_refused_and_not_passed_over(herd: HerdCommand, tmp_path: Path, record: str) -> None:
    (tmp_path / "data.jsonl").write_text(record + "\n")
    message, hint = herd("tokenizer", "train", tmp_path / "data.jsonl", "-o", tmp_path / "out", "--vocab-size", "256").refusal(1)
    assert message and hint and [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]
