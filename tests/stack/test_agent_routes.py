"""The agents API of Llama Stack 0.2 over a scripted model: objects, the stream of events, client tools, approval, owners."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from herd.agents.sql_store import open_session_store
from herd.base.errors import HerdError, NotFoundError
from herd.engine.params import TokenParams
from herd.engine.stream import TokenRequest
from herd.inference.port import Caller
from herd.stack.agents import agent_routes
from herd.stack.app import _told  # pyright: ignore[reportPrivateUsage]
from herd.stack.config import ServerConfig
from herd.stack.guard import Context
from herd.stack.jobs import Job
from herd.stack.keys import ApiKey, digest_of
from herd.stack.served import ServedModel
from herd.stack.service import Service
from herd.tools.tool import Taint
from postgres_server import fresh_database  # pyright: ignore[reportMissingImports]
from scripted_agent import Noted, Say, Scripted, call  # pyright: ignore[reportMissingImports]


class StandIn(Service):
    """A server's service without an engine: what agents ask of one."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


class Tools:
    """The tools of a server, by the four methods that agents use."""

    def __init__(self, *tools: Any) -> None:
        self._tools = {tool.name: tool for tool in tools}

    async def groups(self, owner: str) -> list[dict[str, Any]]:
        return [{"identifier": "builtin::test"}]

    async def missing(self, owner: str) -> dict[str, str]:
        return {}

    async def tools(self, owner: str, group: str) -> list[Any]:
        return [SimpleNamespace(tool=tool, group=group) for tool in self._tools.values()]

    async def find(self, owner: str, name: str) -> Any:
        if name not in self._tools:
            raise NotFoundError(f"there is no tool {name!r}")
        return SimpleNamespace(tool=self._tools[name], group="builtin::test")


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """The database's file, or the URL of one on PostgreSQL."""
    return tmp_path / "server.db" if request.param == "sqlite" else fresh_database()


def served(script: Any, *tools: Any) -> Any:
    model = Scripted(script)

    async def answer(request: Any, context: Any, name: str, *, guarded: bool) -> Job:
        assert not guarded and name == "cria"
        stand_in = TokenRequest(prompt=(), params=TokenParams(max_tokens=1))
        return Job(request=stand_in, answer=await model.chat(request), model=name)

    return StandIn(
        model=model,
        answer=answer,
        tools=Tools(*tools),
        shielding=None,
        models=SimpleNamespace(find=lambda name: ServedModel(id=name, provider="herd", resource=name), serves=lambda name: True),
        caller=lambda context, priority, salt: Caller(),
        config=ServerConfig(model_name="cria"),
    )


def ask(where: Path | str, service: Any, work: Callable[[httpx.AsyncClient], Any]) -> Any:
    """Do something with a client of the routes; the header `x-key` says who asks."""

    async def main() -> Any:
        store = open_session_store(where)
        app = FastAPI()
        app.include_router(agent_routes(service, store))
        app.add_exception_handler(HerdError, _told)

        async def with_context(scope: Any, receive: Any, send: Any) -> None:
            name = dict(scope["headers"]).get(b"x-key", b"anna").decode()
            scope["herd"] = Context(request_id="req-1", key=ApiKey(name=name, digest=digest_of(name)))
            await app(scope, receive, send)

        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(with_context), base_url="http://test", timeout=60) as client:
                return await work(client)
        finally:
            store.close()

    return asyncio.run(main())


CONFIG: dict[str, Any] = {
    "model": "cria",
    "instructions": "Be brief.",
    "toolgroups": ["builtin::test"],
    "max_infer_iters": 5,
    "sampling_params": {"strategy": {"type": "top_p", "temperature": 0.5, "top_p": 0.8}, "max_tokens": 32},
    "client_tools": [
        {
            "name": "phone",
            "description": "Rings.",
            "parameters": [{"name": "who", "parameter_type": "str", "description": "whom", "required": True}],
        }
    ],
}


async def begun(client: httpx.AsyncClient, config: dict[str, Any] | None = None) -> tuple[str, str]:
    agent = (await client.post("/v1/agents", json={"agent_config": config or CONFIG})).json()["agent_id"]
    session = (await client.post(f"/v1/agents/{agent}/session", json={"session_name": "s"})).json()["session_id"]
    return agent, f"/v1/agents/{agent}/session/{session}"


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:])["event"]["payload"] for line in text.split("\n") if line.startswith("data: ")]


ASK = {"messages": [{"role": "user", "content": "go"}], "stream": True}


