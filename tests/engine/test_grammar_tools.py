"""The grammar of tool calls and the parser of replies agree: what one lets the model write, the other reads as the same call."""

from __future__ import annotations

import json
import random
from keyword import iskeyword
from typing import Any

import jsonschema
import pytest
from grammar_helpers import FULL, accepts, ended, feed, forcing_compiler, free_compiler, make_compiler, small_tokenizer, walk
from grammar_schemas import random_schema
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import FormatError
from herd.engine.grammar.spec import STYLES, Grammar
from herd.text.messages import Message, ToolCall
from herd.text.reply import ReplyParser, parse_reply
from herd.text.specials import PYTHON_TAG
from herd.text.tool_calls import render_builtin, render_custom

WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "units": {"enum": ["celsius", "fahrenheit"]},
            "detail": {"type": ["boolean", "null"]},
        },
        "required": ["city"],
    },
}
NOW = {"name": "now", "parameters": {"type": "object", "properties": {}}}
ORDER = {
    "name": "shop.order",
    "parameters": {
        "$defs": {
            "item": {"type": "object", "properties": {"sku": {"type": "string"}, "price": {"type": "number"}}, "required": ["sku", "price"]}
        },
        "type": "object",
        "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/item"}, "minItems": 1}, "note": {}},
        "required": ["items"],
    },
}
TOOLS = [WEATHER, NOW, ORDER]
BUILTIN = ("brave_search", "wolfram_alpha", "code_interpreter")


def read(ids: list[int]) -> Message:
    """The reply as the inference layer reads it: token by token."""
    tokenizer = small_tokenizer()
    parser, decoder = ReplyParser(), tokenizer.stream_decoder()
    for token_id in ids:
        if token_id == tokenizer.python_tag_id:
            parser.push_special(PYTHON_TAG)
        else:
            parser.push(decoder.push(token_id))
    parser.push(decoder.finish())
    parser.finish()
    return parser.message


def text_of(ids: list[int]) -> str:
    return small_tokenizer().decode(ids)


def check_call(call: ToolCall, tools: list[dict[str, Any]], builtin: tuple[str, ...] = ()) -> None:
    schemas = {tool["name"]: tool["parameters"] for tool in tools}
    if call.name in schemas:
        jsonschema.Draft202012Validator(schemas[call.name]).validate(call.arguments)
    elif call.name == "code_interpreter":
        assert call.name in builtin and call.arguments["code"]
    else:
        assert call.name in builtin and set(call.arguments) == {"query"}


SEEDS = range(400 if FULL else 40)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("max_calls", [1, 3])
def test_required_calls_are_read_as_calls_and_nothing_else(style: Any, max_calls: int) -> None:
    grammar = Grammar.tools(TOOLS, style=style, mode="required", max_calls=max_calls)
    counts: set[int] = set()
    for seed in SEEDS:
        compiler = (free_compiler, forcing_compiler)[seed % 2]()
        ids = walk(compiler.compile(grammar), small_tokenizer(), random.Random(seed), length=random.Random(seed).choice([5, 60, 150]))
        message = read(ids)
        assert all(isinstance(part, ToolCall) for part in message.parts) and message.parts, text_of(ids)
        assert len(message.tool_calls) <= max_calls
        counts.add(len(message.tool_calls))
        for call in message.tool_calls:
            check_call(call, TOOLS)
    assert len(counts) > 1 or max_calls == 1


@pytest.mark.parametrize("style", STYLES)
def test_auto_is_text_that_stays_text_or_calls_that_are_on_offer(style: Any) -> None:
    grammar = Grammar.tools(TOOLS, style=style, builtin=BUILTIN, max_calls=2)
    kinds: set[str] = set()
    for seed in SEEDS:
        compiler = (free_compiler, forcing_compiler)[seed % 2]()
        ids = walk(compiler.compile(grammar), small_tokenizer(), random.Random(seed), length=60, start=openings(seed, style))
        message = read(ids)
        kinds.add("call" if message.tool_calls else "text")
        for call in message.tool_calls:
            check_call(call, TOOLS, BUILTIN)
        if not message.tool_calls:
            assert message.text == text_of(ids)
    assert kinds == {"call", "text"}


