"""The tokenizer: any text comes back from its ids, text never becomes a special token by itself, long texts are cut as Meta cuts them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path

import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from herd.base.errors import NotFoundError, TokenizerError
from herd.text import tokenizer as module
from herd.text.specials import SPECIAL_TOKENS, llama3_special_tokens
from herd.text.tokenizer import MAX_PIECE_CHARS, MAX_RUN_CHARS, SPLIT_REGEX, Tokenizer, _pieces, load_tokenizer

SINGLE = {bytes([byte]): byte for byte in range(256)}

any_text = st.binary(max_size=48).map(lambda data: data[: len(data) // 2 * 2].decode("utf-16-le", "surrogatepass"))
"""Any 16-bit units: letters of every script, pairs of surrogates and lone ones."""

SPACES = (" ", "   ", "\t", "\n", "\r\n", "\x00", "\ufeff")
WORDS = ("the herd", " the", "1234", "läuft", "ลามะ", "पहाड़", "🦙", "it's", "'LL", "{}();", "e\u0301")
SPELLED = ("<|eot_id|>", "<|begin_of_text|>", "<|python_tag|>", "<|reserved_special_token_9|>", "<|", "|>", "<|eot_id|", "<|nonsense|>")
snippets = st.lists(st.sampled_from([*SPACES, *WORDS, *SPELLED]), max_size=8).map("".join)
names_in = re.compile("|".join(re.escape(name) for name in sorted(SPECIAL_TOKENS, key=len, reverse=True)))


def scrubbed(text: str) -> str:
    """What UTF-8 can say of a text: pairs of surrogates are characters, lone ones U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# Encoding and decoding


@settings(deadline=None, max_examples=4000)
@given(text=any_text)
@example("\ud83e\udd99 is one character, \ud83e is none")
def test_decoding_gives_the_text_back(small: Tokenizer, text: str) -> None:
    assert small.decode(small.encode(text)) == scrubbed(text)


@settings(deadline=None, max_examples=2000)
@given(text=snippets)
def test_text_that_spells_special_tokens_stays_text(small: Tokenizer, text: str) -> None:
    ids = small.encode(text)
    assert all(token_id < small.num_base for token_id in ids)
    assert small.decode(ids) == text


@settings(deadline=None, max_examples=1500)
@given(text=snippets)
def test_allowed_special_tokens_become_their_ids_and_decode_to_their_names(small: Tokenizer, text: str) -> None:
    ids = small.encode(text, allowed_special="all")
    assert [small.special_name(token_id) for token_id in ids if token_id >= small.num_base] == names_in.findall(text)
    assert small.decode(ids) == text
    assert small.decode(ids, skip_special=True) == names_in.sub("", text)


@settings(deadline=None, max_examples=700)
@given(text=snippets)
def test_disallowed_special_tokens_are_refused_wherever_they_stand(small: Tokenizer, text: str) -> None:
    found = names_in.search(text)
    if found is None:
        assert small.encode(text, disallowed_special="all") == small.encode(text)
        return
    with pytest.raises(TokenizerError) as caught:
        small.encode(text, disallowed_special="all")
    assert f"the text spells the special token {found.group()} at character {found.start()}" in caught.value.message


@settings(deadline=None, max_examples=500)
@given(texts=st.lists(any_text, max_size=5))
def test_a_batch_is_encoded_as_its_texts_are(small: Tokenizer, texts: list[str]) -> None:
    assert small.encode_batch(texts) == [small.encode(text) for text in texts]


def test_a_batch_with_long_texts_is_encoded_as_its_texts_are(small: Tokenizer) -> None:
    texts = ["", "x" * (MAX_RUN_CHARS * 2 + 1), "short", " " * (MAX_RUN_CHARS + 1), "a b " * 150_000, "\ud800"]
    assert small.encode_batch(texts, num_threads=1) == [small.encode(text) for text in texts]


def test_begin_and_end_of_text_are_put_around_when_asked_for(small: Tokenizer) -> None:
    ids = small.encode("the herd")
    assert small.encode("the herd", bos=True) == [small.bos_id, *ids]
    assert small.encode("the herd", eos=True) == [*ids, small.eos_id]
    assert small.encode("", bos=True, eos=True) == [small.bos_id, small.eos_id]
    assert small.encode("") == []


def test_only_the_special_tokens_that_are_named_are_allowed(small: Tokenizer) -> None:
    text = "<|eot_id|> and <|eom_id|>"
    ids = small.encode(text, allowed_special={"<|eot_id|>"})
    assert ids == [small.eot_id, *small.encode(" and <|eom_id|>")]


def test_the_refusal_of_a_special_token_tells_the_three_ways_out(small: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"spells the special token <\|eot_id\|> at character 5") as caught:
        small.encode("stop <|eot_id|>", disallowed_special={"<|eot_id|>", "<|eom_id|>"})
    hint = caught.value.hint or ""
    assert all(way in hint for way in ("leave disallowed_special empty", "allowed_special={'<|eot_id|>'}", "keep it in disallowed_special"))


