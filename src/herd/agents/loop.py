"""The turn loop: input shields, model, tools, model, ..., answer. Written as what comes next for a turn as it stands.

    async with aclosing(run_turn(runtime, config, Turn(inputs=(Message.user("..."),)))) as events:
        async for event in events: ...

A turn that paused goes on by `turn.answer(...)` and `run_turn` again; one that a crash cut off by `run_turn` alone.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from herd.agents.config import AgentConfig
from herd.agents.events import AgentEvent
from herd.agents.runtime import Runtime
from herd.agents.turn import Turn


async def run_turn(runtime: Runtime, config: AgentConfig, turn: Turn) -> AsyncGenerator[AgentEvent, None]:
    """Run a turn from where it stands; `turn` is moved on in place. Closing the generator, or `cancel_turn`, cancels the turn."""
    raise NotImplementedError
    yield


def cancel_turn(turn: Turn) -> bool:
    """End a turn that runs in this process, within its current step. False if it does not run here."""
    raise NotImplementedError
