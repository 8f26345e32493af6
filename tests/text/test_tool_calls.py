"""Tool calls in the four formats: what is rendered parses back, JSON is read as it is, and what is no call is None."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from given_calls import json_calls, python_calls, tag_calls, words
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import FormatError
from herd.text.messages import BUILTIN_TOOLS, ToolCall
from herd.text.tool_calls import (
    as_builtin,
    json_text,
    parse_calls,
    parse_function_tags,
    parse_json_calls,
    render_builtin,
    render_custom,
)

WEATHER = ToolCall(name="get_weather", arguments={"town": "Köln", "days": 3})
SEARCH = ToolCall(name="brave_search", arguments={"query": "gold"})


# Rendering, and parsing it back


@settings(deadline=None, max_examples=1500)
@given(calls=st.lists(json_calls, min_size=1, max_size=3))
def test_json_calls_parse_back(calls: list[ToolCall]) -> None:
    assert parse_calls(render_custom(calls, "json")) == tuple(calls)


@settings(deadline=None, max_examples=1500)
@given(calls=st.lists(tag_calls, min_size=1, max_size=3))
def test_function_tags_parse_back(calls: list[ToolCall]) -> None:
    assert parse_calls(render_custom(calls, "function")) == tuple(calls)


@settings(deadline=None, max_examples=1500)
@given(calls=st.lists(python_calls, min_size=1, max_size=3))
def test_python_lists_parse_back(calls: list[ToolCall]) -> None:
    assert parse_calls(render_custom(calls, "python_list")) == tuple(calls)


@settings(deadline=None, max_examples=1500)
@given(name=st.sampled_from(BUILTIN_TOOLS[:3]), query=st.lists(words, max_size=4).map("".join))
def test_built_in_calls_parse_back_whatever_the_query(name: str, query: str) -> None:
    call = ToolCall(name=name, arguments={"query": query})
    assert parse_calls(render_builtin(call)) == (call,)


def test_the_four_formats_as_the_documents_write_them() -> None:
    assert render_custom([WEATHER], "json") == '{"type": "function", "name": "get_weather", "parameters": {"town": "Köln", "days": 3}}'
    assert render_custom([WEATHER], "function") == '<function=get_weather>{"town": "Köln", "days": 3}</function>'
    assert render_custom([WEATHER, WEATHER], "python_list") == "[get_weather(town='Köln', days=3), get_weather(town='Köln', days=3)]"
    assert render_builtin(SEARCH) == 'brave_search.call(query="gold")'


def test_several_json_calls_stand_with_semicolons_between() -> None:
    text = render_custom([WEATHER, WEATHER], "json")
    assert text.count('"name"') == 2 and "}}; {" in text


def test_code_for_the_interpreter_is_rendered_as_it_stands() -> None:
    assert render_builtin(ToolCall(name="code_interpreter", arguments={"code": 'print("a\n")'})) == 'print("a\n")'
    assert render_builtin(ToolCall(name="code_interpreter")) == ""


@pytest.mark.parametrize("key", ["a b", "class", "1", "", "q-1"])
def test_a_built_in_argument_that_python_cannot_name_is_refused(key: str) -> None:
    with pytest.raises(FormatError, match=f"the argument name '{key}' of brave_search is not a Python name") as caught:
        render_builtin(ToolCall(name="brave_search", arguments={key: "x"}))
    assert caught.value.hint == 'built-in tools take one argument, "query"'


@pytest.mark.parametrize("name", ["f>", "a<b", '"f"', "f\ng", " f", "f ", ""])
def test_a_name_that_would_break_its_tag_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match=r"cannot stand in a <function=\.\.\.> tag") as caught:
        render_custom([ToolCall(name=name)], "function")
    assert caught.value.hint == "rename the tool"


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), {1, 2}, b"bytes", object(), {(1, 2): 3}],
    ids=["nan", "inf", "set", "bytes", "object", "tuple key"],
)
def test_what_json_has_no_word_for_is_refused(value: Any) -> None:
    for style in ("json", "function"):
        with pytest.raises(FormatError, match="not JSON") as caught:
            render_custom([ToolCall(name="f", arguments={"a": value})], style)
        assert caught.value.hint and "finite numbers" in caught.value.hint


def test_a_value_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(FormatError, match="not JSON"):
        json_text(loop)


# Reading JSON


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "function", "name": "f", "parameters": {"a": 1}}',
        '{"name": "f", "parameters": {"a": 1}}',
        '{"name": "f", "arguments": {"a": 1}}',
        '{"name": "f", "arguments": "{\\"a\\": 1}"}',
        '{"function": "f", "parameters": {"a": 1}}',
        '{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}',
        '{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}',
        '[{"name": "f", "parameters": {"a": 1}}]',
        ' \n{ "name" : "f" ,\n "parameters" : { "a" : 1 } } \n',
        '{"name": "f", "parameters": {"a": 1}};',
    ],
)
def test_the_shapes_of_json_that_llama_models_write(text: str) -> None:
    assert parse_calls(text) == (ToolCall(name="f", arguments={"a": 1}),)


@pytest.mark.parametrize("between", ["; ", ";", ", ", "\n", " ", ";\n\n"])
def test_several_objects_are_several_calls(between: str) -> None:
    text = between.join(json_text({"name": name, "parameters": {}}) for name in "fgh")
    assert parse_calls(text) == (ToolCall(name="f"), ToolCall(name="g"), ToolCall(name="h"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'{"name": "f", "parameters": {"q": "it\'s"}}', None),
        ('{"name": "f", "parameters": {"q": "it\'s \\"fine\\""}}', 'it\'s "fine"'),
        ('{"name": "f", "parameters": {"q": "{\'a\': \'b\'}"}}', "{'a': 'b'}"),
        ('{"name": "f", "parameters": {"q": "\\u00e9\\n"}}', "é\n"),
        ("{'name': 'f', 'parameters': {'q': 'x'}}", None),
    ],
)
def test_quotes_are_never_replaced(text: str, value: str | None) -> None:
    assert parse_calls(text) == (None if value is None else (ToolCall(name="f", arguments={"q": value}),))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '{"name": "f"}',
        '{"name": "", "parameters": {}}',
        '{"name": 5, "parameters": {}}',
        '{"name": "f", "parameters": []}',
        '{"name": "f", "parameters": "x"}',
        '{"name": "f", "parameters": "[1]"}',
        '{"parameters": {}}',
        '{"name": "f", "parameters": {}} and more',
        '{"name": "f", "parameters": {}',
        '{"name": "f", "parameters": {}}; {"no": "call"}',
        '{"name": "f", "parameters": {"a": NaN}}',
        '{"name": "f", "parameters": {"a": Infinity}}',
        '{"name": "f", "parameters": {"a": 1e999}}',
        '{"name": "f", "parameters": {"a": ' + "9" * 5000 + "}}",
        '[1, {"name": "f", "parameters": {}}]',
        '{"a": "a recipe", "b": ["of", "bread"]}',
        "[1, 2, 3]",
        '["a"]',
    ],
)
def test_json_that_is_no_call_is_none(text: str) -> None:
    assert parse_json_calls(text) is None
    assert parse_calls(text) is None


def test_nesting_is_bounded_outside_strings_only() -> None:
    def nested(depth: int) -> str:
        return '{"name": "f", "parameters": {"a": ' + "[" * (depth - 2) + "]" * (depth - 2) + "}}"

    assert parse_calls(nested(64)) is not None
    assert parse_calls(nested(65)) is None
    assert parse_calls(nested(100_000)) is None
    text = '{"name": "f", "parameters": {"a": "' + "[{(" * 1000 + '\\"[["}}'
    assert parse_calls(text) == (ToolCall(name="f", arguments={"a": "[{(" * 1000 + '"[['}),)


# Reading function tags


@pytest.mark.parametrize(
    ("text", "names", "rest"),
    [
        ("<function=f>{}</function>", ["f"], ""),
        ("<function=f>{}</function><function=g>{}</function>", ["f", "g"], ""),
        ("<function=f>{}</function>\n<function=g>{}</function>", ["f", "g"], ""),
        ("<function=f>{}", ["f"], ""),
        ('<function="f">{}</function>', ["f"], ""),
        ("<function= f >{}</function>", ["f"], ""),
        ("<function=f>\n{}\n</function>", ["f"], ""),
        ("<function=f>{}</function> Done.", ["f"], " Done."),
        ("<function=f>{}</function>\n<function=g>{oops}</function>", ["f"], "\n<function=g>{oops}</function>"),
        ("<function=f>{}</func", ["f"], "</func"),
        ("<function=f>{}", ["f"], ""),
        ("<function=f>[1]</function>", [], "<function=f>[1]</function>"),
        ("<function=f>{oops}</function>", [], "<function=f>{oops}</function>"),
        ("<function=>{}</function>", [], "<function=>{}</function>"),
        ("<function=f", [], "<function=f"),
        ("<function=f>", [], "<function=f>"),
        ("a <function=f>{}</function>", [], "a <function=f>{}</function>"),
    ],
)
def test_the_tags_that_open_a_text_are_calls_and_the_rest_is_kept(text: str, names: list[str], rest: str) -> None:
    calls, left = parse_function_tags(text)
    assert [call.name for call in calls] == names
    assert left == rest


def test_a_closing_tag_inside_a_string_ends_nothing() -> None:
    call = ToolCall(name="f", arguments={"a": "</function><function=g>{}</function>"})
    assert parse_calls(render_custom([call], "function")) == (call,)


# Built-in tools


def test_a_built_in_tool_called_in_a_custom_format_takes_its_first_argument_as_the_query() -> None:
    asked = (ToolCall(name="wolfram_alpha", arguments={"query": "2+2"}),)
    assert parse_calls('{"name": "wolfram_alpha", "parameters": {"expression": "2+2", "n": 1}}') == asked
    assert parse_calls('<function=wolfram_alpha>{"q": "2+2"}</function>') == asked
    assert parse_calls('[wolfram_alpha(q="2+2")]') == asked


def test_a_call_that_has_a_query_or_is_of_another_tool_stays_as_it_is() -> None:
    for call in (ToolCall(name="brave_search", arguments={"n": 1, "query": "x"}), ToolCall(name="f", arguments={"a": 1})):
        assert as_builtin(call) is call
    code = ToolCall(name="code_interpreter", arguments={"code": "1"}, id="c1")
    assert as_builtin(code) is code
    assert as_builtin(ToolCall(name="photogen", arguments={"p": "a llama"}, id="c2")) == ToolCall(
        name="photogen", arguments={"query": "a llama"}, id="c2"
    )
    assert as_builtin(ToolCall(name="photogen")) == ToolCall(name="photogen")


@pytest.mark.parametrize(
    "text", ['get_weather.call(query="x")', 'os.system.call(query="x")', "code_interpreter", "brave_search", "x" * 100 + ".call("]
)
def test_only_built_in_tools_are_called_as_methods(text: str) -> None:
    assert parse_calls(text) is None


# Hostile texts


@pytest.mark.parametrize(
    "text",
    [
        "<function=" * 100_000,
        "<function=f>{}" * 20_000,
        '{"a":' * 200_000,
        "{" * 1_000_000,
        '{"name": "f", "parameters": {}};' * 10_000,
        "[" * 1_000_000,
        "[f(" * 300_000,
        "[f(a=1)," * 100_000,
        'brave_search.call(query="' * 40_000,
        '{"' + "\\" * 1_000_000,
        '{"name": "f", "parameters": {"a": "' + "((" * 500_000,
        " " * 1_000_000 + "{",
    ],
    ids=range(12),
)
def test_a_megabyte_of_openings_takes_seconds_at_most(text: str) -> None:
    started = time.process_time()
    calls = parse_calls(text) or ()
    assert all(call.name == "f" for call in calls)
    assert time.process_time() - started < 20


@settings(deadline=None, max_examples=1000)
@given(
    st.lists(
        st.sampled_from(
            [
                '{"',
                "name",
                '": ',
                '"f"',
                ", ",
                "parameters",
                "{}",
                "}",
                "[",
                "]",
                "<function=f>",
                "</function>",
                "f(",
                ")",
                "a=1",
                ";",
                "\\",
            ]
        ),
        max_size=12,
    )
)
def test_whatever_is_read_can_be_written_as_json(parts: list[str]) -> None:
    for call in parse_calls("".join(parts)) or ():
        assert call.name
        assert json.loads(json_text(call.arguments)) == call.arguments
