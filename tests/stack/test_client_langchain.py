"""LangChain's ChatOpenAI, unchanged, against the server: plain, streamed, with tools and with structured output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from client_server import LiveServer  # pyright: ignore[reportMissingImports]
from foreign_python import python_with, run_foreign  # pyright: ignore[reportMissingImports]

SCRIPT = '''
import asyncio, json, sys
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

url = sys.argv[1]
llm = ChatOpenAI(model="cria", base_url=url, api_key="none", temperature=0, max_tokens=24, seed=1, max_retries=0)
long = ChatOpenAI(model="cria", base_url=url, api_key="none", temperature=0.6, max_tokens=400, seed=1, max_retries=0)
told = {}

question = [SystemMessage("Be brief."), HumanMessage("What is a river?")]
told["invoke"] = llm.invoke(question).content
told["stream"] = "".join(chunk.content for chunk in llm.stream(question))
told["usage"] = llm.invoke(question).usage_metadata["output_tokens"]
told["batch"] = [message.content for message in llm.batch([question, question])]
told["async"] = asyncio.run(llm.ainvoke(question)).content

@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return "24 degrees"

bound = long.bind_tools([get_weather], tool_choice="required", parallel_tool_calls=False)
called = bound.invoke("Weather in Lima?")
told["call"] = [{"name": call["name"], "args": call["args"]} for call in called.tool_calls]
summed = None
for chunk in bound.stream("Weather in Lima?"):
    summed = chunk if summed is None else summed + chunk
told["streamed call"] = [{"name": call["name"], "args": call["args"]} for call in summed.tool_calls]
result = ToolMessage(get_weather.invoke(called.tool_calls[0]["args"]), tool_call_id=called.tool_calls[0]["id"])
told["after the call"] = llm.bind_tools([get_weather]).invoke([HumanMessage("Weather in Lima?"), called, result]).content

class Animal(BaseModel):
    """An animal."""
    name: str = Field(max_length=40)
    legs: int

for method in ("json_schema", "function_calling"):
    found = long.with_structured_output(Animal, method=method).invoke("Name an animal.")
    told[method] = found.model_dump()
embedder = OpenAIEmbeddings(model="cria", base_url=url, api_key="none", tiktoken_enabled=False, check_embedding_ctx_length=False)
told["vectors"] = [len(vector) for vector in embedder.embed_documents(["a", "b"])]
print(json.dumps(told))
'''


@pytest.mark.slow
def test_langchain_asks_streams_calls_and_structures(live_server: LiveServer, tmp_path: Path) -> None:
    out = run_foreign([python_with("langchain_openai"), "-c", SCRIPT, live_server.url + "/v1"], tmp_path, {})
    told = json.loads(out.splitlines()[-1])
    assert told["invoke"] == told["stream"] == told["async"] == told["batch"][0] == told["batch"][1] != ""
    assert 1 < told["usage"] <= 24
    assert told["call"] == told["streamed call"] and told["call"][0]["name"] == "get_weather" and set(told["call"][0]["args"]) == {"city"}
    assert isinstance(told["after the call"], str)
    for method in ("json_schema", "function_calling"):
        assert set(told[method]) == {"name", "legs"} and isinstance(told[method]["legs"], int)
    assert told["vectors"][0] == told["vectors"][1] > 8


AGENT = '''
import json, sys
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

calls = []

@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    calls.append(city)
    return "24 degrees and no wind"

class Steered(ChatOpenAI):
    """A small model does not choose well when to call: it has to call first, and to answer once a tool has spoken."""

    def _get_request_payload(self, messages, *, stop=None, **fields):
        payload = super()._get_request_payload(messages, stop=stop, **fields)
        payload["tool_choice"] = "none" if payload["messages"][-1]["role"] == "tool" else "required"
        return payload

llm = Steered(model=sys.argv[2], base_url=sys.argv[1], api_key="none", temperature=0.6, max_tokens=200, seed=1, max_retries=0)
agent = create_agent(llm, tools=[get_weather], system_prompt="Be brief.")
told = {"calls": calls}
question = {"messages": [{"role": "user", "content": "Is it warm in Lima?"}]}
result = agent.invoke(question)
told["roles"] = [message.type for message in result["messages"]]
told["tool said"] = [message.content for message in result["messages"] if message.type == "tool"]
told["last"] = result["messages"][-1].content
told["streamed"] = [sorted(step) for step in agent.stream(question, stream_mode="updates")]
print(json.dumps(told))
'''


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cria", "herd/cria"])
def test_langchains_agent_calls_its_tool_and_answers(live_server: LiveServer, tmp_path: Path, model: str) -> None:
    python_with("langchain")
    out = run_foreign([python_with("langchain_openai"), "-c", AGENT, live_server.url + "/v1", model], tmp_path, {})
    told = json.loads(out.splitlines()[-1])
    assert told["roles"][:2] == ["human", "ai"] and set(told["roles"][2:-1]) == {"tool"} and told["roles"][-1] == "ai"
    assert len(told["calls"]) >= 2 and set(told["tool said"]) == {"24 degrees and no wind"}
    assert isinstance(told["last"], str) and told["last"]
    assert [step for step in told["streamed"] if step != ["tools"]] == [["model"], ["model"]] and ["tools"] in told["streamed"]
