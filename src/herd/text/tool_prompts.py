"""How tools that the caller defines are described to the model, in each of the formats it was taught.

The wording is part of the format: models were tuned on these very sentences, so they stand as published (Llama 3.1 and 3.2 prompt format
documents; the July 2024 and the Hugging Face renderings differ from them in places, and their oddities are kept too).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from herd.text.messages import ToolDefinition
from herd.text.tool_calls import json_text

_REMINDER = (
    (
        '<function=example_function_name>{{"example_name": "example_value"}}</function>\n'
        "\n"
        "Reminder:\n"
        "- If looking for real time information use relevant functions before falling back to brave_search\n"
        "- Function calls MUST follow the specified format, start with <function= and end with </function>\n"
        "- Required parameters MUST be specified\n"
        "- Only call one function at a time\n"
        "- Put the entire function call reply on one line"
    )
    .replace("{{", "{")
    .replace("}}", "}")
)


def json_definitions(tools: Sequence[ToolDefinition]) -> str:
    """The JSON format of the 3.1 document: parameters as a list of one-key objects, every type `object`."""
    listed = "\n".join(_json_definition(tool) for tool in tools)
    return (
        "Answer the user's question by making use of the following functions if needed.\n"
        "If none of the function can be used, please say so.\n"
        f"Here is a list of functions in JSON format:\n{listed}\n\nReturn function calls in JSON format."
    )


def _json_definition(tool: ToolDefinition) -> str:
    properties = [{name: {"type": "object", "description": schema.get("description", "")}} for name, schema in tool.properties.items()]
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    text = json_text({"type": "function", "function": function}, indent=4)
    closing = "\n        }\n    }\n}"
    return text.removesuffix(closing) + f',\n            "required": {json_text(list(tool.required))}' + closing


def function_tag_definitions(tools: Sequence[ToolDefinition], *, july_2024: bool = False) -> str:
    """The <function=...> format. July 2024 has a slip of the pen in its third sentence and a line end after the last."""
    listed = "".join(f"Use the function '{tool.name}' to '{tool.description}':\n{_tag_definition(tool)}\n\n" for tool in tools)
    choose = "If a you choose" if july_2024 else "If you choose"
    return (
        f"You have access to the following functions:\n\n{listed}Think very carefully before calling functions.\n"
        f"{choose} to call a function ONLY reply in the following format with no prefix or suffix:\n\n{_REMINDER}"
        + ("\n" if july_2024 else "")
    )


def _tag_definition(tool: ToolDefinition) -> str:
    parameters = {
        name: {"description": schema.get("description", ""), "param_type": schema.get("type", "string"), "required": name in tool.required}
        for name, schema in sorted(tool.properties.items())
    }
    return json_text({"name": tool.name, "description": tool.description, "parameters": parameters})


def python_list_definitions(tools: Sequence[ToolDefinition]) -> str:
    """The Python-list format of Llama 3.2."""
    listed = [
        {
            "name": tool.name,
            "description": tool.description,
            "parameters": {"type": "dict", "required": list(tool.required), "properties": dict(tool.properties)},
        }
        for tool in tools
    ]
    return (
        "You are an expert in composing functions. You are given a question and a set of possible functions.\n"
        "Based on the question, you will need to make one or more function/tool calls to achieve the purpose.\n"
        "If none of the function can be used, point it out. If the given question lacks the parameters required by the function,\n"
        "also point it out. You should only return the function call in tools call sections.\n\n"
        "If you decide to invoke any of the function(s), you MUST put it in the format of "
        "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]\n"
        "You SHOULD NOT include any other text in the response.\n\n"
        f"Here is a list of functions in JSON format that you can invoke.\n\n{json_text(listed, indent=4)}"
    )


def huggingface_definitions(tools: Sequence[ToolDefinition]) -> str:
    """What the Hugging Face template puts before the first user message."""
    listed = "".join(json_text(tool.to_dict(), indent=4) + "\n\n" for tool in tools)
    return (
        "Given the following functions, please respond with a JSON for a function call "
        "with its proper arguments that best answers the given prompt."
        '\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
        f"Do not use variables.\n\n{listed}"
    )
