"""Calls as they are written: their pieces, joined, are the arguments as JSON writes them, however the text was cut."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from given_calls import json_calls, tag_calls, words
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.text.call_stream import CallBegan, CallStream, CallText
from herd.text.messages import ToolCall
from herd.text.tool_calls import ToolStyle, render_custom

Told = list[tuple[str, str]]
places_to_cut = st.sets(st.integers(0, 400), max_size=8)


def cut(text: str, places: Iterable[int]) -> list[str]:
    edges = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[begin:end] for begin, end in pairwise(edges)]


def read(pieces: Sequence[str]) -> Told:
    """Names and arguments, joined."""
    stream = CallStream()
    told: list[list[str]] = []
    events = [event for piece in pieces for event in stream.push(piece)] + stream.finish()
    for event in events:
        if isinstance(event, CallBegan):
            told.append([event.name, ""])
        else:
            told[-1][1] += event.text
    assert stream.num_begun == len(told)
    return [(name, arguments) for name, arguments in told]


def dumped(calls: Iterable[ToolCall]) -> Told:
    return [(call.name, json.dumps(call.arguments, ensure_ascii=False)) for call in calls]


@settings(max_examples=100)
@given(call=json_calls, more=st.lists(json_calls, max_size=2), places=places_to_cut)
def test_json_calls_are_told_with_the_arguments_that_json_dumps_writes(call: ToolCall, more: list[ToolCall], places: set[int]) -> None:
    check([call, *more], "json", places)


@settings(max_examples=100)
@given(call=tag_calls, more=st.lists(tag_calls, max_size=2), places=places_to_cut)
def test_function_tags_are_told_with_the_arguments_that_json_dumps_writes(call: ToolCall, more: list[ToolCall], places: set[int]) -> None:
    check([call, *more], "function", places)


def check(calls: list[ToolCall], style: ToolStyle, places: set[int]) -> None:
    text = render_custom(calls, style)
    whole = read([text])
    assert whole == read(cut(text, places)) == read(list(text))
    # A name that no server takes, and built-in tools, are left to the parser of whole calls, and so is what follows them.
    assert whole == dumped(calls)[: len(whole)]
    plain = [
        call.name.isidentifier() and call.name.isascii() and call.name not in ("brave_search", "wolfram_alpha", "photogen")
        for call in calls
    ]
    assert len(whole) >= (plain.index(False) if False in plain else len(plain))


@settings(max_examples=100)
@given(text=st.text(max_size=12), places=places_to_cut)
def test_every_escape_comes_out_as_json_dumps_writes_it(text: str, places: set[int]) -> None:
    escaped = '{"name": "f", "parameters": {"a":' + json.dumps(text) + ',"b":[1e5,-0, 2.50,true , null,{ }]}}'
    wanted = json.dumps({"a": text, "b": [1e5, 0, 2.5, True, None, {}]}, ensure_ascii=False)
    assert read(cut(escaped, places)) == read(list(escaped)) == [("f", wanted)]


@settings(max_examples=100)
@given(parts=st.lists(words, min_size=1, max_size=30), places=places_to_cut)
def test_code_is_told_once_it_can_be_no_other_call(parts: list[str], places: set[int]) -> None:
    code = "x = 1; " + "".join(parts)
    told = read(cut(code, places))
    assert told == read(list(code))
    if len(code) >= 80 and ".call(" not in code[:80]:
        assert told == [("code_interpreter", json.dumps({"code": code}, ensure_ascii=False))]
    else:
        assert told == []


def test_the_name_comes_first_and_the_arguments_as_they_are_written() -> None:
    stream = CallStream()
    assert stream.push('{"type": "function", "name": "get_weather", "param') == []
    assert stream.push('eters": {') == [CallBegan(name="get_weather"), CallText(text="{")]
    assert stream.push('"city":"Li') == [CallText(text='"city": "Li')]
    assert stream.push('ma","days":1') == [CallText(text='ma", "days": ')]
    assert stream.push("2}") == [CallText(text="12}")]
    assert stream.push("}; ") == stream.finish() == []


def test_arguments_that_were_cut_stay_cut() -> None:
    assert read(['{"name": "f", "parameters": {"a": "b']) == [("f", '{"a": "b')]
    assert read(['{"name": "f", "par']) == []


@pytest.mark.parametrize(
    "text", ["[f(a=1)]", 'brave_search.call(query="x")', '{"name": "brave_search", "parameters": {"q": "x"}}', '{"a": 1}', " "]
)
def test_what_is_no_json_call_is_left_to_the_parser(text: str) -> None:
    assert read([text]) == read(list(text)) == []


@pytest.mark.parametrize("piece", ["a", "\\u00e9", "\\", " ", "{", "1"])
def test_twenty_thousand_pieces_take_seconds(piece: str) -> None:
    started = time.process_time()
    for head in ('{"name": "f", "parameters": {"a": "', '{"name": "f", "parameters": {"a": ', "{", ""):
        read([head, *([piece] * 2_000)])
    assert time.process_time() - started < 20
