"""How tools are described to the model: every word and every oddity as published."""

from __future__ import annotations

import json

import pytest

from herd.base.errors import FormatError
from herd.text.messages import ToolDefinition
from herd.text.tool_prompts import function_tag_definitions, huggingface_definitions, json_definitions, python_list_definitions

WEATHER = ToolDefinition(
    name="get_weather",
    description="Tell the weather of a town",
    parameters={
        "type": "object",
        "properties": {
            "town": {"type": "string", "description": "Name of the town, e.g. Köln"},
            "days": {"type": "integer", "default": 3},
        },
        "required": ["town"],
    },
)
DICE = ToolDefinition(name="roll-dice")


def test_json_definitions_list_parameters_as_objects_of_one_key_and_of_type_object() -> None:
    assert json_definitions([WEATHER]) == (
        "Answer the user's question by making use of the following functions if needed.\n"
        "If none of the function can be used, please say so.\n"
        "Here is a list of functions in JSON format:\n"
        "{\n"
        '    "type": "function",\n'
        '    "function": {\n'
        '        "name": "get_weather",\n'
        '        "description": "Tell the weather of a town",\n'
        '        "parameters": {\n'
        '            "type": "object",\n'
        '            "properties": [\n'
        "                {\n"
        '                    "town": {\n'
        '                        "type": "object",\n'
        '                        "description": "Name of the town, e.g. Köln"\n'
        "                    }\n"
        "                },\n"
        "                {\n"
        '                    "days": {\n'
        '                        "type": "object",\n'
        '                        "description": ""\n'
        "                    }\n"
        "                }\n"
        "            ],\n"
        '            "required": ["town"]\n'
        "        }\n"
        "    }\n"
        "}\n"
        "\n"
        "Return function calls in JSON format."
    )


def test_json_definitions_of_several_tools_stand_one_below_the_other() -> None:
    text = json_definitions([WEATHER, DICE])
    assert text.count('"type": "function"') == 2
    assert '}\n{\n    "type": "function"' in text
    assert '"properties": [],\n            "required": []\n' in text


def test_function_tag_definitions_sort_the_parameters_and_say_which_are_required() -> None:
    text = function_tag_definitions([WEATHER])
    [line] = [line for line in text.splitlines() if line.startswith("{")]
    assert json.loads(line) == {
        "name": "get_weather",
        "description": "Tell the weather of a town",
        "parameters": {
            "days": {"description": "", "param_type": "integer", "required": False},
            "town": {"description": "Name of the town, e.g. Köln", "param_type": "string", "required": True},
        },
    }
    assert line.index('"days"') < line.index('"town"')
    opening = "You have access to the following functions:\n\nUse the function 'get_weather' to 'Tell the weather of a town':\n"
    assert text.startswith(opening + line + "\n\nThink very carefully")
    assert text.endswith("- Put the entire function call reply on one line")
    assert "If you choose to call a function" in text
    assert '<function=example_function_name>{"example_name": "example_value"}</function>' in text


def test_july_2024_has_a_slip_of_the_pen_and_a_last_line_end() -> None:
    august, july = function_tag_definitions([WEATHER]), function_tag_definitions([WEATHER], july_2024=True)
    assert july == august.replace("If you choose", "If a you choose") + "\n"


def test_python_list_definitions_call_an_object_a_dict_and_keep_the_schemas() -> None:
    text = python_list_definitions([WEATHER, DICE])
    listed = json.loads(text[text.index("\n\n[\n") :])
    assert listed == [
        {
            "name": "get_weather",
            "description": "Tell the weather of a town",
            "parameters": {"type": "dict", "required": ["town"], "properties": dict(WEATHER.properties)},
        },
        {"name": "roll-dice", "description": "", "parameters": {"type": "dict", "required": [], "properties": {}}},
    ]
    assert "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]\n" in text


def test_huggingface_definitions_are_the_definitions_as_given() -> None:
    text = huggingface_definitions([WEATHER, DICE])
    assert text.startswith("Given the following functions, please respond with a JSON for a function call with its proper arguments")
    assert "its value}.Do not use variables.\n\n{" in text
    first, second = (json.loads(part) for part in text[text.index("\n\n{") :].strip().split("\n\n"))
    assert (first, second) == (WEATHER.to_dict(), DICE.to_dict())
    assert text.endswith("}\n\n")


@pytest.mark.parametrize("describe", [json_definitions, function_tag_definitions, python_list_definitions, huggingface_definitions])
def test_a_schema_that_json_cannot_say_is_refused(describe: object) -> None:
    assert callable(describe)
    tool = ToolDefinition(name="f", parameters={"type": "object", "properties": {"a": {"type": {1, 2}, "description": b"x"}}})
    with pytest.raises(FormatError, match="not JSON") as caught:
        describe([tool])
    assert caught.value.hint
