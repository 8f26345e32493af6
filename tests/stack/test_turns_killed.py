"""kill -9 of `herd serve` amid agents' turns and responses with tools: what was told is there, else it is absent or goes on."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import FULL, CommandServer, wait_for  # pyright: ignore[reportMissingImports]

from herd.stack.responses.desk import INTERRUPTED
from herd.store.check import check
from herd.store.state import State
from herd.store.vectors import Vectors
from herd.tools.files.index import build_index
from postgres_server import fresh_database  # pyright: ignore[reportMissingImports]
from scripted_provider import ScriptedProvider, answer_to  # pyright: ignore[reportMissingImports]

LIVES = 8 if FULL else 2
TOML = """
[[providers]]
name = "scripts"
base_url = "{url}"
models = ["script"]
"""
TOOLS = [{"type": "web_search"}]
GONE = (httpx.TransportError,)


@dataclass
class Told:
    """What clients were told, and so may rely on."""

    steps: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    turns: dict[str, dict[str, Any]] = field(default_factory=dict)
    questions: dict[str, str] = field(default_factory=dict)
    responses: dict[str, dict[str, Any]] = field(default_factory=dict)
    background: dict[str, str] = field(default_factory=dict)
    num_events: int = 0
    errors: list[str] = field(default_factory=list)


def events_of(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])


def play_turns(client: httpx.Client, place: str, told: Told, life: int) -> None:
    """One turn after the other, until the server is gone."""
    with suppress(*GONE):
        for number in range(10_000):
            question = f"turn {life}-{number}"
            body = {"messages": [{"role": "user", "content": question}], "stream": True}
            with client.stream("POST", f"{place}/turn", json=body) as answer:
                if answer.status_code != 200:
                    told.errors.append(answer.read().decode())
                    return
                turn_id = ""
                for event in events_of(answer):
                    told.num_events += 1
                    if "error" in event:
                        told.errors.append(json.dumps(event))
                        return
                    payload = event["event"]["payload"]
                    turn_id = payload.get("turn_id") or turn_id
                    told.questions[turn_id] = question
                    if payload["event_type"] == "step_complete":
                        told.steps.setdefault(turn_id, {})[payload["step_id"]] = payload["step_details"]
                    elif payload["event_type"] == "turn_complete":
                        told.turns[turn_id] = payload["turn"]


def play_responses(client: httpx.Client, conversation: str, told: Told, life: int) -> None:
    """Responses that are waited for, in a conversation, and responses in the background, until the server is gone."""
    with suppress(*GONE):
        for number in range(10_000):
            question = f"response {life}-{number}"
            body = {"model": "script", "input": question, "tools": TOOLS}
            if number % 2:
                made = client.post("/v1/responses", json={**body, "background": True})
                if made.status_code != 200:
                    told.errors.append(made.text)
                    return
                told.background[made.json()["id"]] = question
                continue
            with client.stream("POST", "/v1/responses", json={**body, "conversation": conversation, "stream": True}) as answer:
                for event in events_of(answer):
                    told.num_events += 1
                    if event["type"] == "response.completed":
                        told.responses[event["response"]["id"]] = event["response"]
                    elif event["type"] in ("error", "response.failed", "response.incomplete"):
                        told.errors.append(json.dumps(event))
                        return


def serve(folder: Path, provider: ScriptedProvider, database: str | None) -> CommandServer:
    (folder / "home").mkdir(exist_ok=True)
    (folder / "home" / "herd.toml").write_text(TOML.format(url=provider.url))
    variables = {"HERD_HOME": str(folder / "home"), "HERD_SEARCH_INDEX": str(folder / "index.db")}
    more = () if database is None else ("--database", database)
    return CommandServer("--state-dir", str(folder / "state"), "--no-shields", *more, **variables).wait_ready()


def enough(told: Told, num_events: int) -> bool:
    """Whether so much was told, or something is wrong."""
    return told.num_events >= num_events or bool(told.errors)


def kill(server: CommandServer) -> None:
    """At once, without a word; its engine goes with it."""
    engine = server.engine_pid
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not is_alive(engine), what="the end of the engine")


def is_alive(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody fetched does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.skipif(not FULL, reason="takes long: HERD_TEST_FULL=1 runs it"))]
)
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to see the engine's end")
def test_turns_and_responses_outlive_kill(tmp_path: Path, kind: str) -> None:
    database = None if kind == "sqlite" else fresh_database()
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "rivers.txt").write_text("A river is water that flows to the sea.")
    build_index(tmp_path / "pages", tmp_path / "index.db")
    rng = random.Random(5)
    told, provider = Told(), ScriptedProvider()
    place = conversation = ""
    try:
        server = serve(tmp_path, provider, database)
        for life in range(LIVES):
            with server.client() as client:
                if not place:
                    config = {"model": "script", "instructions": "Search.", "toolgroups": ["builtin::websearch"]}
                    agent = client.post("/v1/agents", json={"agent_config": config}).json()["agent_id"]
                    session = client.post(f"/v1/agents/{agent}/session", json={"session_name": "s"}).json()["session_id"]
                    place = f"/v1/agents/{agent}/session/{session}"
                    conversation = client.post("/v1/conversations", json={}).json()["id"]
                players = [threading.Thread(target=play_turns, args=(client, place, told, life))]
                players += [threading.Thread(target=play_responses, args=(client, conversation, told, life))]
                wanted = told.num_events + rng.randint(30, 120)
                for player in players:
                    player.start()
                wait_for(partial(enough, told, wanted), within=180, what="enough events")
                time.sleep(rng.random() * 0.02)
                kill(server)
                for player in players:
                    player.join(60)
            assert told.errors == []
            hold_rows(tmp_path / "state", database)
            server = serve(tmp_path, provider, database)
            with server.client() as client:
                hold_turns(client, place, told)
                hold_responses(client, conversation, told)
        assert told.turns and told.responses and told.background
    finally:
        server.process.kill()
        server.process.wait()
        provider.close()


def hold_rows(folder: Path, database: str | None) -> None:
    """The database as the crash left it: whole, nothing names what is not there."""
    state = State(folder, database_url=database)
    try:
        found = check(state.database, state.blobs, Vectors(state.indexes_dir))
        assert found.problems == [] and found.counts["sessions"] == 1
    finally:
        state.close()


def hold_turns(client: httpx.Client, place: str, told: Told) -> None:
    """Every step and turn that was told is kept as it was told; the one that was cut off goes on, and the session with it."""
    kept = {turn["turn_id"]: turn for turn in client.get(place).json()["turns"]}
    for turn_id, turn in told.turns.items():
        assert kept[turn_id] == turn
    for turn_id, steps in told.steps.items():
        there = {step["step_id"]: step for step in kept[turn_id]["steps"]}
        assert {step_id: there.get(step_id) for step_id in steps} == steps
    cut = [turn for turn in kept.values() if turn["herd"]["status"] not in ("completed", "incomplete")]
    assert len(cut) <= 1 and all(turn["herd"]["status"] == "running" for turn in cut)
    for turn in cut:
        done = client.post(f"{place}/turn/{turn['turn_id']}/resume", json={"tool_responses": []})
        assert done.status_code == 200, done.text
        question = told.questions.get(turn["turn_id"]) or turn["input_messages"][0]["content"]
        assert done.json()["output_message"]["content"].strip() == answer_to(question)
        before = [step["step_id"] for step in turn["steps"]]
        assert [step["step_id"] for step in done.json()["steps"]][: len(before)] == before
    for turn in client.get(place).json()["turns"]:
        assert turn["herd"]["status"] == "completed"
        assert turn["output_message"]["content"].strip() == answer_to(turn["input_messages"][0]["content"])


def hold_responses(client: httpx.Client, conversation: str, told: Told) -> None:
    """Responses that were told are kept; those in the background end, with an answer or the reason; conversations hold whole exchanges."""
    for response_id, response in told.responses.items():
        assert client.get(f"/v1/responses/{response_id}").json() == response
    for response_id, question in told.background.items():
        ended = wait_for(lambda name=response_id: ended_response(client, name), within=180, what="the end of a response")
        texts = [part["text"] for item in ended["output"] if item["type"] == "message" for part in item["content"]]
        if ended["status"] == "completed":
            assert "".join(texts).strip() == answer_to(question)
        else:
            assert (ended["status"], ended["error"]["message"]) == ("failed", INTERRUPTED)
        assert all(item["status"] in ("completed", "incomplete") for item in ended["output"])
    listed = client.get(f"/v1/conversations/{conversation}/items", params={"order": "asc", "limit": 100}).json()
    messages = [item for item in listed["data"] if item["type"] == "message"]
    if listed["has_more"] and len(messages) % 2:
        messages.pop()
    assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
    for asked, said in zip(messages[::2], messages[1::2], strict=True):
        assert said["content"][0]["text"].strip() == answer_to(asked["content"][0]["text"])


def ended_response(client: httpx.Client, response_id: str) -> dict[str, Any] | None:
    found = client.get(f"/v1/responses/{response_id}")
    assert found.status_code == 200, found.text
    return None if found.json()["status"] in ("queued", "in_progress") else found.json()
