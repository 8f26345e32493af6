"""Answers that call tools: every format a Llama writes becomes the same typed call, streamed or whole."""

from __future__ import annotations

from typing import Any

import pytest

from herd.inference.llm import LLM
from herd.inference.params import SamplingParams
from herd.inference.port import ChatRequest, Event, Finished, to_dict
from herd.text.messages import CODE_INTERPRETER, Message, ToolCall, ToolDefinition
from herd.text.prompt import PromptFormat
from herd.text.reply import CallDelta, CallDone, TextDelta
from herd.text.tokenizer import Tokenizer
from scripted import ScriptedModel, scripted  # pyright: ignore[reportMissingImports]

WEATHER = ToolDefinition(
    name="get_weather",
    description="The weather of a city.",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
GREEDY = SamplingParams(temperature=0.0, max_tokens=300)
LIMA = ToolCall(name="get_weather", arguments={"city": "Lima"})

WRITTEN = {
    "json": ('{"type": "function", "name": "get_weather", "parameters": {"city": "Lima"}}', (LIMA,)),
    "json with arguments": ('{"name": "get_weather", "arguments": {"city": "Lima"}}', (LIMA,)),
    "json behind the tag": ('<|python_tag|>{"name": "get_weather", "parameters": {"city": "Lima"}}', (LIMA,)),
    "two json calls": (
        '{"name": "get_weather", "parameters": {"city": "Lima"}}; {"name": "get_time", "parameters": {}}',
        (LIMA, ToolCall(name="get_time", arguments={})),
    ),
    "a function tag": ('<function=get_weather>{"city": "Lima"}</function>', (LIMA,)),
    "a python list": ("[get_weather(city='Lima'), get_time()]", (LIMA, ToolCall(name="get_time", arguments={}))),
    "a built-in tool": (
        '<|python_tag|>brave_search.call(query="llamas in Peru")',
        (ToolCall(name="brave_search", arguments={"query": "llamas in Peru"}),),
    ),
    "code": (
        "<|python_tag|>for i in range(3):\n    print(i)",
        (ToolCall(name=CODE_INTERPRETER, arguments={"code": "for i in range(3):\n    print(i)"}),),
    ),
    "letters beyond ASCII": (
        '{"name": "get_weather", "parameters": {"city": "मुंबई"}}',
        (ToolCall(name="get_weather", arguments={"city": "मुंबई"}),),
    ),
}


def ask(tokenizer: Tokenizer, script: str | list[int], *, end: bool = True, **fields: Any) -> list[Event]:
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 300, **fields})
    request = ChatRequest(
        messages=(Message.user("Weather?"),), tools=(WEATHER,), builtin_tools=("brave_search",), strict_tools=False, params=params
    )
    return list(scripted(tokenizer, script, end=end).chat(request))


