"""Guesses: what was seen to follow, the longest match first, and none while they fail."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from herd.engine.speculation import NgramDrafter


def drafter(tokens: list[int], num_draft: int = 3) -> NgramDrafter:
    made = NgramDrafter(num_draft, longest=3, shortest=2)
    made.extend(tokens)
    return made


def test_what_followed_the_last_tokens_before_is_guessed() -> None:
    assert drafter([1, 2, 3, 4, 5, 9, 1, 2]).propose(9) == [3, 4, 5]
    assert drafter([1, 2, 3, 4, 5, 9, 1, 2]).propose(2) == [3, 4]
    assert drafter([1, 2, 3, 4, 5]).propose(9) == []


def test_the_longest_match_wins_over_a_later_shorter_one() -> None:
    assert drafter([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2]).propose(1) == [3]


def test_of_equal_matches_the_latest_wins() -> None:
    assert drafter([1, 2, 3, 0, 1, 2, 4, 0, 5, 1, 2]).propose(1) == [4]


def test_a_text_that_repeats_itself_is_guessed_to_its_end() -> None:
    assert drafter([5, 6, 5, 6], num_draft=4).propose(4) == [5, 6]


def test_guesses_that_fail_stop_for_longer_and_longer() -> None:
    made = drafter([1, 2, 3, 1, 2])
    pauses = []
    for _ in range(3):
        while made.propose(3):
            made.observe(3, 0)
        length = 0
        while not made.propose(3):
            made.extend([3, 1, 2][length % 3 : length % 3 + 1])
            length += 1
        pauses.append(length)
    assert pauses[0] >= 16 and pauses[0] < pauses[1] < pauses[2]


def test_guesses_that_come_true_go_on() -> None:
    made = drafter([1, 2, 3, 1, 2])
    for _ in range(100):
        made.observe(3, 2)
    assert made.propose(3) and (made.payoff.num_guessed, made.payoff.num_accepted) == (300, 200)


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(1, 7), max_size=20))
def test_taking_tokens_in_pieces_makes_no_difference(tokens: list[int], cuts: list[int]) -> None:
    whole, pieces = drafter(tokens), drafter([])
    rest = tokens
    for cut in [*cuts, len(tokens)]:
        pieces.extend(rest[:cut])
        rest = rest[cut:]
    assert pieces.propose(5) == whole.propose(5)
