"""One run of a turn: its clock, and how it tells events. Shared by what asks the model and what runs the tools."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from herd.agents.config import AgentConfig
from herd.agents.events import AgentEvent, ShieldJudged
from herd.agents.ids import new_id
from herd.agents.runtime import Runtime
from herd.agents.steps import ShieldStep
from herd.agents.turn import Turn
from herd.safety.shields import Report


class Run:
    """A turn with what it runs with."""

    def __init__(self, runtime: Runtime, config: AgentConfig, turn: Turn) -> None:
        self.runtime, self.config, self.turn = runtime, config, turn
        self.events: asyncio.Queue[AgentEvent | None] = asyncio.Queue()
        self._began, self._before, self._waited = time.monotonic(), turn.active_s, 0.0

    def tell(self, kind: Any, **fields: Any) -> None:
        """An event, with the turn's name and the next sequence."""
        event = kind(turn_id=self.turn.id, sequence=self.turn.num_events, **fields)
        self.turn.num_events += 1
        self.events.put_nowait(event)

    @property
    def elapsed_s(self) -> float:
        """Seconds that the turn has run, in all its runs, without those it waited."""
        return self._before + time.monotonic() - self._began - self._waited

    @property
    def left_s(self) -> float:
        """Seconds until its limit."""
        return max(self.config.limits.max_seconds - self.elapsed_s, 0.0)

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Time in here is a person's, and does not count."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - began

    def next_number(self) -> int:
        """Of the next step."""
        return max((step.number for step in self.turn.steps), default=-1) + 1

    async def save_turn(self) -> None:
        """Write where the turn stands."""
        self.turn.active_s = self.elapsed_s
        await self.runtime.journal.save_turn(self.turn)

    async def judged(self, report: Report, started: float) -> ShieldStep:
        """Keep and tell what the shields said; without the text, which may be a secret."""
        said = {name: value for name, value in report.to_dict().items() if name != "text"}
        violation = report.violation
        said["user_message"] = violation.user_message if violation is not None else ""
        step = ShieldStep(
            id=new_id("step"),
            number=self.next_number(),
            point=report.point.value,
            report=said,
            blocked=report.blocked,
            started_at=started,
            ended_at=time.time(),
        )
        self.turn.steps.append(step)
        await self.runtime.journal.save_step(self.turn, step)
        self.tell(ShieldJudged, step_id=step.id, report=report)
        return step
