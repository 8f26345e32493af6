"""Llama 3's tokenizer, id for id: the published vectors, tiktoken and Hugging Face over the public text.

Takes a bounded part of every file of text by default; `HERD_TEST_FULL=1` takes all of it (some minutes).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import zstandard
from transformers import AutoTokenizer

from herd.text.messages import Message
from herd.text.prompt import PromptFormat
from herd.text.rank_file import read_ranks
from herd.text.tokenizer import SPLIT_REGEX, Tokenizer, load_tokenizer

FULL = os.environ.get("HERD_TEST_FULL") == "1"
CHARS_A_FILE = 150_000
CHARS_A_FILE_HUB = 25_000
PART_CHARS = 100_000

PUBLISHED_REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SENTENCE = [2028, 374, 264, 1296, 11914, 13]
RESPONSE = [2028, 374, 264, 2077, 13]
VECTORS = [
    ("This is a test sentence.", SENTENCE),
    ("This is a response.", RESPONSE),
    ("user", [882]),
    ("system", [9125]),
    ("assistant", [78191]),
    ("ipython", [23799, 4690]),
    ("\n\n", [271]),
    ("Hello world", [9906, 1917]),
    (" Hello  world\n\n", [22691, 220, 1917, 271]),
    ("123456789", [4513, 10961, 16474]),
    ("don't WE'LL", [15357, 956, 20255, 6, 4178]),
    ("नमस्ते दुनिया", [61196, 88344, 79468, 100365, 35470, 100291, 101391, 100322, 24810]),
    ("สวัสดีชาวโลก", [106123, 119657, 111289, 100707, 107972]),
    ("Grüße, wie geht's?", [6600, 2448, 24352, 11, 13672, 40364, 596, 30]),
    ("safe", [19193]),
    ("unsafe", [39257]),
    ("naïve café", [3458, 38672, 588, 53050]),
    ("a" * 30, [70540, 70540, 70540, 29558, 5418]),
]


# The published file and vectors


def test_the_file_is_the_published_one(llama3_file: Path) -> None:
    data = llama3_file.read_bytes()
    assert len(data) == 2_183_982
    assert hashlib.sha256(data).hexdigest() == "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55"


def test_the_vocabulary_is_the_published_one(llama3_file: Path) -> None:
    ranks = read_ranks(llama3_file)
    assert list(ranks.values()) == list(range(128_000))
    assert sorted(ranks[bytes([byte])] for byte in range(256)) == list(range(256))
    assert max(map(len, ranks)) == 128


def test_the_split_regex_is_the_published_one() -> None:
    assert SPLIT_REGEX == PUBLISHED_REGEX


@pytest.mark.parametrize(("text", "ids"), VECTORS, ids=[repr(text) for text, _ in VECTORS])
def test_the_published_vectors(llama3: Tokenizer, text: str, ids: list[int]) -> None:
    assert llama3.encode(text) == ids
    assert llama3.decode(ids) == text


def test_the_published_sentence_between_begin_and_end_of_text(llama3: Tokenizer) -> None:
    ids = llama3.encode("This is a test sentence.", bos=True, eos=True)
    assert ids == [128000, *SENTENCE, 128001]
    assert llama3.decode(ids) == "<|begin_of_text|>This is a test sentence.<|end_of_text|>"


def test_the_published_dialogue(llama3: Tokenizer) -> None:
    dialogue = [Message.system("This is a test sentence."), Message.user("This is a response.")]
    system, user = [128006, 9125, 128007, 271, *SENTENCE, 128009], [128006, 882, 128007, 271, *RESPONSE, 128009]
    assert PromptFormat().encode(llama3, dialogue) == [128000, *system, *user, 128006, 78191, 128007, 271]


def test_the_vectors_of_llama_cpp(llama3: Tokenizer, shared_data: Path) -> None:
    stem = shared_data / "reference" / "tokenizer_vectors" / "ggml-vocab-llama-bpe.gguf"
    if not stem.with_suffix(".gguf.inp").exists():
        pytest.skip(f"needs the vectors of llama.cpp, which are not at {stem}.inp")
    texts = stem.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    wanted = [[int(number) for number in line.split()] for line in stem.with_suffix(".gguf.out").read_text(encoding="utf-8").splitlines()]
    assert texts.pop() == ""
    assert len(texts) == len(wanted) == 46
    assert [llama3.encode(text) for text in texts] == wanted


# The public text


@cache
def plain_tiktoken(path: Path) -> tiktoken.Encoding:
    """tiktoken over the file, read here line by line: nothing of herd in between."""
    ranks: dict[bytes, int] = {}
    for line in path.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    return tiktoken.Encoding("plain", pat_str=PUBLISHED_REGEX, mergeable_ranks=ranks, special_tokens={})


@pytest.fixture
def saved(llama3: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Llama 3's tokenizer as herd writes it, written once."""
    folder = tmp_path_factory.getbasetemp() / "saved llama3"
    if not folder.exists():
        llama3.save(folder)
    return folder


