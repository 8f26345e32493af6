"""Agent turns at once over a SQLite file, each with a tool call: seconds of a turn (p50, p95), turns a second, and what it costs a turn.

    python benchmarks/agent_turns.py --turns 200

The model is a script that answers at once, so that what is measured is the loop, its shields and its store.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from herd.agents.assembly import runtime_of
from herd.agents.config import AgentConfig, ApprovalPolicy
from herd.agents.loop import run_turn
from herd.agents.sql_store import open_session_store
from herd.safety.defaults import default_shields
from herd.text.messages import Message
from scripted_agent import Noted, Say, Scripted, call  # pyright: ignore[reportMissingImports]


def script(request: object) -> Say:
    """One call, one answer."""
    results = [message.text for message in request.messages if message.role == "tool"]  # type: ignore[attr-defined]
    return Say(f"the answer is {results[-1]}") if results else Say("", (call("look", n=1),))


async def measure(place: Path, turns: int, shielded: bool) -> dict[str, object]:
    """Run all at once."""
    store = open_session_store(place)
    config = AgentConfig(approval=ApprovalPolicy(outside="auto"), shields=())
    shields = default_shields(deadline_s=300.0) if shielded else None
    model, tool, took = Scripted(script), Noted(), []

    async def one(number: int) -> str:
        began = time.perf_counter()
        session = await store.create_session("me", name=str(number))
        runtime = await runtime_of(config, store, "me", session.id, model, tools=[tool], shields=shields)
        turn = await store.begin_turn("me", session.id, [Message.user(f"look at number {number}, please")])
        async for _ in run_turn(runtime, config, turn):
            pass
        took.append(time.perf_counter() - began)
        return turn.status

    began, cpu = time.perf_counter(), time.process_time()
    statuses = await asyncio.gather(*(one(number) for number in range(turns)))
    whole, cpu = time.perf_counter() - began, time.process_time() - cpu
    store.close()
    cuts = statistics.quantiles(took, n=20)
    return {
        "turns": turns,
        "shields": shielded,
        "completed": statuses.count("completed"),
        "p50_s": round(statistics.median(took), 3),
        "p95_s": round(cuts[18], 3),
        "cpu_ms_per_turn": round(cpu / turns * 1e3, 1),
        "turns_per_s": round(turns / whole, 1),
    }


def main() -> None:
    """Print figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=200)
    arguments = parser.parse_args()
    found = []
    for shielded in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            found.append(asyncio.run(measure(Path(folder) / "agents.db", arguments.turns, shielded)))
    print(json.dumps({"machine": platform.processor() or platform.machine(), "python": platform.python_version(), "runs": found}, indent=2))


if __name__ == "__main__":
    main()
