"""Calls written as Python: read by the grammar and never run, literals only, within bounds; written so that they read back."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from given_calls import python_calls
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import FormatError
from herd.text.messages import ToolCall
from herd.text.python_calls import MAX_CHARS, MAX_DEPTH, parse_call_list, parse_method_call, render_call, too_deep


def one(name: str, /, **arguments: Any) -> tuple[ToolCall, ...]:
    return (ToolCall(name=name, arguments=arguments),)


# The list


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('[boil(liquid="water", celsius=True)]', one("boil", liquid="water", celsius=True)),
        ("[boil(a=1), melt(b=False)]", (*one("boil", a=1), *one("melt", b=False))),
        ("[volume(radius=5.2, height=10)]", one("volume", radius=5.2, height=10)),
        ('[f(name="x", value=42, ratio=3.14, none=None)]', one("f", name="x", value=42, ratio=3.14, none=None)),
        ("[start()]", one("start")),
        ('[say(content="Hello, world!")]', one("say", content="Hello, world!")),
        ('[f(x={"a": "b", "c": [1, {"d": None}]})]', one("f", x={"a": "b", "c": [1, {"d": None}]})),
        ("[f(a=-1, b=+2, c=-1.5e3)]", one("f", a=-1, b=2, c=-1500.0)),
        ("[music.play(song='x')]", one("music.play", song="x")),
        ("  [ f( a = 1 , ) , ]\n", one("f", a=1)),
        ('[f(\n  a="x",\n  b="y"\n)]', one("f", a="x", b="y")),
        ('[f(a="""it\'s "fine" """)]', one("f", a='it\'s "fine" ')),
        (r'[f(a="C:\\new\n")]', one("f", a="C:\\new\n")),
        ("[f(q={'q': 'it\\'s \"fine\"'})]", one("f", q={"q": 'it\'s "fine"'})),
        ('[f(a="(((((")]', one("f", a="(((((")),
        ("[läuft(größe=1)]", one("läuft", größe=1)),
    ],
)
def test_a_list_of_calls_is_read(text: str, calls: tuple[ToolCall, ...]) -> None:
    assert parse_call_list(text) == calls


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "f(a=1)",
        "{}",
        "[f(a=1), 42]",
        "[f(1)]",
        '[f("a", b=1)]',
        "[[f(a=1)]]",
        '{"f": f(a=1)}',
        "[f(a=1",
        "[(f(a=1),)]",
        "[f(a=1)] and more",
        "see [f(a=1)]",
        "[f(a=1); g()]",
        "[f(a=b)]",
        "[f(a=g())]",
        "[f(a=__import__('os').system('true'))]",
        "[f(a=(lambda: 1)())]",
        "[f(a=[x for x in y])]",
        "[f(a=f'{b}')]",
        "[f(a=b'bytes')]",
        "[f(a={1, 2})]",
        "[f(a=...)]",
        "[f(a=1j)]",
        "[f(a=1e999)]",
        "[f(a=2**3)]",
        "[f(a=not True)]",
        "[f(**{'a': 1})]",
        "[f(*[1])]",
        "[f(a=1, a=2)]",
        "[f(a={(1, 2): 3})]",
        "[f()()]",
        "[f()[0](a=1)]",
        "[(f)(a=1) if True else g()]",
        "[f(a=1) for f in g]",
        "[f(a:=1)]",
        "[await f()]",
        "[f(a='\x00')]",
        "[f(a='unclosed)]",
        "\udc80[f()]",
        "[f(a=0777)]",
    ],
)
def test_anything_else_is_no_call(text: str) -> None:
    assert parse_call_list(text) is None


def test_nothing_in_a_call_is_ever_run(tmp_path: Any) -> None:
    target = tmp_path / "made"
    for value in (f"open({str(target)!r}, 'w')", f"[open({str(target)!r}, 'w')]", f"{{1: open({str(target)!r}, 'w')}}"):
        assert parse_call_list(f"[f(a={value})]") is None
        assert parse_method_call(f"f.call(query={value})") is None
    assert not target.exists()


def test_a_text_over_the_length_limit_is_no_call() -> None:
    def sized(size: int) -> str:
        return '[f(a="' + "x" * (size - 9) + '")]'

    assert len(sized(MAX_CHARS)) == MAX_CHARS == 200_000
    assert parse_call_list(sized(MAX_CHARS)) is not None
    assert parse_call_list(sized(MAX_CHARS + 1)) is None


def test_brackets_nest_to_the_depth_limit_and_no_further() -> None:
    def nested(depth: int) -> str:
        return "[f(a=" + "[" * (depth - 2) + "]" * (depth - 2) + ")]"

    assert MAX_DEPTH == 64
    assert parse_call_list(nested(64)) is not None
    assert parse_call_list(nested(65)) is None
    assert not too_deep("()[]{}" * 1000)
    assert too_deep("({[" * 22)


