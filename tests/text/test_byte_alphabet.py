"""The byte alphabet is a bijection, and the merges recovered from ranks are the ones that tiktoken's rule uses."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from herd.base.errors import TokenizerError
from herd.text.byte_alphabet import BYTE_TO_CHAR, _last_merge, _last_merge_of_long, decode_chars, encode_bytes, ranks_to_merges
from herd.text.rank_file import read_ranks
from herd.text.tokenizer import SPLIT_REGEX, Tokenizer


def small_ranks(*longer: bytes) -> dict[bytes, int]:
    tokens = [*(bytes([byte]) for byte in range(256)), *longer]
    return {token: rank for rank, token in enumerate(tokens)}


def test_the_alphabet_has_256_distinct_visible_characters() -> None:
    assert list(BYTE_TO_CHAR) == list(range(256))
    assert len(set(BYTE_TO_CHAR.values())) == 256
    assert not any(char.isspace() for char in BYTE_TO_CHAR.values())


def test_a_space_is_spelt_as_gpt2_spells_it() -> None:
    assert encode_bytes(b" the\n") == "ĠtheĊ"


@given(st.binary(max_size=50))
def test_bytes_survive_the_alphabet(token: bytes) -> None:
    assert decode_chars(encode_bytes(token)) == token


@pytest.mark.parametrize("text", ["a b", "\u0144", "日本", "\n"])
def test_a_character_outside_the_alphabet_is_refused(text: str) -> None:
    with pytest.raises(TokenizerError, match="not in the byte alphabet") as caught:
        decode_chars(text)
    assert caught.value.hint


def test_merges_come_in_rank_order() -> None:
    assert ranks_to_merges(small_ranks(b"he", b"ll", b"hell", b"hello")) == [(b"h", b"e"), (b"l", b"l"), (b"he", b"ll"), (b"hell", b"o")]


def test_a_token_that_no_merge_reaches_has_no_merge() -> None:
    assert ranks_to_merges(small_ranks(b"xyz", b"ab")) == [(b"a", b"b")]


def test_a_part_of_higher_rank_than_its_whole_is_still_found() -> None:
    assert ranks_to_merges(small_ranks(b"abc", b"ab")) == [(b"ab", b"c"), (b"a", b"b")]


@given(st.lists(st.text("ab", min_size=2, max_size=6), unique=True, max_size=30))
def test_both_ways_of_merging_agree(longer: list[str]) -> None:
    ranks = small_ranks(*(text.encode() for text in longer))
    for text in longer:
        assert _last_merge(text.encode(), ranks) == _last_merge_of_long(text.encode(), ranks)


def test_a_token_of_thousands_of_bytes_is_quick() -> None:
    powers = [b" " * 2**power for power in range(1, 13)]
    started = time.process_time()
    merges = ranks_to_merges(small_ranks(*powers))
    assert merges == [(power[: len(power) // 2],) * 2 for power in powers]
    assert time.process_time() - started < 30


def test_gpt2s_own_merges_come_back_from_its_vocabulary(shared_data: Path) -> None:
    folder = shared_data / "reference" / "gpt2_bpe"
    vocab: dict[str, int] = json.loads((folder / "gpt2_vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "gpt2_merges.txt").read_text(encoding="utf-8").split("\n")
    wanted = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    ranks = {decode_chars(name): rank for name, rank in vocab.items() if name != "<|endoftext|>"}
    assert [(encode_bytes(left), encode_bytes(right)) for left, right in ranks_to_merges(ranks)] == wanted


def test_llama_3_is_done_in_seconds_and_only_whole_words_lack_a_merge(shared_data: Path) -> None:
    ranks = read_ranks(shared_data / "reference" / "llama3" / "tokenizer.model")
    started = time.process_time()
    merges = ranks_to_merges(ranks)
    assert time.process_time() - started < 15
    assert len(merges) == len(ranks) - 256 - 588
    assert all(left + right in ranks for left, right in merges)


def test_the_merges_encode_as_tiktoken_does_when_whole_words_come_first(shared_data: Path) -> None:
    ranks = read_ranks(shared_data / "reference" / "llama3" / "tokenizer.model")
    tokens = sorted(ranks, key=lambda token: ranks[token])[:20_000]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = [(encode_bytes(left), encode_bytes(right)) for left, right in ranks_to_merges(ranks)]
    peer = tokenizers.Tokenizer(
        models.BPE(vocab={encode_bytes(token): rank for token, rank in ranks.items()}, merges=merges, ignore_merges=True)
    )
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT_REGEX), "isolated")
    peer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    ours = Tokenizer(ranks)
    for name in ("german.txt", "tinystories_sample.txt"):
        text = (shared_data / "reference" / "gpt2_bpe" / name).read_text(encoding="utf-8")[:200_000]
        assert ours.encode(text) == peer.encode(text).ids
