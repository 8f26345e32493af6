"""Running the calls of an answer: each is looked at in order, then those that may run do so at once, and each ends with a result.

What a call did not get to do is a result too, in words for the model. A call is saved as `running` before its tool is asked; found so
after a crash, one with an outside effect waits for a person, since it may have happened, and any other is run again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from herd.agents.cite import as_dict, number_passages
from herd.agents.config import ClientTool, Decision
from herd.agents.events import ApprovalNeeded, ShieldJudged, ToolDone, ToolStarted
from herd.agents.gate import num_begun, num_repeats, told, why_to_ask
from herd.agents.ids import new_id
from herd.agents.model_step import spelled
from herd.agents.run import Run
from herd.agents.spans import span
from herd.agents.steps import ToolStep
from herd.agents.turn import passages_of
from herd.base.errors import HerdError, NotFoundError
from herd.base.log import get_logger
from herd.safety.shields import Report
from herd.text.messages import CODE_INTERPRETER, ToolCall
from herd.tools.arguments import check_arguments
from herd.tools.registry import call_tool
from herd.tools.tool import Attachment, Taint, Tool, ToolContext, ToolResult, failure

log = get_logger(__name__)


class Calls:
    """The calls of one run of a turn. `reports` holds what the shields said of calls as they were written."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.reports: dict[str, Report] = {}
        self._admitted: set[str] = set()

    def plan(self) -> None:
        """A step for each call of the last answer that has none: new ones, or those that a crash came before."""
        turn = self.run.turn
        known = {step.call_id for step in turn.tool_steps}
        for call in turn.model_steps[-1].message.tool_calls if turn.model_steps else ():
            if call.id not in known:
                turn.steps.append(self._step(call))

    def _step(self, call: ToolCall) -> ToolStep:
        step = ToolStep(id=new_id("step"), number=self.run.next_number(), call=call)
        try:
            tool = self.run.runtime.tools.find(call.name)
        except NotFoundError:
            return step
        step.side = "client" if isinstance(tool, ClientTool) else "server"
        reads_files = tool.name == CODE_INTERPRETER and bool(self.run.turn.files)
        step.taint = tool.taint | Taint(reads_untrusted=reads_files, reads_private=reads_files)
        return step

    async def work(self, steps: Sequence[ToolStep]) -> bool:
        """Bring calls as far as they go. True if some wait for a person or for the application."""
        labels = self.run.turn.taint_now()
        ready: list[ToolStep] = []
        for step in steps:
            if await self._may_run(step, labels):
                labels = labels | step.taint
                ready.append(step)
            if step.state != "done":
                self._admitted.add(step.id)
        room = asyncio.Semaphore(self.run.config.limits.max_parallel)
        try:
            async with asyncio.TaskGroup() as group:
                for step in ready:
                    group.create_task(self._run(step, room))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return any(step.state != "done" for step in steps)

    async def _may_run(self, step: ToolStep, labels: Taint) -> bool:
        """Whether a call is to be run now; if not it has its result, or waits."""
        if step.state == "client":
            await self._take_output(step)
            return False
        try:
            tool = self.run.runtime.tools.find(step.call.name)
        except NotFoundError as error:
            await self._end(step, failure("not_found", f"{error.message}; {error.hint}"))
            return False
        if step.state == "planned" and await self._refused(step, tool):
            return False
        if not await self._agreed(step, labels):
            return False
        if step.side == "client":
            step.state, step.attempts, step.started_at = "client", step.attempts + 1, time.time()
            await self._save(step)
            return False
        return True

    async def _refused(self, step: ToolStep, tool: Tool | ClientTool) -> bool:
        """Whether a call ends before anyone is asked: over a limit, said too often, stopped by shields, arguments that do not fit."""
        config, turn = self.run.config, self.run.turn
        refused: ToolResult | None = None
        if num_begun(turn, self._admitted) >= config.limits.max_tool_calls:
            refused = failure("limit", f"not run: {told(config, 'tool_calls')}")
        elif num_repeats(turn, step, self._admitted) >= config.limits.max_repeats:
            refused = failure("repeated", "not run: this very call was made before, and its result stands above; use that")
        elif config.approval.mode(step.call.name, step.taint) == "deny":
            refused = failure("denied", f"not run: {step.call.name} is not allowed here")
        else:
            refused = _misfit(step.call, tool) or await self._stopped(step)
        if refused is not None:
            await self._end(step, refused)
        return refused is not None

    async def _stopped(self, step: ToolStep) -> ToolResult | None:
        """What the tool-input shields make of the call; they were asked as it was written, or are now, after a crash."""
        shields = self.run.runtime.shields
        if shields is None:
            return None
        report = self.reports.get(spelled(step.call)) or await shields.tool_input(step.call, self.run.turn.messages())
        stops = report.blocked or report.text != spelled(step.call)
        self._note(step, report, tell=stops)
        return failure("blocked", f"not run: the call was stopped by {_by(report)}") if stops else None

    def _note(self, step: ToolStep, report: Report, *, tell: bool) -> None:
        step.verdicts = (*step.verdicts, *({"point": report.point.value, **verdict.to_dict()} for verdict in report.verdicts))
        if tell:
            self.run.tell(ShieldJudged, step_id=step.id, report=report, call_id=step.call_id)

    async def _agreed(self, step: ToolStep, labels: Taint) -> bool:
        """Whether nobody has to be asked, or somebody said yes. Asked for a graver reason than before, a person is asked again."""
        turn = self.run.turn
        while (why := why_to_ask(self.run.config, turn, step, labels)) is not None:
            given = turn.decisions.pop(step.call_id, None) if step.state == "approval" else None
            # A yes holds for what was asked; a no holds for everything.
            decision = given if step.why == why or given == "deny" else None
            if decision is None:
                step.why, step.approved, step.state = why, None, "approval"
                await self._save(step)
                self.run.tell(ApprovalNeeded, step_id=step.id, call=step.call, why=why, taint=step.taint, session_taint=labels)
                decision = await self._ask(step)
            if decision is None:
                return False
            await self._decide(step, decision, why)
            if decision == "deny":
                return False
        return True

    async def _ask(self, step: ToolStep) -> Decision | None:
        """A person's decision, where one can be asked at once. Whoever fails to answer has said no."""
        approve = self.run.runtime.approve
        if approve is None:
            return None
        async with self.run.waiting():
            try:
                return await approve(step, self.run.turn)
            except Exception:
                log.exception("the approval of %s failed, which counts as a no", step.call.name)
                return "deny"

    async def _decide(self, step: ToolStep, decision: Decision, why: str) -> None:
        step.approved = decision
        if decision == "deny":
            unknown = why == "interrupted"
            text = "it was interrupted, may have run, and was not run again" if unknown else "a person refused it"
            await self._end(step, failure("unknown_outcome" if unknown else "denied", f"no result: {text}"))
        elif decision == "always" and why == "policy":
            self.run.turn.grants.add(step.call.name)
            await self.run.save_turn()

    async def _take_output(self, step: ToolStep) -> None:
        output = self.run.turn.outputs.pop(step.call_id, None)
        if output is not None:
            result = ToolResult(text=output.text, ok=output.ok, error_code=None if output.ok else "tool_failed")
            await self._end(step, await self._judged(step, result))

    async def _run(self, step: ToolStep, room: asyncio.Semaphore) -> None:
        async with room:
            step.state, step.attempts, step.started_at = "running", step.attempts + 1, time.time()
            await self._save(step)
            self.run.tell(ToolStarted, step_id=step.id, call=step.call)
            with span(
                "execute_tool", step.call.name, {"gen_ai.tool.name": step.call.name, "gen_ai.tool.call.id": step.call_id}
            ) as told_span:
                result = await self._call(step)
                if not result.ok:
                    told_span.fail(result.error_code or "tool")
            result = number_passages(await self._let_in(result), self.run.turn.all_passages())
            await self._end(step, await self._judged(step, result))

    async def _let_in(self, result: ToolResult) -> ToolResult:
        """A result without the passages that the shields stop: each is judged alone, since among others it would weigh less."""
        shields, found = self.run.runtime.shields, list(passages_of(result.data))
        if shields is None or not found:
            return result
        reports = await asyncio.gather(*(shields.tool_output(passage.text) for passage in found))
        kept = [as_dict(replace(passage, text=report.text)) for passage, report in zip(found, reports, strict=True) if not report.blocked]
        left_out = len(found) - len(kept)
        note = f"[{left_out} of {len(found)} passages were withheld by the shields]"
        return replace(result, data={**result.data, "passages": kept}, text=result.text if kept else note)

    async def _call(self, step: ToolStep) -> ToolResult:
        tool = self.run.runtime.tools.find(step.call.name)
        assert not isinstance(tool, ClientTool)
        turn = self.run.turn
        context = ToolContext(session_id=turn.session_id, secrets=self.run.runtime.secrets, files=turn.files)
        try:
            async with asyncio.timeout(self.run.left_s):
                return await call_tool(tool, step.call.arguments, context)
        except TimeoutError:
            return failure("limit", f"no result: {told(self.run.config, 'seconds')} while {step.call.name} ran")
        except HerdError as error:
            return failure(error.code, error.message)

    async def _judged(self, step: ToolStep, result: ToolResult) -> ToolResult:
        """The result as the shields let the model read it: redacted, or withheld with all that came with it."""
        shields = self.run.runtime.shields
        if shields is None or not result.text:
            return result
        report = await shields.tool_output(result.text, self.run.turn.messages())
        self._note(step, report, tell=report.unsafe)
        if report.blocked:
            return failure("blocked", f"[the output of {step.call.name} was withheld: {_by(report)}]")
        if report.text == result.text:
            return result
        return ToolResult(
            text=report.text, ok=result.ok, error_code=result.error_code, attachments=result.attachments, truncated=result.truncated
        )

    async def _end(self, step: ToolStep, result: ToolResult) -> None:
        """The call has its result, whatever it is."""
        ids = [await self.run.runtime.journal.save_attachment(self.run.turn, step, attachment) for attachment in result.attachments]
        step.state, step.text, step.ok = "done", result.text, result.ok
        step.error_code, step.data, step.attachments = result.error_code, result.data, tuple(ids)
        step.ended_at = time.time()
        step.started_at = step.started_at or step.ended_at
        await self._save(step)
        kept: tuple[Attachment, ...] = result.attachments
        self.run.tell(ToolDone, step=step, attachments=kept)

    async def _save(self, step: ToolStep) -> None:
        await self.run.runtime.journal.save_step(self.run.turn, step)


def _misfit(call: ToolCall, tool: Tool | ClientTool) -> ToolResult | None:
    """Why the arguments are none of the tool's, before a person is asked about them."""
    definition = tool.definition.parameters if isinstance(tool, ClientTool) else tool.parameters
    size = 256 * 1024 if isinstance(tool, ClientTool) else tool.limits.max_argument_bytes
    try:
        check_arguments(call.name, definition, call.arguments, max_bytes=size)
    except HerdError as error:
        return failure(error.code, f"{error.message}; {error.hint}" if error.hint else error.message)
    return None


def _by(report: Report) -> str:
    """Which shield stops it and for what, in words for the model."""
    violation = report.violation
    if violation is None:
        return "a shield that would have changed it"
    return f"the shield {violation.shield} ({violation.reason or ', '.join(violation.categories) or 'unsafe'})"
