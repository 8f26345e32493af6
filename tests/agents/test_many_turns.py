"""200 agents at once over one database, a tool each: no turn is lost, none is mixed with another, and nothing is locked."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from herd.agents.assembly import runtime_of
from herd.agents.config import AgentConfig, ApprovalPolicy
from herd.agents.loop import run_turn
from herd.agents.sql_store import open_session_store
from herd.text.messages import Message
from postgres_server import fresh_database  # pyright: ignore[reportMissingImports]
from scripted_agent import Noted, Say, Scripted, call  # pyright: ignore[reportMissingImports]

CONFIG = AgentConfig(approval=ApprovalPolicy(outside="auto"), shields=())


def script(request: Any) -> Say:
    """Calls the tool with the user's number, then says what it gave."""
    results = [message.text for message in request.messages if message.role == "tool"]
    asked = next(message.text for message in reversed(request.messages) if message.role == "user")
    return Say(f"answer {results[-1]}") if results else Say("", (call("double", n=int(asked)),))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_two_hundred_turns_at_once_are_neither_lost_nor_mixed(tmp_path: Path, kind: str) -> None:
    store = open_session_store(tmp_path / "agents.db" if kind == "sqlite" else fresh_database())
    tool, model = Noted("double", gives=lambda arguments: str(arguments["n"] * 2)), Scripted(script)

    async def one(number: int) -> tuple[str, str]:
        owner = f"owner{number % 7}"
        session = await store.create_session(owner, name=str(number))
        runtime = await runtime_of(CONFIG, store, owner, session.id, model, tools=[tool])
        turn = await store.begin_turn(owner, session.id, [Message.user(str(number))])
        async for _ in run_turn(runtime, CONFIG, turn):
            pass
        assert turn.error is None, turn.error
        return owner, session.id

    async def main() -> None:
        names = await asyncio.gather(*(one(number) for number in range(200)))
        for number, (owner, session_id) in enumerate(names):
            (turn,) = await store.turns(owner, session_id)
            assert (turn.status, turn.text) == ("completed", f"answer {number * 2}")
            assert [step.kind for step in turn.steps] == ["inference", "tool_execution", "inference"]
        assert await store.open_turns() == [] and len(tool.calls) == 200

    asyncio.run(asyncio.wait_for(main(), 300))
    store.close()
