"""Regular expressions of numbers within bounds, so that no number goes on for ever and none misses its range.

A range is cut into runs of digit classes: 37..214 is 3[7-9] | [4-9][0-9] | 1[0-9]{2} | 20[0-9] | 21[0-4]. A decimal with q places is a
whole number with the point set before its last q digits. Every match is within the bounds; what is left out at the edges is only spelling
(trailing zeros, exponents, more places than the bounds can tell apart as doubles).
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext

MAX_PLACES = 6
"""Places of a bound that are looked at; a finer bound is rounded inwards."""

Piece = list[str]
"""One class of digits for each place."""


def any_number(digits: int) -> str:
    """Any JSON number: whole part and fraction of at most `digits` digits, an exponent of two."""
    return rf"-?(0|[1-9][0-9]{{0,{digits - 1}}})(\.[0-9]{{1,{digits}}})?([eE][+-]?[0-9]{{1,2}})?"


def any_integer(digits: int) -> str:
    """Any whole number of at most `digits` digits."""
    return rf"-?(0|[1-9][0-9]{{0,{digits - 1}}})"


def filled(low: int | None, high: int | None, digits: int) -> tuple[int, int]:
    """Both bounds: one that is missing is the largest number of `digits` digits, or ten times the other if that lies beyond."""
    edge = 10**digits - 1
    bottom = low if low is not None else -max(edge, -10 * (high or 0))
    top = high if high is not None else max(edge, 10 * (low or 0))
    return bottom, top


def whole_above(bound: Decimal, *, included: bool) -> int:
    """The smallest whole number over a bound."""
    nearest = int(bound.to_integral_value(rounding=ROUND_CEILING))
    return nearest + (not included and nearest == bound)


def whole_below(bound: Decimal, *, included: bool) -> int:
    """The largest whole number under a bound."""
    nearest = int(bound.to_integral_value(rounding=ROUND_FLOOR))
    return nearest - (not included and nearest == bound)


def integers(low: int, high: int) -> str | None:
    """Whole numbers from low to high; None if there are none."""
    parts = [_spell(piece, 0) for piece in _range(max(low, 0), high)]
    parts += ["-" + _spell(piece, 0) for piece in _range(max(-high, 1), -low)]
    return "|".join(parts) or None


def decimals(low: Decimal, high: Decimal, *, low_open: bool, high_open: bool, digits: int) -> str | None:
    """Numbers from low to high, an open bound not included, without exponents; None if there are none."""
    zero = Decimal(0)
    with localcontext() as context:
        context.prec = 1000
        parts = _magnitudes(max(low, zero), high, low_open=low_open and low >= 0, high_open=high_open, digits=digits)
        below = _magnitudes(max(-high, zero), -low, low_open=high_open if high < 0 else True, high_open=low_open, digits=digits)
    return "|".join([*parts, *("-" + part for part in below)]) or None


def _magnitudes(low: Decimal, high: Decimal, *, low_open: bool, high_open: bool, digits: int) -> list[str]:
    """Numbers from low to high, neither negative, with no places, some, or more than the bounds have."""
    if low > high:
        return []
    open_bounds = ([low] if low_open else []) + ([high] if high_open else [])
    room = max(1, digits - max((len(str(int(bound))) for bound in open_bounds), default=0))
    finest = min(max(_places(low), _places(high), 1), MAX_PLACES, room)
    parts: list[str] = []
    for places in range(finest + 1):
        first, last = _scaled(low, places, ROUND_CEILING), _scaled(high, places, ROUND_FLOOR)
        skips_first = low_open and first == low.scaleb(places)
        skips_last = high_open and last == high.scaleb(places)
        parts += [_spell(piece, places) for piece in _padded(first + skips_first, last - skips_last, places)]
        if places == finest and room > finest:
            parts += [f"{_spell(piece, places)}[0-9]{{1,{room - finest}}}" for piece in _padded(first + skips_first, last - 1, places)]
            if skips_first and first < last:
                parts += [f"{_spell(piece, places)}[0-9]{{0,{room - finest - 1}}}[1-9]" for piece in _padded(first, first, places)]
    return parts


def _places(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _scaled(value: Decimal, places: int, rounding: str) -> int:
    return int(value.scaleb(places).to_integral_value(rounding=rounding))


def _padded(low: int, high: int, places: int) -> list[Piece]:
    """Whole numbers with at least one digit before the last `places`."""
    if not places:
        return _range(low, high)
    unit = 10**places
    small = _same_length(f"{low:0{places + 1}d}", f"{min(high, unit - 1):0{places + 1}d}") if low <= min(high, unit - 1) else []
    return small + _range(max(low, unit), high)


def _range(low: int, high: int) -> list[Piece]:
    """Whole numbers from low to high, neither negative, without leading zeros."""
    pieces: list[Piece] = []
    while low <= high:
        last = min(high, 10 ** len(str(low)) - 1)
        pieces += _same_length(str(low), str(last))
        low = last + 1
    return pieces


def _same_length(low: str, high: str) -> list[Piece]:
    """Digit strings from low to high, all of one length."""
    if len(low) == 1:
        return [[_digits(low, high)]]
    rest = len(low) - 1
    if low[0] == high[0]:
        return [[low[0], *piece] for piece in _same_length(low[1:], high[1:])]
    pieces: list[Piece] = []
    first, last = int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        pieces += [[low[0], *piece] for piece in _same_length(low[1:], "9" * rest)]
        first += 1
    tail: list[Piece] = []
    if high[1:] != "9" * rest:
        tail = [[high[0], *piece] for piece in _same_length("0" * rest, high[1:])]
        last -= 1
    if first <= last:
        pieces.append([_digits(str(first), str(last)), *["[0-9]"] * rest])
    return pieces + tail


def _digits(low: str, high: str) -> str:
    return low if low == high else f"[{low}-{high}]"


def _spell(piece: Piece, places: int) -> str:
    """A piece as a regex, its point set; runs of one class are counted."""
    whole = _counted(piece[: len(piece) - places])
    return whole if not places else rf"{whole}\.{_counted(piece[len(piece) - places :])}"


def _counted(piece: Piece) -> str:
    text, index = "", 0
    while index < len(piece):
        run = index
        while run < len(piece) and piece[run] == piece[index]:
            run += 1
        text += piece[index] + (f"{{{run - index}}}" if run - index > 1 else "")
        index = run
    return text
