"""Training a vocabulary: the same merges as a slow trainer that counts everything anew, in the layout of Llama 3's own vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import TokenizerError
from herd.text import bpe_train
from herd.text.bpe_train import MAX_VOCAB, train_bpe
from herd.text.byte_alphabet import BYTE_TO_CHAR, ranks_to_merges
from herd.text.specials import SPECIAL_TOKENS
from herd.text.tokenizer import SPLIT_REGEX, load_tokenizer

TEXT = (
    "The herd grazes on the high plain, and the cria follows the herd.\nIt's 2024: 12345 llamas, 678 crias!\n\n"
    "Ein Lama läuft über die Wiese.  Où est le troupeau?\tลามะอยู่บนภูเขา। 🦙🦙\n"
)


TWICE = [TEXT, TEXT]


def train_slowly(texts: list[str], vocab_size: int, min_frequency: int = 2) -> list[tuple[bytes, bytes]]:
    """The merges of byte-pair encoding, every pair counted anew each time.

    The most frequent pair is merged. Of equally frequent ones it is the pair whose left part is the oldest token, then whose right part is:
    bytes count as older than merges, in the order of their characters in the byte alphabet.
    """
    age = {bytes([byte]): number for number, byte in enumerate(sorted(BYTE_TO_CHAR, key=lambda byte: BYTE_TO_CHAR[byte]))}
    words = Counter(piece for text in texts for piece in regex.findall(SPLIT_REGEX, text))
    split = {word: [bytes([byte]) for byte in word.encode()] for word in words}
    merges: list[tuple[bytes, bytes]] = []
    while len(age) < vocab_size:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], age[pair[0]], age[pair[1]]), default=None)
        if best is None or pairs[best] < min_frequency:
            break
        merges.append(best)
        age.setdefault(best[0] + best[1], len(age))
        split = {word: list(joined(parts, best)) for word, parts in split.items()}
    return merges


def joined(parts: list[bytes], pair: tuple[bytes, bytes]) -> Iterator[bytes]:
    at = 0
    while at < len(parts):
        if tuple(parts[at : at + 2]) == pair:
            yield pair[0] + pair[1]
            at += 2
        else:
            yield parts[at]
            at += 1


def longer_tokens(texts: list[str], vocab_size: int) -> list[bytes]:
    """The tokens of two bytes or more of a vocabulary that herd trains, in rank order."""
    ranks = train_bpe(texts, vocab_size).ranks
    return sorted((token for token in ranks if len(token) > 1), key=lambda token: ranks[token])


def test_the_merges_are_those_of_the_slow_trainer() -> None:
    wanted = train_slowly([TEXT, TEXT[:90]], 310)
    assert len(wanted) == 310 - 256
    assert longer_tokens([TEXT, TEXT[:90]], 310) == [left + right for left, right in wanted]
    assert ranks_to_merges(train_bpe([TEXT, TEXT[:90]], 310).ranks) == wanted


@settings(deadline=None, max_examples=150)
@given(texts=st.lists(st.text("ab é\n", max_size=30), min_size=1, max_size=6), wanted_merges=st.integers(0, 8))
def test_any_text_gives_the_merges_of_the_slow_trainer_ties_included(texts: list[str], wanted_merges: int) -> None:
    merges = train_slowly(texts, 256 + wanted_merges)
    assert longer_tokens(texts, 256 + len(merges)) == [left + right for left, right in merges]


def test_of_equally_frequent_pairs_the_one_of_older_tokens_comes_first() -> None:
    assert longer_tokens(["zy ba", "zy ba"], 258) == [b"ba", b"zy"]
    assert longer_tokens(["ac ab", "ac ab"], 258) == [b"ab", b"ac"]
    assert longer_tokens(["abab abab xy xy"], 258) == [b"ab", b"xy"]


def test_bytes_come_first_then_merges_then_the_256_special_tokens() -> None:
    tokenizer = train_bpe(TWICE, 300)
    assert [tokenizer.ranks[bytes([byte])] for byte in range(256)] == list(range(256))
    assert sorted(tokenizer.ranks.values()) == list(range(300))
    assert tokenizer.special_tokens == {name: 300 + offset for offset, name in enumerate(SPECIAL_TOKENS)}
    assert tokenizer.vocab_size == 556


def test_every_merge_joins_two_older_tokens() -> None:
    ranks = train_bpe(TWICE, 320).ranks
    merges = ranks_to_merges(ranks)
    assert len(merges) == 64
    assert all(max(ranks[left], ranks[right]) < ranks[left + right] for left, right in merges)
    assert [ranks[left + right] for left, right in merges] == list(range(256, 320))


def test_no_token_crosses_a_cut_of_the_split_regex() -> None:
    tokenizer = train_bpe(["one two, 12345678\n" * 50], 266)
    assert all(len(regex.findall(SPLIT_REGEX, token.decode())) == 1 for token in tokenizer.ranks if len(token) > 1)


def test_256_tokens_need_no_text() -> None:
    tokenizer = train_bpe([], 256)
    assert tokenizer.encode("é") == list("é".encode())


def test_training_twice_gives_the_same_vocabulary() -> None:
    assert train_bpe(TWICE, 330).ranks == train_bpe(TWICE, 330).ranks


def test_texts_are_read_once_in_a_stream() -> None:
    assert train_bpe((part for part in TWICE), 300).ranks == train_bpe(TWICE, 300).ranks


def test_showing_progress_changes_nothing_and_prints_nothing_where_no_one_looks(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_bpe(TWICE, 300, progress=True).ranks == train_bpe(TWICE, 300).ranks
    assert capsys.readouterr().out == ""


def test_lone_surrogates_in_the_text_count_as_replacement_characters() -> None:
    assert train_bpe(["\ud800a" * 40], 259).ranks == train_bpe(["\ufffda" * 40], 259).ranks


def test_a_rare_pair_is_not_merged_unless_asked_for() -> None:
    assert train_bpe(["ab"], 257, min_frequency=1).ranks[b"ab"] == 256
    with pytest.raises(TokenizerError, match="the text gave 256 tokens of the 257 asked for"):
        train_bpe(["ab"], 257)


# Bounded pieces


@settings(deadline=None, max_examples=100)
@given(
    text=st.lists(st.sampled_from(["ab", "cd", " ", "\n", "\n\n", "\n  ", "\t", "é", "1"]), max_size=60).map("".join),
    bound=st.integers(1, 20),
)
def test_pieces_are_the_text_cut_only_where_the_split_regex_cuts(text: str, bound: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe_train, "_PIECE_CHARS", bound)
        pieces = list(bpe_train._pieces([text]))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= bound for piece in pieces)
    ends = {match.end() for match in regex.finditer(SPLIT_REGEX, text)}
    start = 0
    for piece in pieces[:-1]:
        end = start + len(piece)
        assert end in ends or not regex.search(r"\n\S", text[start : end + 1]), "a better place to cut was passed over"
        start = end


def test_a_long_text_in_bounded_pieces_gives_the_vocabulary_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    text = TEXT * 30
    whole = train_bpe([text], 330).ranks
    monkeypatch.setattr(bpe_train, "_PIECE_CHARS", 200)
    assert max(map(len, bpe_train._pieces([text]))) <= 200
    assert train_bpe([text], 330).ranks == whole


def test_blank_lines_at_the_bound_are_not_cut_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe_train, "_PIECE_CHARS", 9)
    assert list(bpe_train._pieces(["one\ntwo\n\n\n\nthree"])) == ["one\n", "two\n\n\n\n", "three"]


def test_a_text_without_line_ends_is_cut_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe_train, "_PIECE_CHARS", 4)
    assert list(bpe_train._pieces(["abcdefghij"])) == ["abcd", "efgh", "ij"]


# Errors


@pytest.mark.parametrize("vocab_size", [-1, 0, 255, MAX_VOCAB + 1])
def test_a_size_out_of_range_is_refused_before_any_text_is_read(vocab_size: int) -> None:
    def unread() -> Iterator[str]:
        raise AssertionError("the text was read")
        yield ""

    with pytest.raises(TokenizerError, match=rf"vocab_size is {vocab_size:,}; it must be 256 to 1,000,000") as caught:
        train_bpe(unread(), vocab_size)
    assert caught.value.hint == "256 bytes come first; 32768 is a good size"


def test_a_text_with_too_few_pairs_is_refused_with_what_it_gave() -> None:
    with pytest.raises(TokenizerError, match=r"the text gave 257 tokens of the 1,000 asked for") as caught:
        train_bpe(["ab ab"], 1000)
    assert caught.value.hint == "use more text or a smaller --vocab-size"


# Files


def test_a_trained_tokenizer_loads_back_equal_in_both_formats(tmp_path: Path) -> None:
    trained = train_bpe(TWICE, 330)
    trained.save(tmp_path)
    for name in ("tokenizer.model", "tokenizer.json"):
        loaded = load_tokenizer(tmp_path / name)
        assert loaded.ranks == trained.ranks
        assert loaded.special_tokens == trained.special_tokens
        assert loaded.encode(TEXT) == trained.encode(TEXT)


def test_what_was_trained_encodes_its_text_in_fewer_tokens_than_bytes() -> None:
    tokenizer = train_bpe(TWICE, 330)
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert len(ids) < 0.7 * len(TEXT.encode())
