"""The published prompts of Llama 3.1 and 3.2, rendered to the character, and the published answers, parsed.

The digests, lengths and token counts are those of the blocks in Meta's prompt format documents.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from herd.text.messages import Message, ToolCall
from herd.text.prompt import PromptFormat
from herd.text.reply import parse_reply
from herd.text.tokenizer import Tokenizer

DOCS = PromptFormat(today="21 September 2024")
FUNCTION_TAGS = PromptFormat(today="21 September 2024", tool_style="function")
ASK_SONGS = [Message.system("You are a helpful assistant."), Message.user("Use tools to get latest trending songs")]
SONGS: dict[str, Any] = {
    "name": "trending_songs",
    "description": "Returns the trending songs on a Music site",
    "parameters": {
        "type": "object",
        "properties": {
            "n": {"type": "int", "description": "The number of songs to return"},
            "genre": {"type": "str", "description": "The genre of the songs to return"},
        },
        "required": ["n"],
    },
}
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get weather info for places",
    "parameters": {
        "type": "object",
        "required": ["city"],
        "properties": {
            "city": {"type": "string", "description": "The name of the city to get the weather for"},
            "metric": {
                "type": "string",
                "description": "The metric for weather. Options are: celsius, fahrenheit",
                "default": "celsius",
            },
        },
    },
}


def wolfram_result() -> str:
    def pod(title: str, text: str, **more: bool) -> dict[str, Any]:
        return {"title": title, **more, "subpods": [{"title": "", "plaintext": text}]}

    pods = [
        pod("Input interpretation", "100th digit | π"),
        pod("Nearby digits", "...86208998628034825342117067982148086513282306647093..."),
        pod("Result", "7", primary=True),
    ]
    result = {"queryresult": {"success": True, "inputstring": "100th decimal of pi", "pods": pods}}
    return "\n" + json.dumps(result, indent=4, ensure_ascii=False) + "\n"


def base() -> str:
    return "<|begin_of_text|>Color of sky is blue but sometimes can also be"


def chat() -> str:
    return DOCS.render([Message.system("You are a helpful assistant"), Message.user("Answer who are you in the form of jeopardy?")])


def brave_search() -> str:
    ask = [Message.system("You are a helpful assistant."), Message.user("Search the web for the latest price of 1oz gold?")]
    return DOCS.render(ask, builtin_tools=["brave_search", "wolfram_alpha"])


def code() -> str:
    question = "Write code to check if number is prime, use that to see if the number 7 is prime"
    return DOCS.render([Message.system("Environment: ipython"), Message.user(question)])


def wolfram() -> str:
    call = ToolCall(name="wolfram_alpha", arguments={"query": "100th decimal of pi"})
    conversation = [
        Message.system("Environment: ipython\nTools: brave_search, wolfram_alpha\n"),
        Message.user("What is the 100th decimal of pi?"),
        Message.assistant(tool_calls=[call]),
        Message.tool(wolfram_result()),
    ]
    return DOCS.render(conversation)


def json_tool() -> str:
    return DOCS.render(ASK_SONGS, tools=[SONGS])


def function_tool() -> str:
    return FUNCTION_TAGS.render(ASK_SONGS, tools=[SONGS])


GOLDEN: list[tuple[Callable[[], str], int, int, str]] = [
    (base, 63, 11, "e5a34b9bb7db20a3"),
    (chat, 240, 30, "32596fcad4efcc9f"),
    (brave_search, 372, 68, "4ef2be410b20bdf6"),
    (code, 270, 39, "d46002afdde8b3e4"),
    (wolfram, 1383, 237, "77a93350c1c60773"),
    (json_tool, 1289, 232, "dcd2c6131eff5c1a"),
    (function_tool, 1358, 273, "c0b034e8ee178ef2"),
]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def blocks(shared_data: Path, name: str) -> list[str]:
    """What stands between the fences of a published document."""
    path = shared_data / "reference" / "llama3" / name
    if not path.exists():
        pytest.skip(f"needs the published document, which is not at {path}")
    return re.findall(r"```\n(.*?)\n```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(name="blocks_31")
def blocks_31_fixture(shared_data: Path) -> list[str]:
    """Seven prompts of Llama 3.1, each with its answer after it."""
    return blocks(shared_data, "llama3_1__prompt_format.md")


@pytest.fixture(name="blocks_32")
def blocks_32_fixture(shared_data: Path) -> list[str]:
    """The prompts and answers of Llama 3.2."""
    return blocks(shared_data, "llama3_2__text_prompt_format.md")


@pytest.mark.parametrize(("render", "chars", "tokens", "sha256"), GOLDEN, ids=lambda value: getattr(value, "__name__", None))
def test_the_published_prompt_is_rendered_to_the_character(render: Callable[[], str], chars: int, tokens: int, sha256: str) -> None:
    text = render()
    assert (len(text), digest(text)) == (chars, sha256)


@pytest.mark.parametrize(("render", "chars", "tokens", "sha256"), GOLDEN, ids=lambda value: getattr(value, "__name__", None))
def test_the_published_prompt_has_the_published_number_of_tokens(
    llama3: Tokenizer, render: Callable[[], str], chars: int, tokens: int, sha256: str
) -> None:
    assert len(llama3.encode(render(), allowed_special="all")) == tokens


def test_encoding_a_conversation_gives_the_ids_of_its_rendered_text(llama3: Tokenizer) -> None:
    ids = DOCS.encode(llama3, ASK_SONGS, tools=[SONGS])
    assert ids == llama3.encode(json_tool(), allowed_special="all")
    assert ids[:2] == [128000, 128006]
    assert ids[-2:] == [128007, 271]


def test_the_documents_blocks_are_what_the_digests_say(blocks_31: list[str]) -> None:
    assert len(blocks_31) == 14
    assert [digest(block) for block in blocks_31[::2]] == [sha256 for _, _, _, sha256 in GOLDEN]


def test_the_documents_prompts_are_rendered_to_the_character(blocks_31: list[str]) -> None:
    assert [render() for render, *_ in GOLDEN] == blocks_31[::2]


def test_the_documents_prompts_have_the_published_lengths(llama3: Tokenizer, blocks_31: list[str]) -> None:
    prompts = [(len(block), len(llama3.encode(block, allowed_special="all"))) for block in blocks_31[::2]]
    assert prompts == [(chars, tokens) for _, chars, tokens, _ in GOLDEN]


def test_the_published_answers_have_the_published_lengths(llama3: Tokenizer, blocks_31: list[str]) -> None:
    answers = [llama3.encode(block, allowed_special="all") for block in blocks_31[1::2]]
    assert [len(ids) for ids in answers] == [64, 12, 16, 65, 12, 42, 15]
    assert [ids[-1] for ids in answers[1:]] == [128009, 128008, 128008, 128009, 128008, 128009]
    assert [ids[0] == 128010 for ids in answers] == [False, False, True, True, False, True, False]


def test_the_published_answers_parse_to_their_calls(blocks_31: list[str]) -> None:
    answers = [parse_reply(block) for block in blocks_31[1::2]]
    calls = [[(call.name, call.arguments) for call in answer.tool_calls] for answer in answers]
    program = answers[3].tool_calls[0].arguments["code"]
    assert program.startswith("def is_prime(n):\n    if n <= 1\n")
    assert program.endswith("print(is_prime(7))  # Output: True")
    assert calls == [
        [],
        [],
        [("brave_search", {"query": "latest price of 1oz gold"})],
        [("code_interpreter", {"code": program})],
        [],
        [("trending_songs", {"n": "10", "genre": "all"})],
        [("trending_songs", {"n": 10})],
    ]
    assert answers[1].text == 'Here\'s my response\n\n"What is a helpful assistant?"'
    assert answers[4].text == "The 100th decimal of pi is 7."
    assert [answer.ends_turn for answer in answers] == [True, True, False, False, True, False, True]
    assert all(not answer.text for answer in answers if answer.tool_calls)


def test_a_published_answer_renders_back_to_itself() -> None:
    for block in (
        '<|python_tag|>brave_search.call(query="latest price of 1oz gold")<|eom_id|>',
        '<function=trending_songs>{"n": 10}</function><|eot_id|>',
    ):
        messages = [Message.user("?"), parse_reply(block)]
        assert FUNCTION_TAGS.render(messages, generation_prompt=False).endswith("assistant<|end_header_id|>\n\n" + block)


@pytest.mark.parametrize(
    ("number", "style", "tools", "builtin_tools"),
    [(2, DOCS, [], ["brave_search"]), (3, DOCS, [], []), (6, FUNCTION_TAGS, [SONGS], [])],
    ids=["built-in", "code", "function tag"],
)
def test_each_published_call_renders_back_to_its_answer(
    blocks_31: list[str], number: int, style: PromptFormat, tools: list[dict[str, Any]], builtin_tools: list[str]
) -> None:
    answer = blocks_31[2 * number + 1]
    messages = [Message.user("?"), parse_reply(answer)]
    text = style.render(messages, tools=tools, builtin_tools=builtin_tools, generation_prompt=False)
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n" + answer)


def test_the_published_python_list_prompt_is_rendered_to_the_character() -> None:
    text = PromptFormat(tool_style="python_list").render([Message.user("What is the weather in SF and Seattle?")], tools=[WEATHER])
    assert digest(text) == "cb02316847f6fd54"


def test_the_published_python_list_document_agrees(blocks_32: list[str]) -> None:
    assert digest(blocks_32[2]) == "cb02316847f6fd54"
    weather = [("get_weather", {"city": city, "metric": "celsius"}) for city in ("San Francisco", "Seattle")]
    assert [(call.name, call.arguments) for call in parse_reply(blocks_32[3]).tool_calls] == weather
    [user] = parse_reply(blocks_32[5]).tool_calls
    assert (user.name, user.arguments) == ("get_user_info", {"user_id": 7890, "special": "black"})
    assert parse_reply(blocks_32[7]).tool_calls[0].name == "code_interpreter"
    asked = PromptFormat(tool_style="python_list").render([Message.user("What is the weather in SF?")], tools=[WEATHER])
    assert blocks_32[8].startswith(asked)
