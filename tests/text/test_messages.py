"""Messages and tool definitions: OpenAI's shape in and out, strictly; every refusal names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import FormatError
from herd.text.messages import Message, TextPart, ToolCall, ToolDefinition, as_messages, as_tools

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
calls = st.builds(
    ToolCall,
    name=st.text(min_size=1, max_size=8).filter(str.strip),
    arguments=st.dictionaries(st.text(max_size=5), json_values, max_size=3),
    id=st.none() | st.text(min_size=1, max_size=6),
)
texts = st.text(max_size=10)
some = st.none() | st.text(max_size=4)


@settings(deadline=None, max_examples=500)
@given(text=texts, called=st.lists(calls, max_size=3), name=some, tool_call_id=some)
def test_a_message_survives_its_dict_and_json(text: str, called: list[ToolCall], name: str | None, tool_call_id: str | None) -> None:
    answer = Message.assistant(text, called) if text or called else Message.user(text)
    for message in (Message.system(text), Message.user(text), answer, Message.tool(text, name=name, tool_call_id=tool_call_id)):
        assert Message.from_dict(json.loads(json.dumps(message.to_dict()))) == message


def call(name: str = "f", arguments: Any = "{}", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


# Messages


def test_the_four_kinds_of_message() -> None:
    assert Message.system("s") == Message(role="system", parts=(TextPart(text="s"),))
    assert Message.user("u") == Message(role="user", parts=(TextPart(text="u"),))
    assert Message.assistant("a") == Message(role="assistant", parts=(TextPart(text="a"),))
    assert Message.tool("t", name="f", tool_call_id="1") == Message(role="tool", parts=(TextPart(text="t"),), name="f", tool_call_id="1")


def test_text_and_calls_are_told_apart() -> None:
    first, second = ToolCall(name="f"), ToolCall(name="g", arguments={"a": 1})
    message = Message(role="assistant", parts=(TextPart(text="Let "), first, TextPart(text="me see"), second))
    assert message.text == "Let me see"
    assert message.tool_calls == (first, second)


def test_a_call_without_text_has_no_empty_text() -> None:
    assert Message.assistant(tool_calls=[ToolCall(name="f")]).parts == (ToolCall(name="f"),)
    assert Message.from_dict({"role": "assistant", "content": None, "tool_calls": [call()]}).parts == (ToolCall(name="f"),)
    assert Message.from_dict({"role": "assistant", "content": "", "tool_calls": [call()]}).parts == (ToolCall(name="f"),)


@pytest.mark.parametrize(("written", "role"), [("ipython", "tool"), ("developer", "system"), ("tool", "tool"), ("user", "user")])
def test_roles_of_other_protocols_are_understood(written: str, role: str) -> None:
    assert Message.from_dict({"role": written, "content": "x"}).role == role


@pytest.mark.parametrize("kind", ["text", "input_text", "output_text"])
def test_content_may_be_a_list_of_text_parts(kind: str) -> None:
    message = Message.from_dict({"role": "user", "content": [{"type": kind, "text": "a"}, {"type": kind, "text": "b"}]})
    assert message.text == "ab"


def test_calls_are_read_with_arguments_as_text_or_as_an_object() -> None:
    data = {"role": "assistant", "tool_calls": [call("f", '{"a": [1, null]}', id="c1"), call("g", {"b": "ü"}), call("h", "")]}
    assert Message.from_dict(data).tool_calls == (
        ToolCall(name="f", arguments={"a": [1, None]}, id="c1"),
        ToolCall(name="g", arguments={"b": "ü"}),
        ToolCall(name="h"),
    )


def test_a_dict_writes_arguments_as_json_text_with_characters_kept() -> None:
    message = Message.assistant("Wait.", [ToolCall(name="f", arguments={"town": "Köln"}, id="c1")])
    assert message.to_dict() == {
        "role": "assistant",
        "content": "Wait.",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"town": "Köln"}'}}],
    }
    assert Message.tool("21", tool_call_id="c1").to_dict() == {"role": "tool", "content": "21", "tool_call_id": "c1"}


MALFORMED: list[tuple[str, Any, str]] = [
    ("a string", "hello", "a message is str, it must be an object"),
    ("a list", [], "a message is list, it must be an object"),
    ("no role", {"content": "x"}, "unknown role None"),
    ("another role", {"role": "robot", "content": "x"}, "unknown role 'robot'"),
    ("a role that is a list", {"role": ["user"], "content": "x"}, r"unknown role \['user'\]"),
    ("no content", {"role": "user"}, "message content is NoneType, it must be text"),
    ("content that is a number", {"role": "user", "content": 5}, "message content is int, it must be text"),
    ("content that is an object", {"role": "user", "content": {"text": "x"}}, "message content is dict, it must be text"),
    ("a picture", {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "content part of type 'image_url' is not text"),
    ("a part that is text", {"role": "user", "content": ["x"]}, "content part of type None is not text"),
    ("a part without text", {"role": "user", "content": [{"type": "text"}]}, "content part of type 'text' is not text"),
    ("a name that is a number", {"role": "tool", "content": "x", "name": 5}, "message field 'name' is int, it must be a string"),
    ("an id that is a list", {"role": "tool", "content": "x", "tool_call_id": []}, "message field 'tool_call_id' is list"),
    ("calls that are an object", {"role": "assistant", "tool_calls": {}}, "tool_calls is dict, it must be a list"),
    ("calls by a user", {"role": "user", "tool_calls": [call()]}, "a user message holds a tool call"),
    ("a call that is text", {"role": "assistant", "tool_calls": ["f()"]}, "a tool call has no function name"),
    ("a call without function", {"role": "assistant", "tool_calls": [{"name": "f"}]}, "a tool call has no function name"),
    ("a call whose function is text", {"role": "assistant", "tool_calls": [{"function": "f"}]}, "a tool call has no function name"),
    ("a call with an empty name", {"role": "assistant", "tool_calls": [call(" ")]}, "a tool call has no function name"),
    ("arguments that are no JSON", {"role": "assistant", "tool_calls": [call("f", "{'a': 1}")]}, "the arguments of 'f' are not JSON"),
    ("arguments nested too deep", {"role": "assistant", "tool_calls": [call("f", "[" * 100_000)]}, "the arguments of 'f' are not JSON"),
    ("arguments that are a list", {"role": "assistant", "tool_calls": [call("f", "[1]")]}, "the arguments of 'f' are list"),
    ("arguments that are a number", {"role": "assistant", "tool_calls": [call("f", 5)]}, "the arguments of 'f' are int"),
    ("a call with a numeric id", {"role": "assistant", "tool_calls": [call(id=7)]}, "field 'id' is int, it must be a string"),
]


@pytest.mark.parametrize(("data", "message"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED])
def test_a_malformed_message_is_refused_with_the_field(data: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        Message.from_dict(data)
    assert caught.value.hint


def test_an_unknown_role_is_answered_with_the_nearest_or_with_all() -> None:
    with pytest.raises(FormatError) as caught:
        Message.from_dict({"role": "users", "content": "x"})
    assert caught.value.hint == "did you mean 'user'?"
    with pytest.raises(FormatError) as caught:
        Message.from_dict({"role": "xyz", "content": "x"})
    assert caught.value.hint == "roles: system, user, assistant, tool"


def test_conversations_may_mix_messages_and_dicts() -> None:
    assert as_messages([Message.system("s"), {"role": "user", "content": "u"}]) == [Message.system("s"), Message.user("u")]


# Tool definitions

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Tell the weather",
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
}


@pytest.mark.parametrize("data", [WEATHER, {"type": "function", "function": WEATHER}], ids=["inner", "whole"])
def test_a_definition_is_read_in_openais_shape_or_as_its_inner_object(data: dict[str, Any]) -> None:
    tool = ToolDefinition.from_dict(data)
    assert (tool.name, tool.description) == ("get_weather", "Tell the weather")
    assert tool.properties == {"town": {"type": "string"}}
    assert tool.required == ["town"]
    assert tool.to_dict() == {"type": "function", "function": WEATHER}
    assert ToolDefinition.from_dict(tool.to_dict()) == tool


def test_a_definition_needs_only_a_name() -> None:
    tool = ToolDefinition.from_dict({"name": "roll-dice.v2", "description": None, "parameters": None})
    assert tool == ToolDefinition(name="roll-dice.v2")
    assert (tool.description, tool.properties, list(tool.required)) == ("", {}, [])


def test_definitions_may_be_mixed_with_dicts() -> None:
    assert as_tools([ToolDefinition(name="f"), {"name": "g"}]) == [ToolDefinition(name="f"), ToolDefinition(name="g")]


BAD_TOOLS: list[tuple[str, Any, str]] = [
    ("a string", "get_weather", "a tool definition is str, it must be an object"),
    ("no name", {"description": "x"}, "a tool definition has no name"),
    ("a name that is a number", {"name": 5}, "a tool definition has no name"),
    ("a function that is text", {"type": "function", "function": "f"}, "a tool definition has no name"),
    ("an empty name", {"name": ""}, "a tool is named ''"),
    ("a name with a space", {"name": "get weather"}, "a tool is named 'get weather'"),
    ("a name that closes a tag", {"name": "f>{}"}, "a tool is named 'f>{}'"),
    ("a name with a line end", {"name": "f\n"}, r"a tool is named 'f\\n'"),
    ("parameters that are a list", {"name": "f", "parameters": ["a"]}, "the parameters of tool 'f' are not an object"),
    ("properties that are a list", {"name": "f", "parameters": {"properties": []}}, "the parameters of tool 'f' have no properties"),
    ("a parameter that is text", {"name": "f", "parameters": {"properties": {"a": "string"}}}, "parameter 'a' of tool 'f' is 'string'"),
    ("required that is text", {"name": "f", "parameters": {"required": "a"}}, "`required` of tool 'f' is 'a'"),
    ("required that is true", {"name": "f", "parameters": {"required": True}}, "`required` of tool 'f' is True"),
    ("required numbers", {"name": "f", "parameters": {"required": [1]}}, r"`required` of tool 'f' is \[1\]"),
]


@pytest.mark.parametrize(("data", "message"), [case[1:] for case in BAD_TOOLS], ids=[case[0] for case in BAD_TOOLS])
def test_a_malformed_definition_is_refused_with_the_field(data: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        ToolDefinition.from_dict(data)
    assert caught.value.hint
