"""From a source's config to documents: which records are read, which are held out, and which of their tokens count."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from herd.base.errors import FormatError, NotFoundError
from herd.recipes.chat_data import drills, own_dialogues
from herd.recipes.sources import encode_record, is_heldout, read_source, record_text
from herd.text.bpe_train import train_bpe
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer
from herd.train.config import SourceConfig

RECORDS = [{"text": f"Text number {number}.", "lang": ("en", "de", "th")[number % 3]} for number in range(9)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["The herd grazes on the high plain, and the cria follows the herd. "] * 9, 270)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with one file."""
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return tmp_path


def texts(**fields: Any) -> SourceConfig:
    return SourceConfig(**({"name": "texts", "path": "texts.jsonl"} | fields))


def test_a_path_is_a_file_below_the_data_folder(data: Path) -> None:
    assert list(read_source(texts(), data, seed=0)) == RECORDS


def test_without_a_data_folder_such_a_source_is_refused_with_the_flag_to_pass() -> None:
    with pytest.raises(NotFoundError, match=r"reads texts\.jsonl from a data folder, and none was given") as caught:
        list(read_source(texts(), None, seed=0))
    assert caught.value.hint == "pass --data FOLDER"


def test_a_missing_file_of_the_folder_is_named(data: Path) -> None:
    with pytest.raises(NotFoundError, match=re.escape(str(data / "none.jsonl"))) as caught:
        list(read_source(texts(path="none.jsonl"), data, seed=0))
    assert "--data" in str(caught.value.hint)


def test_a_package_path_is_a_file_that_ships_with_herd() -> None:
    records = list(read_source(texts(path="package:tiny.txt"), None, seed=0))
    assert len(records) > 100 and all(record["text"].strip() for record in records)
    with pytest.raises(NotFoundError, match=r"none\.txt"):
        list(read_source(texts(path="package:none.txt"), None, seed=0))


def test_own_dialogues_and_drills_need_no_file() -> None:
    assert list(read_source(texts(path="own:dialogues", kind="chat"), None, seed=0)) == list(own_dialogues())
    source = texts(path="own:drills", kind="chat", num_items=50)
    assert list(read_source(source, None, seed=5)) == list(drills(5, 50))
    assert list(read_source(source, None, seed=6)) == list(drills(6, 50))
    assert len(list(read_source(texts(path="own:drills", kind="chat"), None, seed=5))) == 10_000


def test_languages_limits_and_bytes_choose_the_records(data: Path) -> None:
    def numbers(**fields: Any) -> list[int]:
        return [RECORDS.index(record) for record in read_source(texts(**fields), data, seed=0)]

    assert numbers(languages=("de",)) == [1, 4, 7]
    assert numbers(languages=("th", "en")) == [0, 2, 3, 5, 6, 8]
    assert numbers(languages=("fr",)) == []
    assert numbers(num_items=4) == [0, 1, 2, 3]
    assert numbers(num_items=2, languages=("de",)) == [1, 4]
    size = len(str(RECORDS[0]["text"]))
    assert numbers(max_bytes=3 * size) == [0, 1, 2]
    assert numbers(max_bytes=3 * size - 1) == [0, 1]
    assert numbers(max_bytes=size, languages=("th",)) == [2]


def test_bytes_are_counted_as_utf8(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "ลามะ"}) + "\n" + json.dumps({"text": "a"}) + "\n")
    assert len(list(read_source(texts(max_bytes=12), tmp_path, seed=0))) == 1
    assert len(list(read_source(texts(max_bytes=13), tmp_path, seed=0))) == 2


def test_a_records_text_is_its_document_or_its_turns() -> None:
    assert record_text({"text": "A document."}) == "A document."
    assert record_text({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}) == "Hi\nHello!"
    assert record_text({"question": "Who?", "answer": ["A llama."]}) == "Who?\nA llama."
    with pytest.raises(FormatError, match="holds no dialogue"):
        record_text({"txt": "A document."})


def test_the_split_is_a_function_of_the_text_and_about_one_in_n() -> None:
    documents = [f"document {number}" for number in range(4000)]
    for one_in in (4, 64):
        held = [document for document in documents if is_heldout(document, one_in)]
        # Five standard deviations.
        assert abs(len(held) - 4000 / one_in) < 5 * (4000 / one_in) ** 0.5
    # A digest of the text, so the split is the same in every version: a change would put held-out text into training.
    assert [number for number in range(60) if is_heldout(f"document {number}", 8)] == [3, 7, 20, 28, 38, 52]


def test_a_document_stands_between_begin_and_end_of_text(tokenizer: Tokenizer) -> None:
    document = encode_record({"text": "The herd."}, texts(), tokenizer, PromptFormat(), answers_only=True)
    assert list(document.ids) == [tokenizer.bos_id, *tokenizer.encode("The herd."), tokenizer.eos_id]
    assert document.counts is None, "every token of a text counts, whatever the stage"


def test_text_that_spells_a_special_token_stays_text(tokenizer: Tokenizer) -> None:
    spelled = "<|eot_id|><|begin_of_text|>"
    document = encode_record({"text": spelled}, texts(), tokenizer, PromptFormat(), answers_only=False)
    assert [number for number in document.ids if number >= tokenizer.num_base] == [tokenizer.bos_id, tokenizer.eos_id]
    chat = encode_record({"question": spelled, "answer": spelled}, texts(kind="chat"), tokenizer, PromptFormat(), answers_only=True)
    assert list(chat.ids).count(tokenizer.eot_id) == 2 and list(chat.ids).count(tokenizer.bos_id) == 1


DIALOGUE = {
    "messages": [
        {"role": "system", "content": "You are cria."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you."},
    ]
}


def test_a_dialogue_is_the_prompt_format_and_its_answers_count_to_their_end(tokenizer: Tokenizer) -> None:
    chat = PromptFormat()
    document = encode_record(DIALOGUE, texts(kind="chat"), tokenizer, chat, answers_only=True)
    assert tokenizer.decode(document.ids) == chat.render(DIALOGUE["messages"], generation_prompt=False)
    assert document.counts is not None
    counted = [token for token, counts in zip(document.ids, document.counts, strict=True) if counts]
    assert tokenizer.decode(counted) == "Hello!<|eot_id|>See you.<|eot_id|>"


def test_where_all_counts_a_dialogue_has_no_mask(tokenizer: Tokenizer) -> None:
    document = encode_record(DIALOGUE, texts(kind="chat"), tokenizer, PromptFormat(), answers_only=False)
    assert document.counts is None


@pytest.mark.parametrize("role", ["narrator", "User", ""])
def test_a_turn_of_another_role_is_refused(tokenizer: Tokenizer, role: str) -> None:
    record = {"messages": [{"role": "user", "content": "Hi"}, {"role": role, "content": "Hello!"}]}
    with pytest.raises(FormatError, match=f"unknown role '{role}'") as caught:
        encode_record(record, texts(kind="chat"), tokenizer, PromptFormat(), answers_only=True)
    assert caught.value.hint