def texts_in(value: Any) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)


def records(path: Path) -> Iterator[str]:
    """The texts of a file, as it stands on disk or compressed, record by record if it has records."""
    with open(path, "rb") as raw:
        stream = zstandard.ZstdDecompressor().stream_reader(raw) if path.suffix == ".zst" else raw
        lines = io.TextIOWrapper(stream, encoding="utf-8", newline="\n")
        if ".jsonl" in path.suffixes:
            for line in lines:
                yield from texts_in(json.loads(line))
        elif path.suffix == ".json":
            yield from texts_in(json.load(lines))
        else:
            yield lines.read()


def text_of(path: Path, limit: int) -> Iterator[str]:
    """The first texts of a file, up to so many characters, none so long that Meta's limits would cut it."""
    room = limit
    for record in records(path):
        for start in range(0, len(record), PART_CHARS):
            if room <= 0 and not FULL:
                return
            part = record[start : start + (PART_CHARS if FULL else min(PART_CHARS, room))]
            room -= len(part)
            yield part


def corpus_files(folder: Path) -> list[Path]:
    """Every file of public text below a folder."""
    return sorted(path for path in folder.rglob("*") if {".jsonl", ".json", ".csv", ".txt", ".md", ".en"} & set(path.suffixes))


def batches(texts: Iterator[str], size: int = 512) -> Iterator[list[str]]:
    while batch := list(islice(texts, size)):
        yield batch


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_public_text_encodes_as_tiktoken_does_and_decodes_to_itself(llama3: Tokenizer, llama3_file: Path, shared_data: Path) -> None:
    peer = plain_tiktoken(llama3_file)
    num_chars = 0
    for path in corpus_files(shared_data):
        for batch in batches(text_of(path, CHARS_A_FILE)):
            found = llama3.encode_batch(batch, num_threads=1)
            for text, ids in zip(batch, found, strict=True):
                assert ids == peer.encode_ordinary(text), f"{path.name}: {text[:200]!r}"
                assert peer.decode(ids) == text, f"{path.name}: {text[:200]!r}"
                num_chars += len(text)
    assert num_chars > 4_000_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_public_text_encodes_as_hugging_face_does_with_the_file_that_we_write(
    llama3: Tokenizer, saved: Path, shared_data: Path
) -> None:
    peer = AutoTokenizer.from_pretrained(saved)
    num_chars = 0
    for path in corpus_files(shared_data):
        for batch in batches(text_of(path, CHARS_A_FILE_HUB)):
            for text, ids in zip(batch, peer(batch, add_special_tokens=False)["input_ids"], strict=True):
                assert llama3.encode(text, allowed_special="all") == ids, f"{path.name}: {text[:200]!r}"
                num_chars += len(text)
    assert num_chars > 800_000


def test_hugging_face_puts_begin_of_text_first_and_knows_the_special_tokens(llama3: Tokenizer, saved: Path) -> None:
    peer = AutoTokenizer.from_pretrained(saved)
    assert peer("This is a test sentence.")["input_ids"] == [128000, *SENTENCE]
    assert peer.convert_tokens_to_ids(list(llama3.special_tokens)) == list(llama3.special_tokens.values())
    assert (peer.bos_token_id, peer.eos_token_id, peer.pad_token_id) == (llama3.bos_id, llama3.eot_id, llama3.pad_id)
    assert len(peer) == llama3.vocab_size
    assert peer.decode(SENTENCE) == "This is a test sentence."


def test_the_written_tokenizer_json_of_llama_3_reads_back(llama3: Tokenizer, saved: Path) -> None:
    loaded = load_tokenizer(saved / "tokenizer.json")
    assert loaded.ranks == llama3.ranks
    assert loaded.special_tokens == llama3.special_tokens