@pytest.mark.parametrize("value", ["(" * 100, "[" * 100 + '"', "it's " + "{" * 100, "\\" + "(" * 100])
def test_brackets_inside_strings_do_not_nest(value: str) -> None:
    assert parse_call_list(f"[{render_call('f', {'a': value})}]") == one("f", a=value)


@pytest.mark.parametrize(
    "value",
    [
        "-" * 50_000 + "1",
        "+".join("1" * 50_000),
        "x" + ".x" * 50_000,
        "not " * 40_000 + "1",
        "[" * 90_000,
        "9" * 100_000,
        "~" * 90_000,
        "'a'" * 50_000,
        "1 # it's\n" + "[" * 90_000,
        "1 # it's\n, b=" + "[" * 150 + "]" * 150,
    ],
    ids=["minus", "sum", "attributes", "not", "brackets", "digits", "invert", "strings", "apostrophe", "apostrophe, closed"],
)
def test_hostile_expressions_are_refused_or_read_in_no_time(value: str) -> None:
    started = time.process_time()
    calls = parse_call_list(f"[f(a={value})]")
    assert calls is None or calls == one("f", a="a" * 50_000)
    assert time.process_time() - started < 20


TOKENS = ("[", "]", "f(", ")", "a=", "1", ",", "'x'", '"', "{", "}", ":", " ", "g.call(", "query=", "\\", "#", "[f(a=", ")]", "-", "None")


@settings(deadline=None, max_examples=1000)
@given(tokens=st.lists(st.sampled_from(TOKENS), max_size=10))
def test_whatever_is_read_can_leave_as_json(tokens: list[str]) -> None:
    text = "".join(tokens)
    found = [*(parse_call_list(text) or ()), parse_method_call(text)]
    for call in found:
        assert call is None or json.loads(json.dumps(call.arguments, allow_nan=False)) == call.arguments


# One call of a method


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ('brave_search.call(query="gold price")', "gold price"),
        ("brave_search.call(query='gold price')", "gold price"),
        ('  brave_search.call(query="x")\n', "x"),
        ('brave_search.call(query="it\'s")', "it's"),
        (r'brave_search.call(query="a \"quoted\" word\n")', 'a "quoted" word\n'),
        ('brave_search.call(query="a "quoted" word")', 'a "quoted" word'),
        ('brave_search.call(query="two\nlines")', "two\nlines"),
        ('brave_search.call(query="' + "(" * 100 + '")', "(" * 100),
        ('brave_search.call(query="' + "(" * 100 + r"\"" + '")', "(" * 100 + '"'),
        ('brave_search.call(query="' + "y" * 300_000 + r"\n" + '")', "y" * 300_000 + "\n"),
        ('brave_search.call(query="")', ""),
    ],
    ids=range(11),
)
def test_the_query_of_a_call_is_read(text: str, query: str) -> None:
    assert parse_method_call(text) == ToolCall(name="brave_search", arguments={"query": query})


def test_a_method_may_take_other_arguments_or_none() -> None:
    assert parse_method_call("photogen.call()") == ToolCall(name="photogen")
    assert parse_method_call('a.b.call(n=3, q="x")') == ToolCall(name="a.b", arguments={"n": 3, "q": "x"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "call",
        "brave_search()",
        "brave_search.run(query='x')",
        'brave_search.call("x")',
        'brave_search.call(query="x"',
        'say brave_search.call(query="x")',
    ],
)
def test_what_is_no_method_call_is_none(text: str) -> None:
    assert parse_method_call(text) is None


# Writing


@settings(deadline=None, max_examples=500)
@given(calls=st.lists(python_calls, min_size=1, max_size=3))
def test_what_is_written_reads_back(calls: list[ToolCall]) -> None:
    text = "[" + ", ".join(render_call(call.name, call.arguments) for call in calls) + "]"
    assert parse_call_list(text) == tuple(calls)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("get-weather", {}, "the tool name 'get-weather' is not a Python name"),
        ("f()", {}, r"the tool name 'f\(\)' is not a Python name"),
        ("", {}, "the tool name '' is not a Python name"),
        ("f", {"a b": 1}, "the argument name 'a b' of f is not a Python name"),
        ("f", {"a": float("nan")}, "the arguments of f are not Python literals"),
        ("f", {"a": float("inf")}, "the arguments of f are not Python literals"),
        ("f", {"a": object()}, "the arguments of f are not Python literals"),
        ("f", {"class": 1}, "the arguments of f are not Python literals"),
        ("import", {}, "the arguments of import are not Python literals"),
        ("f", {"ﬁ": 1}, "the arguments of f are not Python literals"),
        ("f", {"a": json.loads("[" * 100 + "]" * 100)}, "the arguments of f are not Python literals"),
    ],
    ids=range(11),
)
def test_what_python_cannot_spell_is_refused_towards_the_json_format(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        render_call(name, arguments)
    assert caught.value.hint and "JSON tool-call format" in caught.value.hint
