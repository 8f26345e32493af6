"""Stop texts in a stream: however the text is cut, the answer is the text before the stop that is complete first."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from herd.inference.stop import StopTexts


def whole(text: str, stops: list[str], *, include: bool) -> tuple[str, bool]:
    """The answer by looking at the whole text: of all occurrences the one that ends first, the longest of those."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    if not found:
        return text, False
    end, begin = min(found)
    return text[: end if include else begin], True


def streamed(pieces: list[str], stops: list[str], *, include: bool) -> tuple[str, bool]:
    reader = StopTexts(stops, include=include)
    shown = "".join(reader.push(piece) for piece in pieces)
    return shown + reader.finish(), reader.stopped


@settings(deadline=None, max_examples=500)
@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=10),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    include=st.booleans(),
)
def test_streaming_equals_searching_the_whole_text(pieces: list[str], stops: list[str], include: bool) -> None:
    assert streamed(pieces, stops, include=include) == whole("".join(pieces), stops, include=include)


@settings(deadline=None, max_examples=200)
@given(
    text=st.text("aab", max_size=20), cuts=st.sets(st.integers(0, 20)), stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)
)
def test_the_cut_of_the_text_makes_no_difference(text: str, cuts: set[int], stops: list[str]) -> None:
    places = sorted({cut for cut in cuts if cut < len(text)} | {0, len(text)})
    pieces = [text[begin:end] for begin, end in pairwise(places)]
    assert streamed(pieces, stops, include=False) == streamed(list(text), stops, include=False)


def test_only_an_end_that_could_begin_a_stop_is_held_back() -> None:
    reader = StopTexts(["STOP"])
    assert reader.push("go on ST") == "go on "
    assert reader.push("AND") == "STAND"
    assert reader.push(" S") == " "
    assert reader.finish() == "S"


def test_a_stop_over_several_pieces_is_found_and_what_follows_is_dropped() -> None:
    reader = StopTexts(["\n\nUser:"])
    shown = [reader.push(piece) for piece in ("Hi.", "\n", "\nUs", "er: and", " more")]
    assert "".join(shown) == "Hi." and reader.stopped and reader.finish() == ""


def test_a_stop_that_overlaps_itself_is_found() -> None:
    assert streamed(list("aabaabaaX"), ["abaaX"], include=False) == ("aaba", True)
    assert streamed(["aa", "ab"], ["aab"], include=True) == ("aaab", True)


def test_without_stop_texts_everything_passes_at_once() -> None:
    reader = StopTexts([])
    assert reader.push("abc") == "abc" and not reader.stopped and reader.finish() == ""
