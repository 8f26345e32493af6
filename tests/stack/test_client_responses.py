"""OpenAI's client, its Agents SDK and LangChain over the Responses API: against cria, and with an engine that says what it is told."""

from __future__ import annotations

import asyncio
import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from client_server import LiveServer  # pyright: ignore[reportMissingImports]
from foreign_python import python_with, run_foreign  # pyright: ignore[reportMissingImports]
from openai import OpenAI
from pydantic import BaseModel, Field
from scripted_app import Script, scripted  # pyright: ignore[reportMissingImports]

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ASKED: Any = {"model": "cria", "input": "What is a river?", "temperature": 0, "max_output_tokens": 24}
AGENT = '''
import asyncio, json, sys
from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

set_tracing_disabled(True)
asked = []

@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    asked.append(city)
    return "24 degrees"

async def main():
    model = OpenAIResponsesModel(model="cria", openai_client=AsyncOpenAI(base_url=sys.argv[1], api_key="none"))
    settings = ModelSettings(tool_choice="required", max_tokens=200, temperature=0, parallel_tool_calls=False)
    agent = Agent(name="weather", instructions="Be brief.", model=model, tools=[get_weather], model_settings=settings,
                  tool_use_behavior="stop_on_first_tool")
    whole = await Runner.run(agent, "What is the weather in Lima?", max_turns=4)
    streamed = Runner.run_streamed(agent, "What is the weather in Lima?", max_turns=4)
    kinds = [event.data.type async for event in streamed.stream_events() if event.type == "raw_response_event"]
    print(json.dumps({"output": whole.final_output, "again": streamed.final_output, "asked": asked, "kinds": kinds}))

asyncio.run(main())
'''
CHAIN = '''
import json, sys
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

def made(**fields):
    return ChatOpenAI(model="cria", base_url=sys.argv[1], api_key="none", use_responses_api=True, max_retries=0, temperature=0, **fields)

def text_of(message):
    return message.content if isinstance(message.content, str) else "".join(part.get("text", "") for part in message.content)

told = {}
llm = made(max_tokens=24)
told["invoke"] = text_of(llm.invoke("What is a river?"))
told["stream"] = "".join(text_of(chunk) for chunk in llm.stream("What is a river?"))
told["usage"] = llm.invoke("What is a river?").usage_metadata["output_tokens"]

@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return "24 degrees"

bound = made(max_tokens=400).bind_tools([get_weather], tool_choice="required", parallel_tool_calls=False)
called = bound.invoke("Weather in Lima?")
told["call"] = [{"name": call["name"], "args": call["args"]} for call in called.tool_calls]
result = ToolMessage("24 degrees", tool_call_id=called.tool_calls[0]["id"])
told["after"] = text_of(llm.bind_tools([get_weather], tool_choice="none").invoke([HumanMessage("Weather in Lima?"), called, result]))

class Animal(BaseModel):
    """An animal."""
    name: str = Field(max_length=40)
    legs: int

told["structured"] = made(max_tokens=400).with_structured_output(Animal, method="json_schema").invoke("Name an animal.").model_dump()
print(json.dumps(told))
'''


class Animal(BaseModel):
    """An animal."""

    name: str = Field(max_length=40)
    legs: int