NAMES = st.from_regex(r"[a-z_]{1,8}(\.[a-z]{1,4})?", fullmatch=True).filter(lambda name: not any(map(iskeyword, name.split("."))))
VALUES = st.sampled_from(
    [{"type": kind} for kind in ("string", "integer", "number", "boolean", "null", "array", "object")]
    + [
        {"enum": ["a", "b c", 'd"e', "f'g", None, 1.5]},
        {"type": ["string", "null"], "maxLength": 4},
        {},
        {"type": "array", "items": {"type": "string"}},
    ]
)
PARAMETERS = st.dictionaries(
    st.from_regex(r"[a-z]{1,6}", fullmatch=True).filter(lambda name: not iskeyword(name)), VALUES, max_size=4
).flatmap(
    lambda properties: st.builds(
        lambda required: {"type": "object", "properties": properties, "required": sorted(required)},
        st.sets(st.sampled_from(sorted(properties))) if properties else st.just(set[str]()),
    )
)


@settings(max_examples=500 if FULL else 50, deadline=None)
@given(
    tools=st.dictionaries(NAMES.filter(lambda name: name not in BUILTIN), PARAMETERS, min_size=1, max_size=3),
    style=st.sampled_from(STYLES),
    max_calls=st.integers(1, 3),
    builtin=st.sets(st.sampled_from(BUILTIN)),
    seed=st.integers(0, 10**6),
)
def test_calls_of_any_tools_are_read_back(tools: dict[str, Any], style: Any, max_calls: int, builtin: set[str], seed: int) -> None:
    offered = [{"name": name, "parameters": parameters} for name, parameters in tools.items()]
    grammar = Grammar.tools(offered, style=style, mode="required", max_calls=max_calls, builtin=sorted(builtin))
    ids = walk((free_compiler, forcing_compiler)[seed % 2]().compile(grammar), small_tokenizer(), random.Random(seed), length=40)
    message = read(ids)
    assert message.tool_calls and not message.text and len(message.tool_calls) <= max_calls
    for call in message.tool_calls:
        check_call(call, offered, tuple(builtin))
    assert parse_reply(text_of(ids)).tool_calls == message.tool_calls


def openings(seed: int, style: Any) -> list[int]:
    """Beginnings at which the grammar has to decide: near-calls as text, text before a call."""
    tokenizer = small_tokenizer()
    call = {"json": '{"', "function": "<function=", "python_list": "[get_weather("}[style]
    texts = ["", "", " {", "[x", "Hello <", call, "brave_search.", "\n\n", "{ 'a", "[1, 2", "Text first. "]
    text = texts[seed % len(texts)]
    ids = [tokenizer.ranks[bytes([byte])] for byte in text.encode()]
    return [*ids, tokenizer.python_tag_id] if seed % 5 == 4 and not text.startswith(('{"', "<f", "[get")) else ids


NEAR_CALLS = [
    '{"name": "other", "parameters": {}}',
    ' {"a": 1}',
    "[f(a=1)]",
    '[ get_weather (city="x")]',
    '[{"name": "f", "parameters": {}}]',
    'brave_search.call(query="x")',
    '\x1d\n{"name": "f", "parameters": {}}',
    'Now: <function=get_weather>{"city": "x"}</function>',
]


@pytest.mark.parametrize("text", NEAR_CALLS)
def test_text_that_would_read_as_a_call_is_not_text(text: str) -> None:
    for style in STYLES:
        grammar = Grammar.tools([NOW], style=style, builtin=("code_interpreter",))
        assert not accepts(grammar, text)


