"""The turn loop: input shields, model, tools, model, ..., answer. Written as what comes next for a turn as it stands.

    async with aclosing(run_turn(runtime, config, Turn(inputs=(Message.user("..."),)))) as events:
        async for event in events: ...

A turn that paused goes on by `turn.answer(...)` and `run_turn` again; one that a crash cut off by `run_turn` alone. The work runs in a task
of its own, so that leaving the events, or `cancel_turn`, ends it wherever it is: in the middle of an answer, of a tool, of a wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

from herd.agents.cite import check
from herd.agents.config import AgentConfig
from herd.agents.errors import TurnStateError
from herd.agents.events import LAST, AgentEvent, RetrievalDone, TurnCancelled, TurnFailed, TurnFinished, TurnPaused, TurnStarted
from herd.agents.gate import limit_reached, told
from herd.agents.ids import new_id
from herd.agents.model_step import ask
from herd.agents.run import Run
from herd.agents.runtime import Runtime
from herd.agents.spans import span
from herd.agents.steps import ModelStep, Passage, RetrievalStep, ShieldStep, ToolStep
from herd.agents.tool_step import Calls
from herd.agents.turn import Turn, TurnStatus
from herd.base.errors import HerdError
from herd.base.log import get_logger
from herd.safety.verdict import Content, TouchPoint
from herd.text.messages import Message
from herd.tools.tool import ToolContext

log = get_logger(__name__)

_tasks: dict[str, asyncio.Task[None]] = {}
"""Turns that run in this process."""


async def run_turn(runtime: Runtime, config: AgentConfig, turn: Turn) -> AsyncGenerator[AgentEvent, None]:
    """Run a turn from where it stands; `turn` is moved on in place. Closing the generator, or `cancel_turn`, cancels the turn.

    Raises:
        TurnStateError: the turn is over, or runs already.
    """
    if not turn.is_open:
        raise TurnStateError(f"turn {turn.id} is {turn.status}", hint="begin a new one")
    if turn.id in _tasks:
        raise TurnStateError(f"turn {turn.id} runs already", hint="wait for it, or cancel it")
    run = Run(runtime, config, turn)
    work = _Work(run)
    task = _tasks[turn.id] = asyncio.create_task(work.main(), name=f"herd-{turn.id}")
    task.add_done_callback(lambda _: (_tasks.pop(turn.id, None), run.events.put_nowait(None)))
    try:
        while (event := await run.events.get()) is not None:
            if isinstance(event, LAST):
                # The turn is out of the way before its last event is read: who reads it may go on with the turn at once.
                await asyncio.wait([task])
                yield event
                return
            yield event
        if not task.cancelled():
            task.result()
        # Cancelled before it had begun.
        await work.cancelled()
        if isinstance(event := run.events.get_nowait(), LAST):
            yield event
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


def cancel_turn(turn_id: str) -> bool:
    """End a turn that runs in this process, within its current step. False if it does not run here."""
    task = _tasks.get(turn_id)
    return task is not None and task.cancel()


class _Work:
    """What comes next, again and again."""

    def __init__(self, run: Run) -> None:
        self.run, self.turn, self.config = run, run.turn, run.config
        self.calls = Calls(run)

    async def main(self) -> None:
        """The whole run; ends with one of the last events, whatever happens."""
        attributes = {
            "gen_ai.agent.name": self.config.name or None,
            "gen_ai.conversation.id": self.turn.session_id,
            "gen_ai.request.model": self.config.model,
        }
        with span("invoke_agent", self.config.name, attributes) as told_span:
            try:
                await self._work()
            except asyncio.CancelledError:
                told_span.fail("cancelled")
                await self.cancelled()
            except HerdError as error:
                told_span.fail(error.code)
                await self._failed(error.code, error.message, error.hint)
            except Exception as error:
                log.exception("turn %s failed", self.turn.id)
                told_span.fail(type(error).__name__)
                await self._failed("internal", "the turn failed by an error of herd's own", "see the log")

    async def _work(self) -> None:
        turn, run = self.turn, self.run
        resumed, turn.status = bool(turn.num_events), "running"
        await run.save_turn()
        run.tell(TurnStarted, session_id=turn.session_id, resumed=resumed)
        if not await self._let_in():
            return
        await self._remember()
        while True:
            self.calls.plan()
            open_calls = turn.open_calls()
            if open_calls:
                if await self.calls.work(open_calls):
                    await self._pause()
                    return
                continue
            last = turn.model_steps[-1] if turn.model_steps else None
            if last is not None and not last.message.tool_calls and await self._is_answered(last):
                return
            if last is None or last.message.tool_calls:
                await self._ask(limit_reached(self.config, turn, run.elapsed_s))

    async def _ask(self, final: str | None, *, formatted: bool = False) -> None:
        plain = self.config.response_schema is not None and not self.run.runtime.tools.names
        asked = await ask(self.run, final, formatted=formatted or plain)
        self.calls.reports = asked.reports

    async def _is_answered(self, last: ModelStep) -> bool:
        """Whether this answer without calls is the turn's; else what has to follow it is asked for."""
        cut = "tokens" if last.reason == "length" and self.run.left_s > 0 else "seconds" if last.reason == "length" else None
        if last.stopped_by is not None:
            await self._finish("completed", last.message.text, "blocked")
        elif self.config.response_schema is not None and not last.formatted:
            await self._ask(last.final, formatted=True)
            return False
        elif last.message.text.strip():
            limit = last.final or cut
            await self._finish("incomplete" if limit else "completed", last.message.text, limit)
        elif last.final is None and cut is not None:
            await self._ask(cut)
            return False
        elif last.final is None and self.turn.tool_steps:
            # Nothing was said and nothing called: once more, and then the turn says so itself.
            await self._ask("silent")
            return False
        else:
            await self._finish("incomplete", _unfinished(self.config, last.final), last.final or "silent")
        return True

    async def _finish(self, status: TurnStatus, text: str, reason: str | None) -> None:
        turn = self.turn
        turn.status, turn.text, turn.reason, turn.ended_at = status, text, reason, time.time()
        turn.citations, turn.false_citations = check(text, turn.all_passages())
        await self.run.save_turn()
        self.run.tell(
            TurnFinished,
            text=text,
            status=status,
            usage=turn.usage,
            reason=reason,
            citations=turn.citations,
            false_citations=turn.false_citations,
        )

    async def _pause(self) -> None:
        self.turn.status = "waiting"
        await self.run.save_turn()
        waiting = self.turn.waiting
        self.run.tell(
            TurnPaused,
            client_calls=tuple(step.call for step in waiting if step.state == "client"),
            approvals=tuple(step.call for step in waiting if step.state == "approval"),
        )

    async def _let_in(self) -> bool:
        """Judge what came in, once. False if the shields stop it: the turn then ends with their word."""
        shields, turn = self.run.runtime.shields, self.turn
        if shields is None or any(isinstance(step, ShieldStep) for step in turn.steps):
            return True
        said: list[Message] = []
        for message in turn.inputs:
            point = TouchPoint.TOOL_OUTPUT if message.role == "tool" else TouchPoint.INPUT
            started = time.time()
            report = await shields.check(Content(point=point, text=message.text, conversation=turn.history))
            if report.blocked:
                await self.run.judged(report, started)
                word = report.violation.user_message if report.violation is not None else ""
                await self._finish("completed", word or "This could not be let in.", "blocked")
                return False
            said.append(_with_text(message, report.text) if report.text != message.text else message)
            if message is turn.inputs[-1]:
                turn.inputs = tuple(said)
                await self.run.save_turn()
                await self.run.judged(report, started)
        return True

    async def _remember(self) -> None:
        """Put passages of the session's documents before the model, where the agent is set so."""
        retriever, turn = self.run.runtime.retriever, self.turn
        asked = next((message.text for message in reversed(turn.inputs) if message.role == "user"), "")
        done = any(isinstance(step, RetrievalStep | ModelStep | ToolStep) for step in turn.steps)
        if retriever is None or self.config.memory != "always" or done or not asked.strip():
            return
        started = time.time()
        with span("retrieval", "documents", {}):
            found = await retriever.retrieve(asked[:2000], limit=self.config.num_passages, context=ToolContext(session_id=turn.session_id))
        first = max((passage.number for passage in turn.all_passages()), default=0) + 1
        kept: list[Passage] = []
        for passage in found:
            text = await self._let_in_passage(passage.text)
            if text:
                document = getattr(passage, "document_id", "")
                kept.append(
                    Passage(
                        number=first + len(kept),
                        text=text,
                        source=passage.source,
                        score=passage.score,
                        title=passage.title,
                        document_id=document,
                    )
                )
        step = RetrievalStep(
            id=new_id("step"),
            number=self.run.next_number(),
            query=asked[:2000],
            passages=tuple(kept),
            started_at=started,
            ended_at=time.time(),
        )
        turn.steps.append(step)
        await self.run.runtime.journal.save_step(turn, step)
        self.run.tell(RetrievalDone, step=step)

    async def _let_in_passage(self, text: str) -> str:
        shields = self.run.runtime.shields
        if shields is None:
            return text
        report = await shields.tool_output(text)
        return "" if report.blocked else report.text

    async def cancelled(self) -> None:
        """What ran is stopped; its calls say so to the turns that follow."""
        turn = self.turn
        for step in turn.open_calls():
            step.text = "[cancelled; it may have run]" if step.began else "[cancelled; it did not run]"
            step.state, step.ok, step.error_code, step.ended_at = "done", False, "cancelled", time.time()
            await self.run.runtime.journal.save_step(turn, step)
        turn.status, turn.reason, turn.ended_at = "cancelled", "cancelled", time.time()
        turn.text = turn.model_steps[-1].message.text if turn.model_steps else ""
        await self.run.save_turn()
        self.run.tell(TurnCancelled)

    async def _failed(self, code: str, message: str, hint: str | None) -> None:
        turn = self.turn
        turn.status, turn.reason, turn.ended_at = "failed", code, time.time()
        turn.error = {"code": code, "message": message, "hint": hint}
        try:
            await self.run.save_turn()
        except Exception:
            log.exception("turn %s failed and could not be written", turn.id)
        self.run.tell(TurnFailed, code=code, message=message, hint=hint)


def _with_text(message: Message, text: str) -> Message:
    rewritten = Message.user(text)
    return replace(message, parts=rewritten.parts)


def _unfinished(config: AgentConfig, limit: str | None) -> str:
    """The answer where the model gave none."""
    if limit is None or limit == "silent":
        return "No answer was found: the model said nothing."
    return f"No answer was found: {told(config, limit)}."
