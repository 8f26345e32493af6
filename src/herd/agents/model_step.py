"""Asking the model once: the request, the answer as the shields let it go, the step that is saved.

Text streams through windows that were judged; the text of a call goes out once the whole call was. What a call's shields say is kept for
`tool_step`, which does not run one that they stopped: the model is told and may do otherwise.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import Any

from herd.agents.events import AnswerDelta, CallReady, CallTextDelta, ModelStepDone, ModelStepStarted
from herd.agents.gate import told
from herd.agents.ids import new_id
from herd.agents.run import Run
from herd.agents.spans import span
from herd.agents.steps import ModelStep
from herd.base.errors import ContextOverflowError
from herd.engine.grammar.spec import Grammar
from herd.inference.port import AsyncAnswer, ChatRequest, Finished, FinishReason, Usage
from herd.safety.shields import Report
from herd.safety.stream import GuardedAnswer
from herd.safety.verdict import Content, TouchPoint
from herd.text.messages import Message, ToolCall
from herd.text.reply import CallDelta, CallDone, TextDelta
from herd.tools.registry import cut_text

WINDOW, OVERLAP = 400, 200
_FITTED_CHARS = 400
"""Characters of a tool's output, where the whole no longer fits into the context."""


class Asked:
    """One question to the model, as it is answered."""

    def __init__(self, run: Run, final: str | None, *, formatted: bool) -> None:
        self.run, self.final, self.formatted = run, final, formatted
        self.step_id, self.number = new_id("step"), run.next_number()
        self.started = time.time()
        self.text: list[str] = []
        self.calls: list[ToolCall] = []
        self.finished: Finished | None = None
        self.reports: dict[str, Report] = {}
        self.stopped: Report | None = None
        self._raw: list[str] = []

    async def judge(self, point: TouchPoint, text: str) -> bool:
        """What `GuardedAnswer` asks. A call passes here: whether it runs is decided later, by the report that is kept."""
        shields = self.run.runtime.shields
        assert shields is not None
        report = await shields.check(Content(point=point, text=text, conversation=tuple(self.run.turn.messages())))
        if point is TouchPoint.TOOL_INPUT:
            self.reports[text] = report
            return True
        if report.blocked or report.text != text:
            self.stopped = report
            return False
        return True

    def take(self, event: Any) -> None:
        """An event that was let go."""
        run = self.run
        if isinstance(event, TextDelta):
            self.text.append(event.text)
            run.tell(AnswerDelta, step_id=self.step_id, text=event.text)
        elif isinstance(event, CallDelta):
            self._raw.append(event.text)
        elif isinstance(event, CallDone):
            self._call(event.call)
        elif isinstance(event, Finished):
            self.finished = event

    def _call(self, call: ToolCall) -> None:
        raw, self._raw = "".join(self._raw), []
        call = self._named(call)
        self.calls.append(call)
        if not self.blocked(call):
            if raw:
                self.run.tell(CallTextDelta, step_id=self.step_id, call_id=call.id, text=raw)
            self.run.tell(CallReady, step_id=self.step_id, call=call)

    def _named(self, call: ToolCall) -> ToolCall:
        """The call with an id that no other call of the conversation has."""
        taken = {other.id for message in self.run.turn.messages() for other in message.tool_calls} | {other.id for other in self.calls}
        return call if call.id and call.id not in taken else replace(call, id=new_id("call"))

    def report_of(self, call: ToolCall) -> Report | None:
        """What the shields said of a call, where they were asked."""
        return self.reports.get(spelled(call))

    def blocked(self, call: ToolCall) -> bool:
        """Whether they stop it."""
        report = self.report_of(call)
        return report is not None and (report.blocked or report.text != spelled(call))

    def step(self) -> ModelStep:
        """What is kept. Calls of an answer that was cut or stopped are dropped: half a call may look like a whole one."""
        done = self.finished
        text = "".join(self.text) if done is None or self.stopped is not None else done.message.text or "".join(self.text)
        reason: FinishReason = "length" if done is None else done.reason
        calls = () if self.final or self.formatted or self.stopped or reason == "length" else tuple(self._all_calls())
        return ModelStep(
            id=self.step_id,
            number=self.number,
            message=Message.assistant(text, calls, ends_turn=done.message.ends_turn if calls and done is not None else True),
            reason="tool_calls" if calls else "stop" if reason == "tool_calls" else reason,
            usage=Usage(prompt_tokens=0, completion_tokens=0) if done is None else done.usage,
            started_at=self.started,
            ended_at=time.time(),
            final=self.final,
            stopped_by=None if self.stopped is None or self.stopped.violation is None else self.stopped.violation.shield,
            formatted=self.formatted,
        )

    def _all_calls(self) -> list[ToolCall]:
        """Those that came as events, and any that only the last event has."""
        if self.finished is not None and len(self.finished.message.tool_calls) > len(self.calls):
            for call in self.finished.message.tool_calls[len(self.calls) :]:
                self._call(call)
        return self.calls