@pytest.mark.parametrize(
    "text", ["", "Yes.", "{x} and {y}", "[1, 2]", "[see](http://x.org)", 'a {"b": 1}', "f(a=1)", "the <function> tag", "{ }", "नमस्ते"]
)
def test_ordinary_text_is_free(text: str) -> None:
    for style in STYLES:
        assert accepts(Grammar.tools(TOOLS, style=style, builtin=BUILTIN), text)
        assert read([small_tokenizer().ranks[bytes([byte])] for byte in text.encode()]).text == text


CALLS = [
    ToolCall(name="get_weather", arguments={"city": 'Genève "centre"\\\n', "days": 3, "units": "celsius", "detail": None}),
    ToolCall(name="now", arguments={}),
    ToolCall(
        name="shop.order", arguments={"items": [{"sku": "a'b", "price": 1.5}, {"sku": "", "price": -2}], "note": {"k": [True, None, 1e5]}}
    ),
]


@pytest.mark.parametrize("style", STYLES)
def test_calls_as_herd_renders_them_are_within_the_grammar(style: Any) -> None:
    for mode in ("auto", "required"):
        for calls in ([CALLS[0]], [CALLS[1]], [CALLS[2]], CALLS):
            text = render_custom(calls, style)
            assert accepts(Grammar.tools(TOOLS, style=style, mode=mode, max_calls=3), text), text
            assert not accepts(Grammar.tools(TOOLS, style=style, mode=mode, max_calls=len(calls)), text + text)


def test_built_in_calls_as_herd_renders_them_are_within_the_grammar() -> None:
    tag = small_tokenizer().python_tag_id
    for call in (
        ToolCall(name="brave_search", arguments={"query": 'llamas "alpaca" \\ é'}),
        ToolCall(name="code_interpreter", arguments={"code": "import math\nprint([math.pi, {1: 2}])\n"}),
    ):
        for mode in ("auto", "required"):
            state = free_compiler().compile(Grammar.tools([], mode=mode, builtin=BUILTIN)).state()
            text = render_builtin(call)
            assert state.accept(tag) and feed(state, text) == len(text.encode()) and state.is_accepting


@pytest.mark.parametrize(
    "code", ['{"name": "f", "parameters": {}}', "[f(a=1)]", 'brave_search.call(query="x")', "\n<function=f>{}</function>"]
)
def test_code_that_would_read_as_another_call_is_no_code(code: str) -> None:
    state = free_compiler().compile(Grammar.tools([], builtin=("code_interpreter",))).state()
    assert state.accept(small_tokenizer().python_tag_id)
    assert feed(state, code) < len(code) or not state.is_accepting


def test_code_walks_are_read_as_code() -> None:
    compiled = free_compiler().compile(Grammar.tools([], mode="required", builtin=("code_interpreter",)))
    for seed in SEEDS:
        ids = walk(compiled, small_tokenizer(), random.Random(seed), length=30)
        message = read(ids)
        assert [call.name for call in message.tool_calls] == ["code_interpreter"]
        assert message.tool_calls[0].arguments["code"] == text_of(ids[1:])


def test_a_named_tool_is_the_only_one() -> None:
    grammar = Grammar.tools(TOOLS, name="now", builtin=BUILTIN)
    assert accepts(grammar, '{"name": "now", "parameters": {}}') and accepts(grammar, '{"type":"function","name":"now","parameters":{}}')
    assert not accepts(grammar, "Hello") and not accepts(grammar, '{"name": "get_weather", "parameters": {"city": "x"}}')
    state = free_compiler().compile(Grammar.tools(TOOLS, name="brave_search", builtin=BUILTIN)).state()
    assert not state.accept(small_tokenizer().ranks[b"{"]) and state.accept(small_tokenizer().python_tag_id)
    assert feed(state, 'brave_search.call(query="x")') == 28 and ended(state)


def test_single_calls_are_single_and_parallel_ones_bounded() -> None:
    one = '{"name": "now", "parameters": {}}'
    assert not accepts(Grammar.tools([NOW], mode="required"), f"{one}; {one}")
    assert accepts(Grammar.tools([NOW], mode="required", max_calls=2), f"{one}; {one}")
    assert not accepts(Grammar.tools([NOW], mode="required", max_calls=2), f"{one}; {one}; {one}")
    assert accepts(Grammar.tools([NOW], style="python_list", mode="required", max_calls=2), "[now(), now()]")