def test_what_is_allowed_is_not_refused(small: Tokenizer) -> None:
    ids = small.encode("<|eot_id|>", allowed_special={"<|eot_id|>"}, disallowed_special="all")
    assert ids == [small.eot_id]
    with pytest.raises(TokenizerError, match=r"<\|eom_id\|>"):
        small.encode("<|eot_id|><|eom_id|>", allowed_special={"<|eot_id|>"}, disallowed_special="all")


@pytest.mark.parametrize("argument", ["allowed_special", "disallowed_special"])
def test_a_name_that_is_no_special_token_is_refused(small: Tokenizer, argument: str) -> None:
    with pytest.raises(TokenizerError, match=r"'<\|im_end\|>' is not a special token") as caught:
        small.encode("text", **{argument: {"<|im_end|>"}})
    assert caught.value.hint == "names look like <|eot_id|>"


def test_the_limits_of_a_long_text_hide_no_special_token(small: Tokenizer) -> None:
    text = "y" * (MAX_PIECE_CHARS - 5) + "<|eot_id|>"
    with pytest.raises(TokenizerError, match="at character 399,995"):
        small.encode(text, disallowed_special="all")


# Ids


def test_ids_are_ranks_and_special_tokens_follow(small: Tokenizer) -> None:
    assert small.num_base == 400
    assert small.vocab_size == 656
    assert [small.ranks[small.token_bytes(token_id)] for token_id in range(400)] == list(range(400))
    assert small.special_tokens == {name: 400 + offset for offset, name in enumerate(SPECIAL_TOKENS)}
    assert small.token_bytes(small.eot_id) == b"<|eot_id|>"


def test_the_named_ids_are_those_of_llama_31(llama3: Tokenizer) -> None:
    assert (llama3.bos_id, llama3.eos_id, llama3.pad_id) == (128000, 128001, 128004)
    assert (llama3.start_header_id, llama3.end_header_id) == (128006, 128007)
    assert (llama3.eom_id, llama3.eot_id, llama3.python_tag_id) == (128008, 128009, 128010)
    assert llama3.stop_ids == {128001, 128008, 128009}


def test_a_tokenizer_of_april_2024_stops_at_end_of_turn_and_pads_with_end_of_text() -> None:
    april = Tokenizer(SINGLE, special_tokens=llama3_special_tokens())
    assert april.stop_ids == {257, 265}
    assert (april.eom_id, april.pad_id) == (265, 257)
    with pytest.raises(TokenizerError, match=r"no special token <\|python_tag\|>") as caught:
        _ = april.python_tag_id
    assert caught.value.hint == "it is not a Llama 3 tokenizer"


def test_special_tokens_may_have_ids_of_their_own_with_holes_between() -> None:
    holed = Tokenizer(SINGLE, special_tokens={"<|a|>": 300, "<|b|>": 256})
    assert holed.vocab_size == 301
    assert (holed.special_name(300), holed.special_name(256), holed.special_name(280), holed.special_name(65)) == (
        "<|a|>",
        "<|b|>",
        None,
        None,
    )
    assert holed.decode([72, 280, 105, 300]) == "Hi<|a|>"


def test_a_tokenizer_needs_no_special_tokens() -> None:
    plain = Tokenizer(SINGLE, special_tokens=())
    assert plain.vocab_size == 256
    assert plain.encode("A", allowed_special="all") == [65]


@pytest.mark.parametrize("token_id", [-1, 656, 10**9])
def test_an_id_out_of_range_is_refused_with_the_range(small: Tokenizer, token_id: int) -> None:
    for refused in (small.token_bytes, lambda wrong: small.decode([65, wrong]), lambda wrong: small.stream_decoder().push(wrong)):
        with pytest.raises(TokenizerError, match=rf"token id {token_id} is out of range: this tokenizer has ids 0 to 655") as caught:
            refused(token_id)
        assert caught.value.hint and "another tokenizer" in caught.value.hint


def test_bytes_that_are_no_character_decode_to_a_replacement(small: Tokenizer) -> None:
    llama = "🦙".encode()
    assert small.decode_bytes([*llama[:2], 65]) == llama[:2] + b"A"
    assert small.decode([*llama[:2], 65]) == "\ufffdA"


def test_a_vocabulary_without_all_bytes_is_refused() -> None:
    with pytest.raises(TokenizerError, match="the vocabulary lacks 255"):
        Tokenizer({b"a": 0})


def test_a_split_regex_that_is_none_is_refused() -> None:
    with pytest.raises(TokenizerError, match="the split regex cannot be used") as caught:
        Tokenizer(SINGLE, split_regex="(unclosed")
    assert caught.value.hint == "Llama 3's is tokenizer.SPLIT_REGEX"


# Long texts


def cut_plainly(text: str, max_piece: int, max_run: int) -> list[str]:
    """Meta's two rules, by looking at the runs: pieces of so many characters, and in them a cut after every so many of a run."""
    pieces: list[str] = []
    for start in range(0, len(text), max_piece):
        piece = text[start : start + max_piece]
        cuts, at = [0], 0
        for _, run in groupby(piece, key=str.isspace):
            end = at + len(list(run))
            cuts += range(at + max_run, end, max_run)
            at = end
        pieces += [piece[begin:end] for begin, end in pairwise([*cuts, len(piece)])]
    return pieces


