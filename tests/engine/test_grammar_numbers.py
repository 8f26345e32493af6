"""Ranges of numbers as regular expressions: every match is within, and nothing within is missed but other spellings."""

from __future__ import annotations

import re
from decimal import Decimal

from hypothesis import example, given, settings
from hypothesis import strategies as st

from herd.engine.grammar import numbers

SMALL = st.integers(-2000, 2000)
DECIMALS = st.builds(lambda digits, places: Decimal(digits).scaleb(-places), st.integers(-30_000, 30_000), st.integers(0, 5))


@settings(max_examples=300, deadline=None)
@given(low=SMALL, high=SMALL, tried=st.lists(SMALL, max_size=20))
def test_whole_numbers_match_exactly_within_their_range(low: int, high: int, tried: list[int]) -> None:
    pattern = numbers.integers(low, high)
    assert (pattern is None) == (low > high)
    for number in [low - 1, low, low + 1, high - 1, high, high + 1, 0, *tried]:
        assert (pattern is not None and re.fullmatch(pattern, str(number)) is not None) == (low <= number <= high)


@settings(max_examples=300, deadline=None)
@given(low=DECIMALS, high=DECIMALS, low_open=st.booleans(), high_open=st.booleans(), tried=st.lists(DECIMALS, max_size=10))
@example(low=Decimal(0), high=Decimal(1), low_open=True, high_open=True, tried=[Decimal("0.05"), Decimal("0.999")])
def test_decimals_match_within_their_range(low: Decimal, high: Decimal, low_open: bool, high_open: bool, tried: list[Decimal]) -> None:
    pattern = numbers.decimals(low, high, low_open=low_open, high_open=high_open, digits=15)
    near = [bound + step for bound in (low, high) for step in map(Decimal, ("0", "1e-14", "-1e-14", "0.001", "-0.001", "1", "-1"))]
    for number in [*near, *tried]:
        inside = (low < number if low_open else low <= number) and (number < high if high_open else number <= high)
        for places in range(16):
            text = f"{number:.{places}f}"
            if pattern is not None and re.fullmatch(pattern, text):
                value = Decimal(repr(float(text)))
                assert (low < value if low_open else low <= value) and (value < high if high_open else value <= high), (text, pattern)
        shortest = f"{number.normalize():f}"
        if inside and len(shortest.partition(".")[2]) <= 6 and shortest not in ("-0", "0"):
            assert pattern is not None and re.fullmatch(pattern, shortest), (shortest, pattern)


def test_no_number_goes_on_for_ever() -> None:
    for pattern in (numbers.any_number(15), numbers.any_integer(15)):
        assert re.fullmatch(pattern, "1" * 15) and not re.fullmatch(pattern, "1" * 16)
    assert not re.fullmatch(numbers.any_number(15), "0." + "1" * 16)
    assert float("9" * 15 + "." + "9" * 15 + "e99") < float("inf")


def test_a_missing_bound_lies_beyond_the_other() -> None:
    assert numbers.filled(None, None, 3) == (-999, 999)
    assert numbers.filled(5000, None, 3) == (5000, 50_000)
    assert numbers.filled(None, -5000, 3) == (-50_000, -5000)


def test_wide_ranges_stay_small() -> None:
    pattern = numbers.integers(-(2**63), 2**63 - 1)
    assert pattern is not None and len(pattern) < 4000 and re.fullmatch(pattern, str(-(2**63))) and not re.fullmatch(pattern, str(2**63))