def test_a_turn_streams_the_events_of_the_stack(where: Path | str) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        agent, place = await begun(client)
        told = (await client.get(f"/v1/agents/{agent}")).json()["agent_config"]
        assert told["max_infer_iters"] == 5 and told["client_tools"][0]["parameters"][0]["name"] == "who"
        answer = await client.post(place + "/turn", json=ASK)
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = events_of(answer.text)
        kinds = [event["event_type"] for event in events if event["event_type"] != "step_progress"]
        steps = ["step_start", "step_complete"]
        assert kinds == ["turn_start", *steps, *steps, *steps, "turn_complete"]
        assert [event["step_type"] for event in events if event["event_type"] == "step_start"] == [
            "inference",
            "tool_execution",
            "inference",
        ]
        deltas = [event["delta"] for event in events if event["event_type"] == "step_progress"]
        assert "".join(delta["text"] for delta in deltas if delta["type"] == "text") == "all seen"
        assert [delta["tool_call"]["tool_name"] for delta in deltas if delta.get("parse_status") == "succeeded"] == ["look"]
        turn = events[-1]["turn"]
        assert turn["output_message"] == {"role": "assistant", "content": "all seen", "stop_reason": "end_of_turn", "tool_calls": []}
        assert turn["steps"][1]["tool_responses"][0]["content"] == "seen" and turn["herd"]["status"] == "completed"
        found = (await client.get(f"{place}/turn/{turn['turn_id']}")).json()
        assert found == turn
        step = (await client.get(f"{place}/turn/{turn['turn_id']}/step/{turn['steps'][1]['step_id']}")).json()["step"]
        assert step == turn["steps"][1]
        session = (await client.get(place)).json()
        assert session["session_name"] == "s" and [found["turn_id"] for found in session["turns"]] == [turn["turn_id"]]
        sampling = service.model.requests[0].params
        assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.5, 0.8, 32)

    service = served([Say("", (call("look"),)), Say("all seen")], Noted())
    ask(where, service, work)


def test_a_client_tool_waits_and_resume_goes_on(where: Path | str) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        _, place = await begun(client)
        turn = (await client.post(place + "/turn", json=ASK | {"stream": False})).json()
        (made,) = turn["output_message"]["tool_calls"]
        assert made["tool_name"] == "phone" and turn["completed_at"] is None
        busy = await client.post(place + "/turn", json=ASK)
        assert busy.status_code == 409 and busy.json()["error"]["code"] == "session_busy"
        wrong = {"tool_responses": [{"call_id": "none", "tool_name": "phone", "content": "x"}]}
        assert (await client.post(f"{place}/turn/{turn['turn_id']}/resume", json=wrong)).status_code == 409
        right = {"tool_responses": [{"call_id": made["call_id"], "tool_name": "phone", "content": "rings"}], "stream": True}
        events = events_of((await client.post(f"{place}/turn/{turn['turn_id']}/resume", json=right)).text)
        assert events[-1]["event_type"] == "turn_complete" and events[-1]["turn"]["output_message"]["content"] == "it rings"
        over = await client.post(f"{place}/turn/{turn['turn_id']}/resume", json=right)
        assert over.status_code == 409 and over.json()["error"]["code"] == "turn_state"

    ask(where, served([Say("", (call("phone", who="Anna"),)), Say("it rings")]), work)


def test_what_acts_outside_waits_for_a_yes_that_resume_brings(where: Path | str) -> None:
    send = Noted("send", taint=Taint(acts_outside=True), gives="sent")

    async def work(client: httpx.AsyncClient) -> None:
        _, place = await begun(client, CONFIG | {"toolgroups": ["send"]})
        events = events_of((await client.post(place + "/turn", json=ASK)).text)
        assert events[-1]["event_type"] == "turn_awaiting_input"
        turn = events[-1]["turn"]
        (waits,) = turn["herd"]["waiting"]
        assert waits["for"] == "approval" and not send.calls
        answer: dict[str, Any] = {"call_id": waits["call_id"], "tool_name": "send", "content": ""}
        place = f"{place}/turn/{turn['turn_id']}/resume"
        assert (await client.post(place, json={"tool_responses": [answer]})).status_code == 400 and not send.calls
        done = await client.post(place, json={"tool_responses": [answer | {"metadata": {"approval": "once"}}]})
        assert done.json()["output_message"]["content"] == "done" and len(send.calls) == 1

    ask(where, served([Say("", (call("send"),)), Say("done")], send), work)