@pytest.fixture(params=[(40, 5), (41, 4), (12, 12), (30, 6)], ids=str)
def tiny_limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """The two limits, so small that short texts show what they do."""
    monkeypatch.setattr(module, "MAX_PIECE_CHARS", request.param[0])
    monkeypatch.setattr(module, "MAX_RUN_CHARS", request.param[1])
    return request.param


def test_texts_are_cut_by_metas_two_rules(tiny_limits: tuple[int, int]) -> None:
    @settings(deadline=None, max_examples=400)
    @given(st.lists(st.text(" \u3000\x1c\n", max_size=9) | st.text("aé🦙", max_size=9), max_size=14).map("".join))
    def check(text: str) -> None:
        assert list(_pieces(text)) == cut_plainly(text, *tiny_limits)

    check()


@pytest.fixture(scope="module")
def peer(small: Tokenizer) -> tiktoken.Encoding:
    """The same vocabulary without herd around it."""
    return tiktoken.Encoding("peer", pat_str=SPLIT_REGEX, mergeable_ranks=small.ranks, special_tokens={})


def long_texts() -> Iterator[str]:
    yield "a" * 25_000
    yield "a" * 25_001
    yield " " * 25_001 + "a" * 50_001
    yield "ab " * 9_000 + "c" * 25_001 + " d" * 9_000
    yield ("word " * 20 + "\n") * 9_000
    yield "x" * 399_999 + " y" * 30_000
    yield "ลามะ" * 30_000
    yield "\ud800" * 30_000


def test_the_limits_are_400000_characters_a_piece_and_25000_a_run() -> None:
    assert (MAX_PIECE_CHARS, MAX_RUN_CHARS) == (400_000, 25_000)
    for text in long_texts():
        assert list(_pieces(text)) == cut_plainly(scrubbed(text), 400_000, 25_000)


def test_a_long_text_encodes_to_the_ids_of_its_pieces_one_after_the_other(small: Tokenizer, peer: tiktoken.Encoding) -> None:
    for text in long_texts():
        pieces = cut_plainly(scrubbed(text), 400_000, 25_000)
        assert small.encode(text) == [token_id for piece in pieces for token_id in peer.encode_ordinary(piece)]


def hostile() -> Iterator[str]:
    size = 1_000_000
    yield "a" * size
    yield " " * size
    yield "\n" * size
    yield "!" * size
    yield "1" * size
    yield "' " * (size // 2)
    yield (" " * 24_999 + "x") * (size // 25_000)
    yield "<|" * (size // 2)
    yield "\u0301" * size
    yield "🦙" * (size // 4)


def test_a_million_hostile_characters_take_seconds(small: Tokenizer, peer: tiktoken.Encoding) -> None:
    for text in hostile():
        started = time.process_time()
        ids = small.encode(text)
        assert time.process_time() - started < 30
        assert peer.decode(ids) == text


# Files


def test_a_saved_tokenizer_loads_back_equal_from_both_of_its_files(small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path / "new" / "folder")
    for path in (tmp_path / "new" / "folder", *(tmp_path / "new" / "folder" / name for name in ("tokenizer.model", "tokenizer.json"))):
        loaded = load_tokenizer(path)
        assert loaded.ranks == small.ranks
        assert loaded.special_tokens == small.special_tokens
        assert loaded.split_regex == SPLIT_REGEX


def test_a_folder_may_hold_the_file_below_original(small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path / "original")
    assert load_tokenizer(str(tmp_path)).ranks == small.ranks


def test_tokenizer_model_comes_before_tokenizer_json(small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("never read", encoding="utf-8")
    assert load_tokenizer(tmp_path).ranks == small.ranks


def test_a_folder_without_a_tokenizer_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no tokenizer.model or tokenizer.json in") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.hint == "copy the model's tokenizer file into the folder"


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_a_file_that_is_not_there_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match=name):
        load_tokenizer(tmp_path / name)


def test_a_rank_file_is_not_written_where_it_could_not_tell_the_special_tokens(small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path)
    moved = Tokenizer(small.ranks, special_tokens=(*SPECIAL_TOKENS[:9], *SPECIAL_TOKENS[10:], "<|eot_id|>"))
    moved.save(tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()
    assert load_tokenizer(tmp_path).special_tokens == moved.special_tokens


def test_other_names_of_reserved_tokens_keep_the_rank_file(small: Tokenizer, tmp_path: Path) -> None:
    hub = (
        *SPECIAL_TOKENS[:5],
        "<|reserved_special_token_2|>",
        *SPECIAL_TOKENS[6:11],
        *(f"<|reserved_special_token_{n}|>" for n in range(3, 248)),
    )
    renamed = Tokenizer(small.ranks, special_tokens=hub)
    renamed.save(tmp_path)
    assert load_tokenizer(tmp_path / "tokenizer.model").special_tokens == small.special_tokens
    assert load_tokenizer(tmp_path / "tokenizer.json").special_tokens == renamed.special_tokens
