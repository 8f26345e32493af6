"""The 256 special tokens: what matters is the id, and Meta's names for them at both releases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from herd.text.specials import NUM_SPECIAL, SPECIAL_TOKENS, llama3_special_tokens
from herd.text.tokenizer import Tokenizer

NAMED = {
    128000: "<|begin_of_text|>",
    128001: "<|end_of_text|>",
    128002: "<|reserved_special_token_0|>",
    128003: "<|reserved_special_token_1|>",
    128004: "<|finetune_right_pad_id|>",
    128005: "<|step_id|>",
    128006: "<|start_header_id|>",
    128007: "<|end_header_id|>",
    128008: "<|eom_id|>",
    128009: "<|eot_id|>",
    128010: "<|python_tag|>",
}


@pytest.mark.parametrize("names", [SPECIAL_TOKENS, llama3_special_tokens()], ids=["july 2024", "april 2024"])
def test_there_are_256_of_them_with_names_of_their_own(names: tuple[str, ...]) -> None:
    assert NUM_SPECIAL == 256
    assert len(names) == len(set(names)) == 256
    assert all(name.startswith("<|") and name.endswith("|>") for name in names)


def test_the_first_eleven_are_those_of_the_july_2024_release() -> None:
    assert dict(enumerate(SPECIAL_TOKENS[:11], start=128000)) == NAMED


def test_the_rest_are_reserved_tokens_2_to_246() -> None:
    assert SPECIAL_TOKENS[11:] == tuple(f"<|reserved_special_token_{number}|>" for number in range(2, 247))


def test_april_2024_had_neither_padding_nor_end_of_message_nor_python_tag() -> None:
    april = llama3_special_tokens()
    assert [april[offset] for offset in (4, 5, 8)] == [f"<|reserved_special_token_{number}|>" for number in (2, 3, 4)]
    assert april[10:] == tuple(f"<|reserved_special_token_{number}|>" for number in range(5, 251))
    assert [april[offset] for offset in (0, 1, 6, 7, 9)] == [SPECIAL_TOKENS[offset] for offset in (0, 1, 6, 7, 9)]


def test_the_names_of_april_2024_are_those_of_the_published_configuration(shared_data: Path) -> None:
    config = json.loads((shared_data / "reference" / "llama3" / "hf_tokenizer_config.json").read_text(encoding="utf-8"))
    published = {int(number): entry["content"] for number, entry in config["added_tokens_decoder"].items()}
    assert published == dict(enumerate(llama3_special_tokens(), start=128000))


def test_with_metas_vocabulary_the_ids_are_the_published_ones(llama3: Tokenizer) -> None:
    assert {number: llama3.special_name(number) for number in NAMED} == NAMED
    assert llama3.special_tokens["<|reserved_special_token_246|>"] == 128255
    assert llama3.vocab_size == 128256
