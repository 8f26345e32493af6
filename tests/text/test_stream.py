"""Streaming decode: whatever the ids, the pieces joined are the whole text, and no piece ends inside a character."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from herd.text.tokenizer import Tokenizer


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = tokenizer.stream_decoder()
    return [*(decoder.push(token_id) for token_id in ids), decoder.finish()]


@settings(deadline=None, max_examples=1200)
@given(text=st.text(alphabet=st.sampled_from("a ü€ล🦙\u0301\n"), max_size=12))
def test_no_half_of_a_character_is_ever_shown(small: Tokenizer, text: str) -> None:
    shown = ""
    for piece in pieces(small, small.encode(text)):
        assert "\ufffd" not in piece
        shown += piece
        assert text.startswith(shown)
    assert shown == text


@settings(deadline=None, max_examples=1200)
@given(ids=st.lists(st.integers(0, 655), max_size=16))
def test_any_ids_stream_to_what_they_decode_to(small: Tokenizer, ids: list[int]) -> None:
    assert "".join(pieces(small, ids)) == small.decode(ids)


@settings(deadline=None, max_examples=800)
@given(data=st.lists(st.sampled_from([0x41, 0x80, 0xBF, 0xC3, 0xA9, 0xE0, 0xED, 0xA0, 0xF0, 0x9F, 0xF4, 0xFF]), max_size=10))
def test_broken_bytes_stream_to_what_they_decode_to(small: Tokenizer, data: list[int]) -> None:
    assert "".join(pieces(small, data)) == bytes(data).decode("utf-8", errors="replace")


def test_a_character_is_shown_with_its_last_byte(small: Tokenizer) -> None:
    assert pieces(small, [0xF0, 0x9F, 0xA6, 0x99, 0x41]) == ["", "", "", "🦙", "A", ""]


def test_a_character_that_never_ends_is_replaced_at_the_end(small: Tokenizer) -> None:
    assert pieces(small, [0x41, 0xF0, 0x9F]) == ["A", "", "", "\ufffd"]


def test_special_tokens_show_their_names(small: Tokenizer) -> None:
    assert pieces(small, [small.bos_id, 0x41, small.eot_id]) == ["<|begin_of_text|>", "A", "<|eot_id|>", ""]