def finished(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("end", ["<|eot_id|>", "<|eom_id|>"])
def test_a_call_in_every_format_is_the_same_typed_call(tiny_tokenizer: Tokenizer, form: str, end: str) -> None:
    text, expected = WRITTEN[form]
    events = ask(tiny_tokenizer, text + end, end=False)
    assert tuple(event.call for event in events if isinstance(event, CallDone)) == expected
    assert finished(events).message.tool_calls == expected
    assert (finished(events).reason, finished(events).text) == ("tool_calls", "")
    assert finished(events).message.ends_turn is False


@pytest.mark.parametrize("form", WRITTEN)
def test_the_raw_text_of_a_call_streams_apart_from_text(tiny_tokenizer: Tokenizer, form: str) -> None:
    events = ask(tiny_tokenizer, WRITTEN[form][0])
    raw = "".join(event.text for event in events if isinstance(event, CallDelta))
    assert raw == WRITTEN[form][0].removeprefix("<|python_tag|>")
    assert not any(isinstance(event, TextDelta) for event in events)


def test_text_before_a_call_is_text(tiny_tokenizer: Tokenizer) -> None:
    events = ask(tiny_tokenizer, 'I will look. <function=get_weather>{"city": "Lima"}</function>')
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == finished(events).text == "I will look. "
    assert finished(events).message.tool_calls == (LIMA,)


@pytest.mark.parametrize("text", ['{"answer": 42}', "[1, 2, 3]", '{"name": "get_weather"', "<function=get_weather>Lima</function>", "No."])
def test_what_turns_out_to_be_no_call_is_text(tiny_tokenizer: Tokenizer, text: str) -> None:
    events = ask(tiny_tokenizer, text)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == finished(events).text == text
    assert finished(events).message.tool_calls == () and finished(events).reason == "stop"


def test_without_tools_nothing_is_a_call(tiny_tokenizer: Tokenizer) -> None:
    for text, _ in WRITTEN.values():
        last = list(scripted(tiny_tokenizer, text).chat(ChatRequest(messages=(Message.user("x"),), params=GREEDY)))[-1]
        assert isinstance(last, Finished)
        assert (last.reason, last.message.tool_calls, last.text) == ("stop", (), text.removeprefix("<|python_tag|>"))


def test_a_call_that_max_tokens_cut_is_told_as_cut(tiny_tokenizer: Tokenizer) -> None:
    code = "<|python_tag|>import shutil; shutil.rmtree('build')"
    whole = tiny_tokenizer.encode(code, allowed_special="all")
    assert finished(ask(tiny_tokenizer, whole, max_tokens=len(whole) - 8)).reason == "length"
    assert finished(ask(tiny_tokenizer, code)).reason == "tool_calls"


def test_text_held_back_for_a_stop_text_does_not_slip_into_the_call_after_it(tiny_tokenizer: Tokenizer) -> None:
    events = ask(tiny_tokenizer, "Look: S<|python_tag|>print(1)", stop=("STOP",))
    assert finished(events).message.tool_calls == (ToolCall(name=CODE_INTERPRETER, arguments={"code": "print(1)"}),)
    assert finished(events).text == "Look: S"


def test_half_a_character_before_a_special_token_does_not_join_what_follows_it(tiny_tokenizer: Tokenizer) -> None:
    script = [0xE2, 0x82, tiny_tokenizer.python_tag_id, *b"x", tiny_tokenizer.eot_id]
    events = ask(tiny_tokenizer, script)
    assert finished(events).text == "\ufffd"
    assert finished(events).message.tool_calls == (ToolCall(name=CODE_INTERPRETER, arguments={"code": "x"}),)


def test_the_prompt_describes_the_tools(tiny_tokenizer: Tokenizer) -> None:
    expected = PromptFormat().encode(tiny_tokenizer, [Message.user("Weather?")], tools=[WEATHER], builtin_tools=["brave_search"])
    assert finished(ask(tiny_tokenizer, "x")).usage.prompt_tokens == len(expected)


def test_a_call_its_result_and_the_answer_make_a_conversation(tiny_tokenizer: Tokenizer) -> None:
    script = tiny_tokenizer.encode(
        '{"name": "get_weather", "parameters": {"city": "Lima"}}<|eom_id|>24 degrees.<|eot_id|>', allowed_special="all"
    )
    llm = LLM(ScriptedModel(script, tiny_tokenizer.vocab_size), tokenizer=tiny_tokenizer)
    messages = [Message.user("Weather in Lima?")]
    asked = llm.chat(messages, GREEDY, tools=[WEATHER.to_dict()])
    assert asked.tool_calls == (LIMA,)
    messages += [asked.message, Message.tool('{"celsius": 24}', name="get_weather")]
    answer = llm.chat(messages, GREEDY, tools=[WEATHER])
    assert (answer.text, answer.finish_reason, answer.tool_calls) == ("24 degrees.", "stop", ())
    assert answer.usage.prompt_tokens == len(PromptFormat().encode(tiny_tokenizer, messages, tools=[WEATHER]))


def test_the_json_of_an_answer_with_calls_has_them_in_openais_shape(tiny_tokenizer: Tokenizer) -> None:
    data = to_dict(finished(ask(tiny_tokenizer, WRITTEN["json"][0])))
    assert data["finish_reason"] == "tool_calls" and data["text"] == ""
    assert data["tool_calls"] == [{"id": "", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Lima"}'}}]