def spelled(call: ToolCall) -> str:
    """A call as the shields read it."""
    return json.dumps({"name": call.name, "parameters": call.arguments}, ensure_ascii=False)


async def ask(run: Run, final: str | None, *, formatted: bool) -> Asked:
    """Ask the model and keep its answer as a step. Raises what the port raises; time that is over ends the answer where it is."""
    asked = Asked(run, final, formatted=formatted)
    run.tell(ModelStepStarted, step_id=asked.step_id, number=asked.number, final=final)
    seconds = run.config.limits.final_seconds if final is not None else run.left_s
    within = asyncio.timeout(seconds)
    try:
        with span("chat", run.config.model, {"gen_ai.request.model": run.config.model}) as told_span:
            try:
                async with within:
                    await _stream(run, asked)
            except TimeoutError:
                if not within.expired():
                    raise
            usage = asked.step().usage
            told_span.set(
                gen_ai__usage__input_tokens=usage.prompt_tokens,
                gen_ai__usage__output_tokens=usage.completion_tokens,
                gen_ai__conversation__id=run.turn.session_id,
            )
    except asyncio.CancelledError:
        if asked.text:
            await _keep(run, asked)
        raise
    await _keep(run, asked)
    return asked


async def _keep(run: Run, asked: Asked) -> None:
    step = asked.step()
    run.turn.steps.append(step)
    await run.runtime.journal.save_step(run.turn, step)
    if asked.stopped is not None:
        await run.judged(asked.stopped, asked.started)
    run.tell(ModelStepDone, step=step)


async def _stream(run: Run, asked: Asked) -> None:
    answer = await _start(run, asked)
    guarded: AsyncAnswer = answer
    if run.runtime.shields is not None:
        guarded = GuardedAnswer(answer, asked.judge, window=WINDOW, overlap=OVERLAP)
    try:
        async for parts in guarded:
            for part in parts:
                asked.take(part.event)
    finally:
        guarded.close()


async def _start(run: Run, asked: Asked) -> AsyncAnswer:
    """The answer, begun. Once tools have filled the context, their outputs are shortened for a last answer, and the model is told."""
    try:
        return await run.runtime.inference.chat(request_of(run, asked.final, formatted=asked.formatted))
    except ContextOverflowError:
        if not run.turn.tool_steps:
            raise
        asked.final = "context"
        return await run.runtime.inference.chat(request_of(run, "context", formatted=asked.formatted, fitted=True))


def request_of(run: Run, final: str | None, *, formatted: bool, fitted: bool = False) -> ChatRequest:
    """What the model is asked."""
    config, turn, tools = run.config, run.turn, run.runtime.tools
    messages = [Message.system(config.instructions)] if config.instructions else []
    messages += [_fitted(message) for message in turn.messages()] if fitted else turn.messages()
    calls = final is None and not formatted
    if final is not None:
        messages.append(Message.user(_last_note(told(config, final), fitted=fitted)))
    elif formatted and turn.model_steps:
        messages.append(Message.user("[Write your answer now as JSON, in the form that was asked for.]"))
    first = calls and not turn.model_steps and bool(tools.names)
    return ChatRequest(
        messages=tuple(messages),
        tools=tools.definitions() if calls else (),
        builtin_tools=tools.native_names() if calls else (),
        tool_choice=config.tool_choice if first else "none" if config.tool_choice == "none" else "auto",
        tool_name=config.tool_name if first else None,
        strict_tools=config.strict_tools,
        parallel_tool_calls=config.parallel_tool_calls,
        grammar=Grammar.json_schema(config.response_schema) if formatted and config.response_schema is not None else None,
        params=replace(config.sampling, max_tokens=_room(run, final)),
        caller=run.runtime.caller,
    )


def _last_note(limit: str, *, fitted: bool) -> str:
    cut = " Outputs of tools are shortened." if fitted else ""
    return f"[No tool can be used any more in this turn: {limit}.{cut} Answer now with what you know, and say what is missing.]"


def _fitted(message: Message) -> Message:
    if message.role != "tool":
        return message
    text, _ = cut_text(message.text, _FITTED_CHARS)
    return Message.tool(text, name=message.name, tool_call_id=message.tool_call_id)


def _room(run: Run, final: str | None) -> int | None:
    limits, asked = run.config.limits, run.config.sampling.max_tokens
    if final is not None:
        return limits.final_tokens if asked is None else min(asked, limits.final_tokens)
    if limits.max_tokens is None:
        return asked
    left = max(limits.max_tokens - run.turn.usage.completion_tokens, 1)
    return left if asked is None else min(asked, left)
