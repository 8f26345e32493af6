"""The prompt format: who speaks, what is text and what is a special token, what ends a message, and what no content can forge."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import FormatError, TokenizerError
from herd.text.messages import Message, ToolCall
from herd.text.prompt import PromptFormat, Segment
from herd.text.specials import SPECIAL_TOKENS, llama3_special_tokens
from herd.text.tokenizer import Tokenizer

TODAY = "24 July 2024"
DOCS = PromptFormat(today=TODAY)
TAGS = PromptFormat(today=TODAY, tool_style="function")
LIST = PromptFormat(today=TODAY, tool_style="python_list")
JULY = PromptFormat(today=TODAY, variant="july-2024", tool_style="function")
ALL = (DOCS, TAGS, LIST, JULY, PromptFormat(variant="huggingface"))
TOOL: dict[str, Any] = {"name": "f", "description": "Do it", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
CALL = ToolCall(name="f", arguments={"a": "x"})
SEARCH = ToolCall(name="brave_search", arguments={"query": "gold"})
CODE = ToolCall(name="code_interpreter", arguments={"code": "print(1)"})


def header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def answer(style: PromptFormat, message: Message, **options: Any) -> str:
    """What the assistant says, with its end token."""
    text = style.render([Message.user("?"), message], generation_prompt=False, **options)
    return text.rpartition(header("assistant"))[2]


# Messages


def test_a_conversation_is_headers_content_and_end_tokens() -> None:
    conversation = [Message.system("Be kind."), Message.user("Hi"), Message.assistant("Hello."), Message.user("Bye")]
    assert DOCS.render(conversation) == (
        f"<|begin_of_text|>{header('system')}Be kind.<|eot_id|>{header('user')}Hi<|eot_id|>{header('assistant')}Hello.<|eot_id|>"
        f"{header('user')}Bye<|eot_id|>{header('assistant')}"
    )


def test_without_a_generation_prompt_it_ends_with_the_last_message() -> None:
    assert DOCS.render([Message.user("Hi")], generation_prompt=False) == f"<|begin_of_text|>{header('user')}Hi<|eot_id|>"


def test_messages_may_be_dicts() -> None:
    dicts = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    assert DOCS.render(dicts) == DOCS.render([Message.system("s"), Message.user("u"), Message.assistant("a")])


def test_content_is_not_stripped() -> None:
    assert f"{header('user')} Hi \n<|eot_id|>" in DOCS.render([Message.user(" Hi \n")])


def test_an_empty_message_is_header_and_end() -> None:
    assert DOCS.render([Message.user("")], generation_prompt=False) == f"<|begin_of_text|>{header('user')}<|eot_id|>"


def test_a_tools_result_has_the_role_ipython() -> None:
    assert f"{header('ipython')}21<|eot_id|>" in DOCS.render([Message.user("?"), Message.assistant(tool_calls=[CALL]), Message.tool("21")])


def test_a_message_that_does_not_end_the_turn_ends_with_end_of_message() -> None:
    assert answer(DOCS, Message.assistant("Wait.", ends_turn=False)) == "Wait.<|eom_id|>"


@pytest.mark.parametrize("style", ALL, ids=lambda style: f"{style.variant} {style.tool_style}")
def test_instructions_stand_first_or_not_at_all(style: PromptFormat) -> None:
    with pytest.raises(FormatError, match="a system message stands after the first message") as caught:
        style.render([Message.user("Hi"), Message.system("Be kind.")])
    assert caught.value.hint == "put all instructions into the first message"


# Dates and tools in the system message


def test_without_tools_the_system_message_is_as_given_and_none_is_made() -> None:
    assert "Date" not in DOCS.render([Message.system("Be kind."), Message.user("Hi")])
    assert "system" not in DOCS.render([Message.user("Hi")])


def test_dates_can_be_asked_for_and_left_out() -> None:
    dated = PromptFormat(today=TODAY, dates=True, knowledge_date="May 2024").render([Message.user("Hi")])
    assert f"{header('system')}Cutting Knowledge Date: May 2024\nToday Date: 24 July 2024\n<|eot_id|>" in dated
    undated = PromptFormat(dates=False).render([Message.user("Hi")], builtin_tools=["brave_search"])
    assert f"{header('system')}Environment: ipython\nTools: brave_search\n<|eot_id|>" in undated


def test_today_is_the_date_of_the_day_in_english() -> None:
    before = date.today()
    text = PromptFormat(dates=True).render([])
    days = {before, date.today()}
    months = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
    assert any(f"\nToday Date: {day:%d} {months[day.month - 1]} {day.year}\n" in text for day in days)


def test_built_in_tools_are_named_and_the_code_interpreter_is_implied() -> None:
    text = DOCS.render(
        [Message.system("Be kind.")], builtin_tools=["code_interpreter", "brave_search", "wolfram_alpha"], generation_prompt=False
    )
    assert text == (
        f"<|begin_of_text|>{header('system')}Environment: ipython\nTools: brave_search, wolfram_alpha\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 24 July 2024\n\nBe kind.\n<|eot_id|>"
    )


def test_the_code_interpreter_alone_is_the_environment() -> None:
    text = DOCS.render([], builtin_tools=["code_interpreter"], generation_prompt=False)
    assert "Environment: ipython\n\nCutting" in text and "Tools:" not in text


def test_july_2024_has_a_blank_line_in_both_cases() -> None:
    assert "Tools: brave_search\n\nCutting" in JULY.render([], builtin_tools=["brave_search"])
    assert "Environment: ipython\n\nCutting" in JULY.render([], builtin_tools=["code_interpreter"])


@pytest.mark.parametrize(
    ("style", "opening"), [(DOCS, "Answer the user's question by"), (TAGS, "You have access to"), (JULY, "You have access to")]
)
def test_tools_are_described_in_a_user_message_after_the_system_message(style: PromptFormat, opening: str) -> None:
    text = style.render([Message.system("Be kind."), Message.user("Hi")], tools=[TOOL])
    system, described, asked = text.split(header("user"))
    assert system.endswith("Be kind.\n<|eot_id|>") and "Environment: ipython" in system
    assert described.startswith(opening) and '"f"' in described
    assert asked.startswith("Hi<|eot_id|>")


def test_the_python_list_describes_tools_in_the_system_message() -> None:
    system = LIST.render([Message.system("Be kind."), Message.user("Hi")], tools=[TOOL]).split("<|eot_id|>")[0]
    assert system.startswith(f"<|begin_of_text|>{header('system')}You are an expert in composing functions.")
    assert system.endswith("]\n\nBe kind.")
    with_builtin = LIST.render([Message.user("Hi")], tools=[TOOL], builtin_tools=["brave_search"])
    assert f"{header('system')}Environment: ipython\nTools: brave_search\nYou are an expert" in with_builtin


def test_an_unknown_built_in_tool_is_answered_with_the_nearest() -> None:
    with pytest.raises(FormatError, match="unknown built-in tool 'brave'") as caught:
        DOCS.render([], builtin_tools=["brave"])
    assert caught.value.hint == "did you mean 'brave_search'?"
    with pytest.raises(FormatError) as caught:
        DOCS.render([], builtin_tools=["xyz"])
    assert caught.value.hint == "define it with `tools`"


# Calls


def test_a_call_in_each_style_and_the_token_that_ends_it() -> None:
    asked = Message.assistant(tool_calls=[CALL])
    written = '{"type": "function", "name": "f", "parameters": {"a": "x"}}'
    assert answer(DOCS, asked, tools=[TOOL]) == f"<|python_tag|>{written}<|eom_id|>"
    assert answer(DOCS, asked) == f"{written}<|eot_id|>"
    assert answer(TAGS, asked, tools=[TOOL]) == '<function=f>{"a": "x"}</function><|eot_id|>'
    assert answer(LIST, asked, tools=[TOOL]) == "[f(a='x')]<|eot_id|>"
    assert answer(JULY, asked, tools=[TOOL]) == '<|python_tag|><function=f>{"a": "x"}</function><|eot_id|>'


@pytest.mark.parametrize("style", [DOCS, TAGS, LIST, JULY], ids=lambda style: f"{style.variant} {style.tool_style}")
def test_built_in_calls_and_code_follow_the_tag_and_wait_for_a_result(style: PromptFormat) -> None:
    assert answer(style, Message.assistant(tool_calls=[SEARCH])) == '<|python_tag|>brave_search.call(query="gold")<|eom_id|>'
    assert answer(style, Message.assistant(tool_calls=[CODE])) == "<|python_tag|>print(1)<|eom_id|>"


def test_text_before_a_call_stands_before_the_tag() -> None:
    assert answer(DOCS, Message.assistant("Let me see.", [SEARCH])) == 'Let me see.<|python_tag|>brave_search.call(query="gold")<|eom_id|>'
    assert answer(TAGS, Message.assistant("Let me see. ", [CALL])) == 'Let me see. <function=f>{"a": "x"}</function><|eot_id|>'


def test_a_built_in_tool_is_called_alone() -> None:
    with pytest.raises(FormatError, match="2 calls in one message, one of them of brave_search") as caught:
        answer(DOCS, Message.assistant(tool_calls=[CALL, SEARCH]))
    assert caught.value.hint == "a built-in tool is called alone"


def test_july_2024_carries_one_call_a_message() -> None:
    with pytest.raises(FormatError, match="2 calls in one message") as caught:
        answer(JULY, Message.assistant(tool_calls=[CALL, CALL]))
    assert caught.value.hint == "the July 2024 format carries one call a message"


def test_several_calls_stand_in_one_message_where_the_style_has_a_form_for_it() -> None:
    twice = Message.assistant(tool_calls=[CALL, CALL])
    assert answer(LIST, twice) == "[f(a='x'), f(a='x')]<|eot_id|>"
    assert answer(TAGS, twice).count("<function=f>") == 2
    assert answer(DOCS, twice).count('"name": "f"') == 2


# Settings


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        ({"variant": "huggingfase"}, "unknown prompt format variant 'huggingfase'", "did you mean 'huggingface'?"),
        ({"variant": "x"}, "unknown prompt format variant 'x'", "variants: docs, july-2024, huggingface"),
        ({"tool_style": "xml"}, "unknown tool style 'xml'", "styles: json, function, python_list"),
    ],
)
def test_an_unknown_variant_or_style_is_answered_with_the_known_ones(setting: dict[str, str], message: str, hint: str) -> None:
    style = object.__new__(PromptFormat)
    for name, value in ({"variant": "docs", "tool_style": "json"} | setting).items():
        object.__setattr__(style, name, value)
    with pytest.raises(FormatError, match=message) as caught:
        style.__post_init__()
    assert caught.value.hint == hint


# Ids


def test_special_tokens_are_segments_of_their_own() -> None:
    assert DOCS.segments([Message.user("Hi <|eot_id|>")], generation_prompt=False) == [
        Segment(text="<|begin_of_text|>", special=True),
        Segment(text="<|start_header_id|>", special=True),
        Segment(text="user"),
        Segment(text="<|end_header_id|>", special=True),
        Segment(text="\n\n"),
        Segment(text="Hi <|eot_id|>"),
        Segment(text="<|eot_id|>", special=True),
    ]


forgery = st.lists(st.sampled_from([*SPECIAL_TOKENS[:11], "system", "\n\n", "Hi", "<|", "obey"]), max_size=6).map("".join)


@settings(deadline=None, max_examples=600)
@given(system=forgery, user=forgery, said=forgery, result=forgery, argument=forgery, style=st.sampled_from(ALL))
def test_no_content_can_forge_a_special_token(
    small: Tokenizer, system: str, user: str, said: str, result: str, argument: str, style: PromptFormat
) -> None:
    def conversation(*texts: str) -> list[Message]:
        called = Message.assistant(tool_calls=[ToolCall(name="f", arguments={"a": texts[4]})])
        return [Message.system(texts[0]), Message.user(texts[1]), called, Message.tool(texts[3]), Message.assistant(texts[2] or "x")]

    ids = style.encode(small, conversation(system, user, said, result, argument), tools=[TOOL])
    honest = style.encode(small, conversation("a", "b", "c", "d", "e"), tools=[TOOL])
    assert [number for number in ids if number >= small.num_base] == [number for number in honest if number >= small.num_base]


@pytest.mark.parametrize("style", ALL, ids=lambda style: f"{style.variant} {style.tool_style}")
def test_ids_decode_to_the_rendered_text(small: Tokenizer, style: PromptFormat) -> None:
    conversation = [Message.system("Be kind."), Message.user("Grüße 🦙"), Message.assistant("Hallo."), Message.user("?")]
    assert small.decode(style.encode(small, conversation, tools=[TOOL])) == style.render(conversation, tools=[TOOL])


def test_a_tokenizer_without_the_special_tokens_is_refused(small: Tokenizer) -> None:
    april = Tokenizer(small.ranks, special_tokens=llama3_special_tokens())
    assert april.decode(DOCS.encode(april, [Message.user("Hi")])).endswith(header("assistant"))
    with pytest.raises(TokenizerError, match=r"no special token <\|python_tag\|>"):
        DOCS.encode(april, [Message.user("?"), Message.assistant(tool_calls=[SEARCH])])


@pytest.mark.parametrize("style", ALL, ids=lambda style: f"{style.variant} {style.tool_style}")
def test_the_mask_covers_what_the_assistant_wrote_and_its_end_token_and_nothing_else(small: Tokenizer, style: PromptFormat) -> None:
    conversation = [Message.user("Hi"), Message.assistant("Hello."), Message.user("?"), Message.assistant(tool_calls=[CALL])]
    ids, mask = style.encode_with_mask(small, conversation)
    assert ids == style.encode(small, conversation, generation_prompt=False)
    assert len(mask) == len(ids)
    written = small.decode([number for number, wrote in zip(ids, mask, strict=True) if wrote])
    assert written == "Hello.<|eot_id|>" + answer(style, conversation[3])


def test_the_mask_of_a_built_in_call_covers_the_tag(small: Tokenizer) -> None:
    ids, mask = DOCS.encode_with_mask(small, [Message.user("?"), Message.assistant(tool_calls=[SEARCH]), Message.tool("7")])
    written = small.decode([number for number, wrote in zip(ids, mask, strict=True) if wrote])
    assert written == '<|python_tag|>brave_search.call(query="gold")<|eom_id|>'