def test_the_end_of_a_call_is_forced_so_the_engine_can_stop() -> None:
    state = free_compiler().compile(Grammar.tools([NOW], mode="required")).state()
    assert feed(state, '{"name": "now", "parameters": {}}') and ended(state)
    state = free_compiler().compile(Grammar.tools([NOW])).state()
    assert feed(state, "Hello") == 5 and state.is_accepting and not ended(state)


@pytest.mark.parametrize("style", STYLES)
def test_random_parameters_of_random_tools_are_read_back(style: Any) -> None:
    checked = 0
    for seed in range(200 if FULL else 30):
        schema = {"$defs": (root := random_schema(seed)).pop("$defs", {}), "type": "object"}
        schema |= {"properties": {"value": root, "other": {"type": "string"}}, "required": ["value"]}
        tools = [{"name": "use", "parameters": schema}]
        try:
            compiled = free_compiler().compile(Grammar.tools(tools, style=style, mode="required"))
        except FormatError as error:
            assert "no arguments satisfy" in error.message, error.message
            continue
        ids = walk(compiled, small_tokenizer(), random.Random(seed), length=40)
        [call] = read(ids).tool_calls
        check_call(call, tools)
        checked += 1
    assert checked > 20


def test_names_that_a_format_cannot_carry_are_refused() -> None:
    for name, parameters, said in [
        ("get-weather", {}, "get-weather"),
        ("import", {}, "import"),
        ("f", {"type": "object", "properties": {"from": {}}}, "from"),
        ("f", {"type": "object", "properties": {"ﬁ": {}}}, "ﬁ"),
        ("été", {}, "été"),
    ]:
        with pytest.raises(FormatError, match=said):
            free_compiler().compile(Grammar.tools([{"name": name, "parameters": parameters}], style="python_list"))
    with pytest.raises(FormatError, match="brave_search"):
        free_compiler().compile(Grammar.tools([{"name": "brave_search", "parameters": {"type": "object", "properties": {"q": {}}}}]))
    with pytest.raises(FormatError, match="free names"):
        free_compiler().compile(Grammar.tools([{"name": "f", "parameters": {"additionalProperties": True}}], style="python_list"))


def test_what_is_asked_for_is_checked() -> None:
    for arguments, said in [
        ({"tools": []}, "no tools"),
        ({"tools": [NOW, NOW]}, "two tools"),
        ({"tools": [NOW], "name": "noww"}, "noww"),
        ({"tools": [{"name": "a b"}]}, "a b"),
        ({"tools": [{"name": "x" * 129}]}, "x" * 129),
        ({"tools": [{}]}, "None"),
        ({"tools": [NOW], "max_calls": 0}, "max_calls"),
        ({"tools": [NOW], "builtin": ["rm"]}, "rm"),
        ({"tools": [{"name": "f", "parameters": {"default": float("nan")}}]}, "JSON"),
    ]:
        with pytest.raises(FormatError, match=said) as caught:
            Grammar.tools(**arguments)
        assert caught.value.hint


def test_without_a_python_tag_there_are_no_built_in_tools() -> None:
    compiler = make_compiler(small_tokenizer(), python_tag_id=None)
    with pytest.raises(FormatError, match="python tag"):
        compiler.compile(Grammar.tools([], builtin=("brave_search",)))
    assert accepts(Grammar.tools([NOW]), '{"name": "now", "parameters": {}}', compiler)


def test_arguments_are_as_long_as_strings_may_be() -> None:
    grammar = Grammar.tools([WEATHER], mode="required", max_string=5)
    call = json.dumps({"name": "get_weather", "parameters": {"city": "x" * 5}})
    assert accepts(grammar, call) and not accepts(grammar, call.replace("xxxxx", "xxxxxx"))