def test_agents_and_sessions_of_another_key_are_not_there(where: Path | str) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        agent, place = await begun(client)
        other = {"x-key": "bert"}
        for method, path in (
            ("GET", f"/v1/agents/{agent}"),
            ("DELETE", f"/v1/agents/{agent}"),
            ("GET", f"/v1/agents/{agent}/sessions"),
            ("GET", place),
            ("DELETE", place),
        ):
            assert (await client.request(method, path, headers=other)).status_code == 404, path
        assert (await client.post(place + "/turn", json=ASK, headers=other)).status_code == 404
        assert (await client.get("/v1/agents", headers=other)).json()["data"] == []
        agents = (await client.get("/v1/agents")).json()
        assert [found["agent_id"] for found in agents["data"]] == [agent] and agents["has_more"] is False
        assert (await client.delete(place)).status_code == 204 and (await client.get(place)).status_code == 404
        assert (await client.delete(f"/v1/agents/{agent}")).status_code == 204

    ask(where, served([Say("hi")]), work)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"toolgroups": ["nothing"]}, 404, "there is no tool 'nothing'"),
        ({"input_shields": ["strange"]}, 400, "there is no shield 'strange'"),
    ],
)
def test_what_an_agent_cannot_have_is_refused_at_once(where: Path | str, change: dict[str, Any], status: int, words: str) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/agents", json={"agent_config": CONFIG | change})
        assert answer.status_code == status and words in answer.json()["error"]["message"]

    ask(where, served([Say("hi")]), work)


def test_an_error_of_the_model_ends_the_stream_in_openais_shape(where: Path | str) -> None:
    from herd.base.errors import ContextOverflowError

    async def work(client: httpx.AsyncClient) -> None:
        _, place = await begun(client)
        text = (await client.post(place + "/turn", json=ASK)).text
        assert json.loads(text.strip().splitlines()[-1][6:])["error"]["code"] == "context_length_exceeded"
        whole = await client.post(place + "/turn", json=ASK | {"stream": False})
        assert whole.status_code == 400 and whole.json()["error"]["code"] == "context_length_exceeded"

    ask(where, served([Say(error=ContextOverflowError("too long"))]), work)


def test_the_client_of_the_llama_stack_runs_turns_and_goes_on_after_its_own_tool(where: Path | str) -> None:
    stack = pytest.importorskip("llama_stack_client", reason="needs llama-stack-client 0.2.12")

    async def work(client: httpx.AsyncClient) -> None:
        llama = stack.AsyncLlamaStackClient(base_url="http://test", http_client=client)
        agent = await llama.agents.create(agent_config=CONFIG)
        session = await llama.agents.session.create(agent.agent_id, session_name="s")
        names = {"agent_id": agent.agent_id, "session_id": session.session_id}
        asked = [{"role": "user", "content": "go"}]
        stream = await llama.agents.turn.create(**names, messages=asked, stream=True)
        payloads = [chunk.event.payload async for chunk in stream]
        assert [payload.event_type for payload in payloads][-1] == "turn_awaiting_input"
        turn = payloads[-1].turn
        (made,) = turn.output_message.tool_calls
        assert (made.tool_name, made.arguments) == ("phone", {"who": "Anna"})
        given = [{"call_id": made.call_id, "tool_name": "phone", "content": "rings"}]
        stream = await llama.agents.turn.resume(turn.turn_id, **names, tool_responses=given, stream=True)
        payloads = [chunk.event.payload async for chunk in stream]
        texts = [payload.delta.text for payload in payloads if payload.event_type == "step_progress" and payload.delta.type == "text"]
        assert "".join(texts) == "it rings" and payloads[-1].event_type == "turn_complete"
        done = payloads[-1].turn
        assert done.output_message.content == "it rings" and [step.step_type for step in done.steps] == [
            "inference",
            "tool_execution",
            "inference",
        ]
        found = await llama.agents.steps.retrieve(done.steps[1].step_id, **names, turn_id=turn.turn_id)
        assert found.step.tool_responses[0].content == "rings"
        kept = await llama.agents.session.retrieve(session.session_id, agent_id=agent.agent_id)
        assert kept.session_name == "s" and kept.turns[0].turn_id == turn.turn_id
        assert (await llama.agents.turn.retrieve(turn.turn_id, **names)).output_message.content == "it rings"
        whole = await llama.agents.turn.create(**names, messages=asked, stream=False)
        assert whole.output_message.content == "it rings"
        await llama.agents.session.delete(session.session_id, agent_id=agent.agent_id)
        await llama.agents.delete(agent.agent_id)

    ask(where, served([Say("", (call("phone", who="Anna"),)), Say("it rings")]), work)


def test_a_schema_for_the_answer_is_kept_and_a_form_without_one_is_refused(where: Path | str) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}

    async def work(client: httpx.AsyncClient) -> None:
        agent, _ = await begun(client, CONFIG | {"response_format": {"type": "json_schema", "json_schema": schema}})
        told = (await client.get(f"/v1/agents/{agent}")).json()["agent_config"]["response_format"]
        assert told == {"type": "json_schema", "json_schema": schema}
        refused = await client.post("/v1/agents", json={"agent_config": CONFIG | {"response_format": {"type": "json_schema"}}})
        assert refused.status_code == 400 and "no schema" in refused.json()["error"]["message"]

    ask(where, served(lambda request: Say("done")), work)
