"""Tokens on disk: written document by document, read back whole, refused when damaged; tokenised the same by any number of workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import ConfigError, FormatError, NotFoundError
from herd.data.token_shards import INDEX, ShardWriter, TokenDataset, write_index
from herd.data.tokenise import TokeniseConfig, tokenise
from herd.text.messages import Message
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer
from tiny_model import tiny_tokenizer  # noqa: F401  # pyright: ignore[reportMissingImports]


def write_dataset(
    folder: Path, shards: list[list[list[int]]], *, vocab_size: int = 70_000, counts: list[list[list[bool] | None]] | None = None
) -> TokenDataset:
    """A data set of these documents."""
    folder.mkdir(parents=True, exist_ok=True)
    infos = []
    for number, documents in enumerate(shards):
        writer = ShardWriter(folder, f"{number:05d}", vocab_size=vocab_size, has_counts=counts is not None)
        for place, ids in enumerate(documents):
            writer.add(ids, counts[number][place] if counts else None)
        infos.append(writer.close())
    write_index(folder, infos, vocab_size=vocab_size, pad_id=vocab_size - 1, tokenizer="t", has_counts=counts is not None)
    return TokenDataset(folder)


SHARDS = st.lists(st.lists(st.lists(st.integers(0, 300), max_size=12), max_size=6), min_size=1, max_size=4)


@settings(max_examples=40)
@given(shards=SHARDS, vocab_size=st.sampled_from([400, 2**16, 2**16 + 1, 128_256]))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, shards: list[list[list[int]]], vocab_size: int) -> None:
    data = write_dataset(tmp_path_factory.mktemp("tokens"), shards, vocab_size=vocab_size)
    documents = [ids for shard in shards for ids in shard]
    assert data.num_documents == len(documents) and data.num_tokens == sum(map(len, documents))
    assert [data.document(number).tolist() for number in range(len(documents))] == documents
    with pytest.raises(IndexError):
        data.document(len(documents))
    assert data.tokens(0, 0, 0).dtype.itemsize == (2 if vocab_size <= 2**16 else 4)
    data.verify()
    assert TokenDataset(data.folder).digest == data.digest


def test_damage_is_told(tmp_path: Path) -> None:
    shards = [[[1, 2, 3], [4]], [[5, 6]]]
    data = write_dataset(tmp_path / "a", shards)
    path = tmp_path / "a" / "00001.tokens.bin"
    path.write_bytes(b"\x09" + path.read_bytes()[1:])
    with pytest.raises(FormatError, match=r"shard 00001 .* other contents"):
        data.verify()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="has 7 bytes, the index says 8"):
        TokenDataset(tmp_path / "a")
    with pytest.raises(FormatError, match="ends before byte"):
        data.document(2)
    path.unlink()
    with pytest.raises(FormatError, match="has None bytes"):
        TokenDataset(tmp_path / "a")
    write_dataset(tmp_path / "b", shards)
    np.save(tmp_path / "b" / "00000.ends.npy", np.array([3, 5]))
    with pytest.raises(FormatError, match="does not fit"):
        TokenDataset(tmp_path / "b")
    (tmp_path / "b" / "00000.ends.npy").write_bytes(b"")
    with pytest.raises(FormatError, match="cannot be read"):
        TokenDataset(tmp_path / "b")
    for text in (
        "",
        "{}",
        '{"version": 9}',
        '{"version": 1, "vocab_size": 1, "pad_id": 0, "tokenizer": "", "has_counts": 0, "shards": [{}]}',
    ):
        (tmp_path / "b" / INDEX).write_text(text)
        with pytest.raises(FormatError):
            TokenDataset(tmp_path / "b")
    with pytest.raises(NotFoundError, match="holds no tokens"):
        TokenDataset(tmp_path / "none")


@pytest.fixture
def tokenizer_folder(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:  # noqa: F811
    tiny_tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_text_is_tokenised_between_its_marks_by_any_number_of_workers(
    tmp_path: Path,
    tokenizer_folder: Path,
    tiny_tokenizer: Tokenizer,  # noqa: F811
) -> None:
    texts = [f"the herd grazes {number}" for number in range(9)]
    for number in range(3):
        write_lines(tmp_path / f"{number}.jsonl", [{"text": text, "lang": "de" if text[-1] == "4" else "en"} for text in texts[number::3]])
    config = TokeniseConfig(tokenizer=str(tokenizer_folder), languages=("en",))
    files = [str(tmp_path / "*.jsonl")]
    report = tokenise(files, tmp_path / "one", config)
    tokenise(files, tmp_path / "two", config, workers=2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()
    }
    data = TokenDataset(tmp_path / "one")
    expected = [text for number in range(3) for text in texts[number::3] if text[-1] != "4"]
    assert [data.document(n).tolist() for n in range(8)] == [tiny_tokenizer.encode(text, bos=True, eos=True) for text in expected]
    assert report["documents"] == 8 and report["tokens"] == data.num_tokens and data.pad_id == tiny_tokenizer.pad_id
    assert not list(tmp_path.glob(".one*")), "the parts of the work are gone"


def test_of_dialogues_only_answers_may_count(tmp_path: Path, tokenizer_folder: Path, tiny_tokenizer: Tokenizer) -> None:  # noqa: F811
    turns = [{"role": "user", "content": "who grazes"}, {"role": "assistant", "content": "the herd"}]
    write_lines(tmp_path / "chat.jsonl", [{"messages": turns}])
    tokenise(
        [str(tmp_path / "chat.jsonl")], tmp_path / "chat", TokeniseConfig(tokenizer=str(tokenizer_folder), kind="chat", answers_only=True)
    )
    data = TokenDataset(tmp_path / "chat")
    ids, answer = PromptFormat().encode_with_mask(tiny_tokenizer, [Message.user("who grazes"), Message.assistant("the herd")])
    assert data.document(0).tolist() == list(ids)
    counts = data.counts(0, 0, len(ids))
    assert counts is not None and counts.tolist() == list(answer) and 0 < counts.sum() < len(ids)


def test_what_cannot_be_tokenised_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    write_lines(tmp_path / "chat.jsonl", [{"messages": [{"role": "wizard", "content": "x"}]}])
    with pytest.raises(FormatError, match="has no text"):
        tokenise([str(tmp_path / "chat.jsonl")], tmp_path / "a", TokeniseConfig(tokenizer=str(tokenizer_folder)))
    with pytest.raises(FormatError, match="'wizard'"):
        tokenise([str(tmp_path / "chat.jsonl")], tmp_path / "a", TokeniseConfig(tokenizer=str(tokenizer_folder), kind="chat"))
    assert not (tmp_path / "a").exists()
    with pytest.raises(ConfigError, match="answers_only"):
        TokeniseConfig(tokenizer="x", answers_only=True)
