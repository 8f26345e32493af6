"""Reading a guard's answer: every malformed form is unsafe, the grammar writes only what is read, the score is the verdict token's."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.inference.port import TokenLogprob
from herd.safety.categories import DEFAULT_CATEGORIES
from herd.safety.guard_verdict import read_verdict, verdict_grammar, verdict_score

CODES = [category.code for category in DEFAULT_CATEGORIES]


@pytest.mark.parametrize("text", ["safe", "\n\nsafe", "safe\n", "  safe  ", "\n\nsafe<|eot_id|>"])
def test_safe(text: str) -> None:
    answer = read_verdict(text, DEFAULT_CATEGORIES)
    assert (answer.unsafe, answer.categories, answer.malformed) == (False, (), "")


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("unsafe\nS1", ("S1",)),
        ("\n\nunsafe\nS1,S10", ("S1", "S10")),
        ("unsafe\nS10, S1", ("S10", "S1")),
        ("unsafe\nS1,S1", ("S1",)),
        ("unsafe\n\nS2\n", ("S2",)),
        ("unsafe \nS2<|eot_id|>", ("S2",)),
    ],
)
def test_unsafe_with_its_categories(text: str, codes: tuple[str, ...]) -> None:
    answer = read_verdict(text, DEFAULT_CATEGORIES)
    assert (answer.unsafe, answer.categories, answer.malformed) == (True, codes, "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "Safe",
        "SAFE",
        "safe.",
        "safe\nS1",
        "safe\nunsafe\nS1",
        "safe, I think",
        "not safe",
        "unsafe",
        "unsafe\n",
        "unsafe S1",
        "Unsafe\nS1",
        "unsafe\nS99",
        "unsafe\nS0",
        "unsafe\nS1;S2",
        "unsafe\nS1,",
        "unsafe\n,S1",
        "unsafe\nS1,S",
        "unsafe\nviolence",
        "unsafe\nS1\nS2",
        "unsafesafe",
        "S1",
        "I cannot answer that.",
        '{"verdict": "safe"}',
        "ｓａｆｅ",
        "s\u200bafe",
        "sa\x00fe",
    ],
)
def test_every_malformed_form_is_unsafe_and_says_what_is_wrong(text: str) -> None:
    answer = read_verdict(text, DEFAULT_CATEGORIES)
    assert answer.unsafe and answer.malformed


def test_codes_in_a_broken_line_are_still_told() -> None:
    assert read_verdict("unsafe\nS1;S10 and S77", DEFAULT_CATEGORIES).categories == ("S1", "S10")


def test_only_excluded_categories_are_safe_but_not_beside_others_or_strange_ones() -> None:
    kept = [category for category in DEFAULT_CATEGORIES if category.code != "S6"]
    assert not read_verdict("unsafe\nS6", kept, exclude={"S6"}).unsafe
    both = read_verdict("unsafe\nS6,S1", kept, exclude={"S6"})
    assert (both.unsafe, both.categories) == (True, ("S1",))
    assert read_verdict("unsafe\nS6,S88", kept, exclude={"S6"}).unsafe


@given(st.text())
def test_nothing_but_safe_is_safe(text: str) -> None:
    answer = read_verdict(text, DEFAULT_CATEGORIES)
    assert answer.unsafe == (text.strip().removesuffix("<|eot_id|>").strip() != "safe")


@given(st.lists(st.sampled_from(CODES), min_size=1, max_size=14))
def test_what_the_grammar_writes_is_read_whole(codes: list[str]) -> None:
    pattern = re.compile(verdict_grammar(DEFAULT_CATEGORIES).text)
    text = "\n\nunsafe\n" + ",".join(codes)
    assert pattern.fullmatch(text) and pattern.fullmatch("safe") and pattern.fullmatch("\n\nsafe")
    answer = read_verdict(text, DEFAULT_CATEGORIES)
    assert (answer.unsafe, answer.malformed, set(answer.categories)) == (True, "", set(codes))


@pytest.mark.parametrize("text", ["unsafe", "unsafe\nS15", "safe\n", "Safe", "unsafe\nS1,", "\nsafe", "unsafe\nS1 S2"])
def test_the_grammar_writes_nothing_else(text: str) -> None:
    assert not re.fullmatch(verdict_grammar(DEFAULT_CATEGORIES).text, text)
    assert not re.fullmatch(verdict_grammar(DEFAULT_CATEGORIES, unsafe_only=True).text, "safe")


def token(data: bytes, logprob: float, *top: tuple[bytes, float]) -> TokenLogprob:
    listed = tuple((index + 1, text, value) for index, (text, value) in enumerate(top))
    return TokenLogprob(token_id=next((number for number, text, _ in listed if text == data), 0), data=data, logprob=logprob, top=listed)


def test_the_score_is_the_verdict_tokens_behind_the_blank_line() -> None:
    blank = token(b"\n\n", math.log(0.9), (b"\n\n", math.log(0.9)), (b"unsafe", math.log(0.09)))
    verdict = token(b"safe", math.log(0.6), (b"safe", math.log(0.6)), (b"unsafe", math.log(0.2)), (b"the", math.log(0.1)))
    assert verdict_score([blank, verdict]) == pytest.approx(0.25)


def test_beginnings_of_the_words_count_and_other_tokens_do_not() -> None:
    verdict = token(b"un", math.log(0.4), (b"un", math.log(0.4)), (b"unsafe", math.log(0.2)), (b"s", math.log(0.2)), (b"S", math.log(0.2)))
    assert verdict_score([verdict]) == pytest.approx(0.75)


def test_a_token_outside_the_likeliest_counts_by_itself() -> None:
    assert verdict_score([token(b"unsafe", -20.0, (b"Hello", -0.01))]) == 1.0
    assert verdict_score([token(b"safe", -20.0)]) == 0.0


@pytest.mark.parametrize("logprobs", [[], [token(b"\n", -0.1)], [token(b"Hello", -0.1)]])
def test_no_verdict_token_no_score(logprobs: list[TokenLogprob]) -> None:
    assert verdict_score(logprobs) is None
