"""The Hugging Face variant: the golden conversations, whose digests are those of the chat template in Hugging Face repositories."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from herd.base.errors import FormatError
from herd.text.messages import Message, ToolCall
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer

GOLDEN: list[dict[str, Any]] = json.loads(
    (Path(__file__).resolve().parents[1] / "golden" / "huggingface_conversations.json").read_text(encoding="utf-8")
)
HUB = PromptFormat(variant="huggingface")
TOOL = {"name": "f", "description": "Do it", "parameters": {"type": "object", "properties": {}}}


def rendered(case: dict[str, Any]) -> str:
    style = PromptFormat(variant="huggingface", today=case.get("today"))
    return style.render(
        case["messages"],
        tools=case.get("tools", ()),
        builtin_tools=case.get("builtin_tools", ()),
        generation_prompt=case["generation_prompt"],
    )


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_the_golden_conversation_is_rendered_to_the_character(case: dict[str, Any]) -> None:
    text = rendered(case)
    assert len(text) == case["characters"]
    assert hashlib.sha256(text.encode()).hexdigest() == case["sha256"]


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_its_ids_are_those_of_the_rendered_text_unless_content_spells_special_tokens(small: Tokenizer, case: dict[str, Any]) -> None:
    ids = PromptFormat(variant="huggingface", today=case.get("today")).encode(
        small,
        case["messages"],
        tools=case.get("tools", ()),
        builtin_tools=case.get("builtin_tools", ()),
        generation_prompt=case["generation_prompt"],
    )
    assert small.decode(ids) == rendered(case)
    same = ids == small.encode(rendered(case), allowed_special="all")
    assert same == (case["name"] != "text that spells special tokens")


def test_the_golden_conversations_cover_what_the_variant_does() -> None:
    assert len(GOLDEN) == 41
    assert len({case["name"] for case in GOLDEN}) == 41
    assert {bool(case.get("tools")) for case in GOLDEN} == {bool(case.get("builtin_tools")) for case in GOLDEN} == {True, False}
    assert {message["role"] for case in GOLDEN for message in case["messages"]} == {"system", "user", "assistant", "tool"}


def test_there_is_always_a_system_message_with_the_templates_own_date() -> None:
    text = HUB.render([Message.user("Hi")])
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_dates_can_be_left_out() -> None:
    text = PromptFormat(variant="huggingface", dates=False).render(
        [Message.system("Be kind."), Message.user("Hi")], generation_prompt=False
    )
    assert "Date:" not in text and "<|end_header_id|>\n\nBe kind.<|eot_id|>" in text


def test_content_is_stripped_tool_results_are_json_text() -> None:
    text = HUB.render([Message.user("  Hi \n"), Message.assistant(tool_calls=[ToolCall(name="f")]), Message.tool(' {"a": 1} ')])
    assert "\n\nHi<|eot_id|>" in text
    assert '<|start_header_id|>ipython<|end_header_id|>\n\n" {\\"a\\": 1} "<|eot_id|>' in text


def test_it_carries_one_call_a_message() -> None:
    calls = [ToolCall(name="f"), ToolCall(name="g")]
    with pytest.raises(FormatError, match="2 calls in one message") as caught:
        HUB.render([Message.user("?"), Message.assistant(tool_calls=calls)])
    assert caught.value.hint == "the Hugging Face template carries one call a message"


@pytest.mark.parametrize("messages", [[], [Message.assistant("Hi")], [Message.system("Be kind.")]], ids=["none", "answer", "system"])
def test_tools_need_a_first_message_of_the_user(messages: list[Message]) -> None:
    with pytest.raises(FormatError, match="the first message is not the user's") as caught:
        HUB.render(messages, tools=[TOOL])
    assert caught.value.hint == "this variant describes tools in the first user message"