def test_text_is_the_same_whole_streamed_stored_and_in_the_background(client: OpenAI) -> None:
    whole = client.responses.create(**ASKED)
    assert whole.output_text and whole.model == "cria" and whole.usage is not None and 1 < whole.usage.output_tokens <= 24
    with client.responses.stream(**ASKED) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(pieces) == whole.output_text
    assert client.responses.retrieve(whole.id).output_text == whole.output_text
    begun = client.responses.create(**ASKED, background=True)
    events = list(client.responses.retrieve(begun.id, stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert client.responses.retrieve(begun.id).output_text == whole.output_text
    chat: Any = [{"role": "user", "content": "What is a river?"}]
    said = client.chat.completions.create(model="cria", messages=chat, temperature=0, max_completion_tokens=24)
    assert said.choices[0].message.content == whole.output_text


def test_what_was_said_before_is_read_however_it_is_given(client: OpenAI) -> None:
    first = client.responses.create(**ASKED)
    by_id = client.responses.create(**{**ASKED, "input": "And a lake?"}, previous_response_id=first.id)
    items: Any = [{"role": "user", "content": "What is a river?"}, *[item.model_dump() for item in first.output],
                  {"role": "user", "content": "And a lake?"}]  # fmt: skip
    assert client.responses.create(**{**ASKED, "input": items}).output_text == by_id.output_text
    conversation = client.conversations.create()
    client.responses.create(**ASKED, conversation=conversation.id)
    assert client.responses.create(**{**ASKED, "input": "And a lake?"}, conversation=conversation.id).output_text == by_id.output_text


def test_functions_structure_and_probabilities(client: OpenAI) -> None:
    asked: Any = {**ASKED, "input": "Weather in Lima?", "max_output_tokens": 200, "tools": [WEATHER], "parallel_tool_calls": False}
    for choice in ("required", {"type": "function", "name": "get_weather"},
                   {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]}):  # fmt: skip
        found = client.responses.create(**asked, tool_choice=choice)
        (call,) = found.output
        assert call.type == "function_call" and set(json.loads(call.arguments)) == {"city"}
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "24 degrees"}
    after = client.responses.create(**{**asked, "input": [output]}, previous_response_id=found.id, tool_choice="none")
    assert after.output[0].type == "message" and "24 degrees" not in json.dumps(found.model_dump(), default=str)
    parsed = client.responses.parse(model="cria", input="Name an animal.", text_format=Animal, max_output_tokens=400, temperature=0)
    assert isinstance(parsed.output_parsed, Animal)
    told = client.responses.create(**ASKED, top_logprobs=2, include=["message.output_text.logprobs"])
    part: Any = told.output[0].content[0]  # type: ignore[union-attr]
    assert "".join(one.token for one in part.logprobs) == told.output_text and all(len(one.top_logprobs) == 2 for one in part.logprobs)
    assert told.usage is not None
    counted = client.responses.input_tokens.count(model="cria", input="What is a river?")
    assert counted.input_tokens == told.usage.input_tokens


def test_a_response_in_the_background_is_cancelled(client: OpenAI) -> None:
    schema: Any = {"type": "array", "items": {"type": "integer"}, "minItems": 400}
    text: Any = {"format": {"type": "json_schema", "name": "many", "schema": schema}}
    begun = client.responses.create(model="cria", input="Count.", text=text, background=True)
    while client.responses.retrieve(begun.id).status == "queued":
        time.sleep(0.01)
    assert client.responses.cancel(begun.id).status in ("cancelled", "completed", "incomplete")


def test_the_agents_sdk_runs_a_tool_calling_agent_to_its_answer(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agents = pytest.importorskip("agents")
    agents.set_tracing_disabled(True)
    asked: list[str] = []

    def get_weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return "24 degrees"

    async def check() -> None:
        call = '{"name": "get_weather", "parameters": {"city": "Lima"}}'
        async with scripted(Script(call, "It is 24 degrees in Lima.", call, "Still 24 degrees."), tmp_path) as app:
            model = agents.OpenAIResponsesModel(model="tiny", openai_client=app.openai())
            agent = agents.Agent(name="weather", instructions="Be brief.", model=model, tools=[agents.function_tool(get_weather)])
            found = await agents.Runner.run(agent, "What is the weather in Lima?")
            assert found.final_output == "It is 24 degrees in Lima." and asked == ["Lima"]
            assert "24 degrees" in app.engine.prompts[1] and "Be brief." in app.engine.prompts[1]
            streamed = agents.Runner.run_streamed(agent, "And now?", previous_response_id=found.last_response_id)
            raw = [event.data.type async for event in streamed.stream_events() if event.type == "raw_response_event"]
            assert streamed.final_output == "Still 24 degrees." and raw.count("response.completed") == 2
            assert "It is 24 degrees in Lima." in app.engine.prompts[2]

    asyncio.run(check())


@pytest.mark.slow
def test_the_agents_sdk_over_cria(live_server: LiveServer, tmp_path: Path) -> None:
    out = run_foreign([python_with("agents"), "-W", "ignore", "-c", AGENT, live_server.url + "/v1"], tmp_path, {})
    told = json.loads(out.splitlines()[-1])
    assert told["output"] == told["again"] == "24 degrees" and told["asked"][0] == told["asked"][1]
    assert told["kinds"][0] == "response.created" and "response.function_call_arguments.done" in told["kinds"]


@pytest.mark.slow
def test_langchain_over_responses(live_server: LiveServer, tmp_path: Path) -> None:
    out = run_foreign([python_with("langchain_openai"), "-c", CHAIN, live_server.url + "/v1"], tmp_path, {})
    told = json.loads(out.splitlines()[-1])
    assert told["invoke"] == told["stream"] != "" and 1 < told["usage"] <= 24
    assert told["call"][0]["name"] == "get_weather" and set(told["call"][0]["args"]) == {"city"}
    assert isinstance(told["after"], str)
    assert set(told["structured"]) == {"name", "legs"} and isinstance(told["structured"]["legs"], int)
