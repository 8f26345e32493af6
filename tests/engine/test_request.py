"""A sequence gives its tokens by position, over the seams between prompt, output and draft."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from herd.engine.request import Sequence

PARTS = st.lists(st.integers(0, 9), max_size=6)


@given(PARTS.filter(len), PARTS, PARTS, st.integers(0, 20), st.integers(0, 20))
def test_tokens_are_a_slice_of_everything(prompt: list[int], output: list[int], draft: list[int], first: int, end: int) -> None:
    sequence = Sequence(id=1, prompt=tuple(prompt), max_new_tokens=9, output=output, draft=draft)
    assert sequence.tokens(first, max(first, end)) == [*prompt, *output, *draft][first : max(first, end)]


def test_known_tokens_are_prompt_and_output() -> None:
    sequence = Sequence(id=1, prompt=(1, 2), max_new_tokens=9, output=[3], draft=[4, 5])
    assert (sequence.num_tokens, sequence.num_draft) == (3, 2)


def test_a_sequence_is_itself_and_not_its_like() -> None:
    one, other = (Sequence(id=1, prompt=(1,), max_new_tokens=1) for _ in range(2))
    assert one != other and len({one, other}) == 2


def test_its_text_does_not_tell_what_was_asked() -> None:
    sequence = Sequence(id=1, prompt=(31337,), max_new_tokens=1, salt=b"secret", output=[27182])
    assert not any(word in repr(sequence) for word in ("31337", "secret", "27182"))
