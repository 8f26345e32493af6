"""Drills of tool calls: the same for a seed, right by the tools on offer, and without what is held back."""

from __future__ import annotations

import json

from herd.recipes.dialogue import read_dialogue
from herd.recipes.tool_drills import held_back_calls, tool_drills
from herd.text.bpe_train import train_bpe
from herd.text.prompt import PromptFormat
from tiny_model import TEXT  # pyright: ignore[reportMissingImports]


def test_drills_are_a_function_of_the_seed() -> None:
    assert list(tool_drills(1, 40)) == list(tool_drills(1, 40)) != list(tool_drills(2, 40))


def test_every_call_is_of_a_tool_on_offer_with_the_arguments_it_wants() -> None:
    num_calls = 0
    for record in tool_drills(3, 300):
        dialogue = read_dialogue(record)
        offered = {tool.name: tool.parameters for tool in dialogue.tools}
        assert 1 <= len(offered) == len(dialogue.tools) <= 3
        for message in dialogue.messages:
            for call in message.tool_calls:
                num_calls += 1
                assert set(call.arguments) == set(offered[call.name]["properties"])
                assert all(str(value) in dialogue.messages[0].text for value in call.arguments.values()), "the request holds the arguments"
        assert dialogue.messages[-1].role == "assistant" and dialogue.messages[-1].text
    assert 230 < num_calls < 300


def test_answers_and_calls_are_learned_and_each_ends() -> None:
    tokenizer = train_bpe([TEXT] * 4, 320)
    for record in tool_drills(4, 20):
        dialogue = read_dialogue(record)
        ids, counts = PromptFormat().encode_with_mask(tokenizer, dialogue.messages, tools=dialogue.tools)
        learned = tokenizer.decode([token_id for token_id, counted in zip(ids, counts, strict=True) if counted])
        called = any(message.tool_calls for message in dialogue.messages)
        assert learned.endswith("<|eot_id|>") and ("<|eom_id|>" in learned) == called


def test_what_is_held_back_never_stands_in_training() -> None:
    held_back = held_back_calls(60)
    assert len({call.question for call in held_back}) > 40
    drilled = list(tool_drills(5, 3000))
    asked = {record["messages"][0]["content"] for record in drilled}
    assert not asked & {call.question for call in held_back}
    calls = [call for record in drilled for message in read_dialogue(record).messages for call in message.tool_calls]
    values = {name: {str(call.arguments[name]) for call in calls if name in call.arguments} for name in ("city", "song", "minutes", "task")}
    assert not any(values[name] & {str(call.arguments.get(name)) for call in held_back} for name in values)
    assert len(values["city"]) > 100, "most are any words at all"
    for call in held_back:
        names = [tool["function"]["name"] for tool in call.tools]
        assert call.name in names and len(names) <= 2
        json.dumps(call.arguments)
        assert all(str(value) in call.question for value in call.arguments.values())
