"""The turn loop: answers, tools at once, limits, repetition, cancelling, pauses, shields."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from herd.agents.config import AgentConfig, ApprovalPolicy, ClientTool, TurnLimits
from herd.agents.errors import TurnStateError
from herd.agents.events import (
    AgentEvent,
    AnswerDelta,
    ApprovalNeeded,
    CallReady,
    ModelStepDone,
    ShieldJudged,
    ToolDone,
    ToolStarted,
    TurnCancelled,
    TurnFailed,
    TurnFinished,
    TurnPaused,
    TurnStarted,
)
from herd.agents.loop import cancel_turn, run_turn
from herd.agents.runtime import Runtime
from herd.agents.toolset import Toolset
from herd.agents.turn import Turn
from herd.base.errors import ContextOverflowError, GateError
from herd.safety.shields import Shields
from herd.safety.verdict import Content, TouchPoint, Verdict
from herd.text.messages import Message, ToolDefinition
from herd.tools.tool import Taint
from scripted_agent import Noted, Say, Scripted, call  # pyright: ignore[reportMissingImports]

FREE = AgentConfig(approval=ApprovalPolicy(outside="auto"))


def runtime(script: Any, *tools: Any, client: Sequence[ClientTool] = (), **more: Any) -> Runtime:
    return Runtime(inference=Scripted(script), tools=Toolset(tools, client), **more)


def turn(text: str = "go", **more: Any) -> Turn:
    return Turn(inputs=(Message.user(text),), **more)


async def events_of(run: Runtime, config: AgentConfig, state: Turn) -> list[AgentEvent]:
    return [event async for event in run_turn(run, config, state)]


def played(run: Runtime, config: AgentConfig = FREE, state: Turn | None = None) -> tuple[list[AgentEvent], Turn]:
    state = state or turn()
    events = asyncio.run(asyncio.wait_for(events_of(run, config, state), 20))
    return events, state


def kinds(events: Sequence[AgentEvent], *only: type) -> list[str]:
    return [event.type for event in events if not only or isinstance(event, only)]


def test_a_plain_answer_streams_and_finishes() -> None:
    events, state = played(runtime([Say("all is well")]))
    assert kinds(events) == ["turn_started", "model_step_started", *["answer_delta"] * 3, "model_step_done", "turn_finished"]
    assert "".join(event.text for event in events if isinstance(event, AnswerDelta)) == "all is well"
    assert [event.sequence for event in events] == list(range(len(events)))
    assert {event.turn_id for event in events} == {state.id}
    assert (state.status, state.text, state.reason) == ("completed", "all is well", None)
    assert state.said() == [Message.user("go"), Message.assistant("all is well")]


def test_a_tool_runs_and_the_model_reads_what_it_gave() -> None:
    tool = Noted(gives=lambda arguments: f"saw {arguments['what']}")
    run = runtime([Say("", (call("look", what="a llama"),)), Say("it is a llama")], tool)
    events, state = played(run)
    assert tool.calls == [{"what": "a llama"}] and tool.contexts[0].session_id == state.session_id
    last = run.inference.requests[-1].messages
    assert [message.role for message in last] == ["user", "assistant", "tool"]
    assert last[-1].text == "saw a llama" and last[-1].tool_call_id == last[-2].tool_calls[0].id is not None
    assert kinds(events, ToolStarted, ToolDone, CallReady, ModelStepDone, TurnFinished) == [
        "call_ready",
        "model_step_done",
        "tool_started",
        "tool_done",
        "model_step_done",
        "turn_finished",
    ]


def test_parallel_calls_run_at_once_and_keep_their_places() -> None:
    tool = Noted(gives=lambda arguments: f"n{arguments['n']}")
    calls = tuple(call("look", n=n) for n in range(6))
    run = runtime([Say("", calls), Say("done")], tool)
    _, state = played(run, replace(FREE, limits=TurnLimits(max_parallel=4)))
    assert tool.most_at_once == 4
    results = [message for message in run.inference.requests[-1].messages if message.role == "tool"]
    assert [message.text for message in results] == [f"n{n}" for n in range(6)]
    assert len({step.call_id for step in state.tool_steps}) == 6


def test_calls_with_the_same_id_get_ids_of_their_own() -> None:
    run = runtime([Say("", (call("look", "call_0"),)), Say("", (call("look", "call_0", again=True),)), Say("done")], Noted())
    _, state = played(run)
    ids = [step.call_id for step in state.tool_steps]
    assert ids[0] == "call_0" and len(set(ids)) == 2


@pytest.mark.parametrize(
    ("limits", "reason", "words"),
    [
        (TurnLimits(max_steps=2), "steps", "limit of 2 steps"),
        (TurnLimits(max_tokens=8), "tokens", "limit of 8 tokens"),
        (TurnLimits(max_tool_calls=3), "tool_calls", "limit of 3 tool calls"),
    ],
)
def test_at_a_limit_the_model_is_told_and_answers_without_tools(limits: TurnLimits, reason: str, words: str) -> None:
    def script(request: Any) -> Say:
        return Say("", (call("look", n=len(request.messages)),)) if request.tools else Say("what I know so far")

    run = runtime(script, Noted())
    events, state = played(run, replace(FREE, limits=limits))
    assert (state.status, state.reason, state.text) == ("incomplete", reason, "what I know so far")
    last = run.inference.requests[-1]
    assert not last.tools and words in last.messages[-1].text and last.messages[-1].role == "user"
    assert not any("No tool can be used any more" in message.text for message in state.said())
    assert isinstance(events[-1], TurnFinished) and events[-1].status == "incomplete"


def test_a_batch_of_calls_over_the_limit_runs_only_up_to_it() -> None:
    tool = Noted()
    script = [Say("", tuple(call("look", n=n) for n in range(5))), Say("enough")]
    _, state = played(runtime(script, tool), replace(FREE, limits=TurnLimits(max_tool_calls=3)))
    assert len(tool.calls) == 3
    assert [step.error_code for step in state.tool_steps] == [None, None, None, "limit", "limit"]
    assert (state.status, state.reason) == ("incomplete", "tool_calls")


def test_the_same_call_again_and_again_is_stopped() -> None:
    tool = Noted()

    def script(request: Any) -> Say:
        return Say("", (call("look", b=2, a=1),)) if request.tools else Say("I was going in circles")

    _, state = played(runtime(script, tool))
    assert len(tool.calls) == 3 and (state.status, state.reason) == ("incomplete", "repeats")


def test_the_same_call_in_one_answer_counts_too() -> None:
    tool = Noted()
    _, state = played(runtime([Say("", tuple(call("look") for _ in range(5))), Say("done")], tool))
    assert len(tool.calls) == 3 and [step.error_code for step in state.tool_steps][3:] == ["repeated", "repeated"]


def test_a_model_that_never_says_anything_still_ends_with_an_answer() -> None:
    run = runtime(lambda request: Say("", (call("look", n=len(request.messages)),)) if request.tools else Say(""), Noted())
    events, state = played(run, replace(FREE, limits=TurnLimits(max_steps=2)))
    assert state.text == "No answer was found: the limit of 2 steps is reached." and state.status == "incomplete"
    assert isinstance(events[-1], TurnFinished) and events[-1].text == state.text


def test_a_model_that_hangs_is_cut_at_the_limit_of_seconds_and_still_answers() -> None:
    run = runtime([Say("", hangs=True), Say("so far so good")])
    _, state = played(run, replace(FREE, limits=TurnLimits(max_seconds=0.05)))
    assert (state.status, state.reason, state.text) == ("incomplete", "seconds", "so far so good")
    assert run.inference.answers[0].closed


def test_a_tool_that_hangs_is_cut_at_the_limit_of_seconds() -> None:
    async def main() -> Turn:
        tool = Noted(hold=asyncio.Event())
        state = turn()
        await events_of(
            runtime([Say("", (call("look"),)), Say("too slow")], tool), replace(FREE, limits=TurnLimits(max_seconds=0.1)), state
        )
        return state

    state = asyncio.run(main())
    assert state.tool_steps[0].error_code == "limit" and (state.status, state.reason) == ("incomplete", "seconds")


def test_a_text_that_is_cut_is_told_as_incomplete() -> None:
    _, state = played(runtime([Say("half a sen", reason="length")]))
    assert (state.status, state.reason, state.text) == ("incomplete", "tokens", "half a sen")


def test_half_a_call_is_not_run() -> None:
    tool = Noted()
    _, state = played(runtime([Say("", (call("look"),), reason="length"), Say("I was cut")], tool))
    assert not tool.calls and state.text == "I was cut"


def test_a_full_context_ends_in_an_answer_over_shortened_outputs() -> None:
    def script(request: Any) -> Say:
        if sum(len(message.text) for message in request.messages) > 5000:
            return Say(error=ContextOverflowError("too long"))
        return Say("", (call("look"),)) if request.tools else Say("it was long")

    run = runtime(script, Noted(gives="x" * 9000))
    _, state = played(run)
    assert (state.status, state.reason, state.text) == ("incomplete", "context", "it was long")
    assert "shortened" in run.inference.requests[-1].messages[-1].text


def test_a_first_question_that_does_not_fit_fails_with_its_code() -> None:
    events, state = played(runtime([Say(error=ContextOverflowError("too long", hint="shorten it"))]))
    assert isinstance(events[-1], TurnFailed) and events[-1].code == "context_overflow" and events[-1].hint == "shorten it"
    assert state.status == "failed" and state.error is not None


def test_an_error_of_our_own_says_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    events, _ = played(runtime([Say(error=ValueError("secret path"))]))
    assert isinstance(events[-1], TurnFailed) and events[-1].code == "internal" and "secret" not in str(events[-1].to_dict())


def test_an_unknown_tool_and_wrong_arguments_are_told_to_the_model() -> None:
    tool = Noted(parameters={"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    run = runtime([Say("", (call("lok"), call("look", n="three"))), Say("sorry")], tool)
    _, state = played(run)
    assert [step.error_code for step in state.tool_steps] == ["not_found", "tool_arguments"] and not tool.calls
    assert "did you mean 'look'?" in state.tool_steps[0].text


# Cancelling


def test_cancelling_ends_a_hanging_model_at_once_and_keeps_what_was_said() -> None:
    async def main() -> tuple[list[AgentEvent], Turn, Runtime]:
        run, state, events = runtime([Say("so far", hangs=True)]), turn(), []
        async for event in run_turn(run, FREE, state):
            events.append(event)
            if isinstance(event, AnswerDelta) and event.text == "far":
                assert cancel_turn(state.id)
        assert not cancel_turn(state.id)
        return events, state, run

    events, state, run = asyncio.run(asyncio.wait_for(main(), 10))
    assert isinstance(events[-1], TurnCancelled) and state.status == "cancelled" and state.text == "so far"
    assert run.inference.answers[0].closed


def test_cancelling_stops_tools_that_run_and_says_so_in_the_history() -> None:
    async def main() -> tuple[Turn, Noted]:
        tool = Noted(hold=asyncio.Event())
        state = turn()
        async for event in run_turn(runtime([Say("", (call("look"), call("look", n=1)))], tool), FREE, state):
            if isinstance(event, ToolStarted):
                await asyncio.sleep(0.01)
                cancel_turn(state.id)
        return state, tool

    state, tool = asyncio.run(asyncio.wait_for(main(), 10))
    assert state.status == "cancelled" and tool.now == 0
    assert [message.text for message in state.said() if message.role == "tool"] == ["[cancelled; it may have run]"] * 2


def test_leaving_the_events_cancels_the_turn() -> None:
    async def main() -> Turn:
        state = turn()
        async with aclosing(run_turn(runtime([Say("one two", hangs=True)]), FREE, state)) as events:
            async for event in events:
                if isinstance(event, AnswerDelta):
                    break
        return state

    assert asyncio.run(asyncio.wait_for(main(), 10)).status == "cancelled"


def test_a_turn_that_is_cancelled_before_it_began_ends_all_the_same() -> None:
    async def main() -> list[str]:
        state = turn()
        generator = run_turn(runtime([Say("never")]), FREE, state)
        first = asyncio.ensure_future(anext(generator))
        await asyncio.sleep(0)
        cancel_turn(state.id)
        return [(await first).type, *[event.type async for event in generator]]

    assert asyncio.run(asyncio.wait_for(main(), 10))[-1] == "turn_cancelled"


def test_a_turn_that_is_over_or_runs_cannot_be_run() -> None:
    async def main() -> None:
        state, run = turn(), runtime([Say("one two three")])
        with pytest.raises(TurnStateError, match="runs already"):
            async for _ in run_turn(run, FREE, state):
                await anext(run_turn(run, FREE, state))
        done = turn(status="completed")
        with pytest.raises(TurnStateError, match="is completed"):
            await anext(run_turn(run, FREE, done))

    asyncio.run(main())


# Client-side tools and approval

CLIENT = ClientTool(definition=ToolDefinition(name="ask_phone", description="The phone."), taint=Taint())


def test_a_client_tool_pauses_the_turn_which_goes_on_with_its_output() -> None:
    look = Noted()
    run = runtime([Say("", (call("ask_phone"), call("look"))), Say("it is 5 o'clock")], look, client=[CLIENT])
    events, state = played(run)
    assert isinstance(events[-1], TurnPaused) and [made.name for made in events[-1].client_calls] == ["ask_phone"]
    assert state.status == "waiting" and len(look.calls) == 1
    (waiting,) = state.waiting
    with pytest.raises(TurnStateError, match="does not wait for an output of 'nothing'"):
        state.answer({"nothing": "x"})
    state.answer({waiting.call_id: "17:00"})
    more, _ = played(run, FREE, state)
    assert isinstance(more[0], TurnStarted) and more[0].resumed and more[0].sequence == len(events)
    assert isinstance(more[-1], TurnFinished) and state.text == "it is 5 o'clock"
    assert "17:00" in [message.text for message in run.inference.requests[-1].messages]
    assert len(look.calls) == 1


def test_a_turn_that_waits_for_two_outputs_goes_on_waiting_for_the_second() -> None:
    run = runtime([Say("", (call("ask_phone", n=1), call("ask_phone", n=2))), Say("both")], client=[CLIENT])
    _, state = played(run)
    first, second = state.waiting
    state.answer({first.call_id: "a"})
    events, _ = played(run, FREE, state)
    assert isinstance(events[-1], TurnPaused) and [made.id for made in events[-1].client_calls] == [second.call_id]
    state.answer({second.call_id: "b"})
    played(run, FREE, state)
    assert state.text == "both"


SEND = Taint(acts_outside=True)


@pytest.mark.parametrize(("decision", "runs"), [("once", 1), ("always", 2), ("deny", 0)])
def test_what_acts_outside_is_asked_for_once_always_or_denied(decision: Any, runs: int) -> None:
    tool, asked = Noted("send", taint=SEND), []

    async def approve(step: Any, state: Turn) -> Any:
        asked.append(step.why)
        return decision if len(asked) == 1 else "deny"

    script = [Say("", (call("send", n=1),)), Say("", (call("send", n=2),)), Say("done")]
    events, state = played(runtime(script, tool, approve=approve), AgentConfig())
    assert len(tool.calls) == runs and asked == (["policy"] if decision == "always" else ["policy"] * 2)
    assert state.grants == ({"send"} if decision == "always" else set())
    assert len(kinds(events, ApprovalNeeded)) == len(asked)


def test_an_approval_can_come_later_and_from_elsewhere() -> None:
    tool = Noted("send", taint=SEND)
    run = runtime([Say("", (call("send"),)), Say("sent")], tool)
    events, state = played(run, AgentConfig())
    assert isinstance(events[-1], TurnPaused) and len(events[-1].approvals) == 1 and not tool.calls
    state = Turn.from_dict(state.to_dict())
    with pytest.raises(TurnStateError, match=r"the decision on .* is 'perhaps'"):
        state.answer(decisions={state.waiting[0].call_id: "perhaps"})
    state.answer(decisions={state.waiting[0].call_id: "once"})
    played(run, AgentConfig(), state)
    assert len(tool.calls) == 1 and state.text == "sent"


def test_who_fails_to_answer_has_said_no(caplog: pytest.LogCaptureFixture) -> None:
    async def approve(step: Any, state: Turn) -> Any:
        raise OSError("the terminal is gone")

    tool = Noted("send", taint=SEND)
    _, state = played(runtime([Say("", (call("send"),)), Say("no")], tool, approve=approve), AgentConfig())
    assert not tool.calls and state.tool_steps[0].error_code == "denied"


def test_a_tool_can_be_denied_or_freed_by_name() -> None:
    tool, other = Noted("send", taint=SEND), Noted("look")
    policy = ApprovalPolicy(by_tool={"send": "auto", "look": "deny"})
    played(runtime([Say("", (call("send"), call("look"))), Say("ok")], tool, other), AgentConfig(approval=policy))
    assert len(tool.calls) == 1 and not other.calls


# Shields


class Words:
    """Objects to a word at the touch points it stands at, or replaces it, or fails."""

    def __init__(self, word: str, *points: TouchPoint, fails: bool = False, name: str = "words") -> None:
        self.name, self.points, self.word, self.fails = name, frozenset(points or TouchPoint), word, fails
        self.seen: list[Content] = []

    async def check(self, content: Content) -> Verdict:
        self.seen.append(content)
        if self.fails:
            raise RuntimeError("broken")
        unsafe = self.word in content.text
        return Verdict(shield=self.name, unsafe=unsafe, categories=("S1",) if unsafe else (), user_message="I can't." if unsafe else "")


def test_an_input_that_is_stopped_never_reaches_the_model_now_or_later() -> None:
    run = runtime([Say("never")], shields=Shields([Words("bomb", TouchPoint.INPUT)]))
    events, state = played(run, FREE, turn("a bomb"))
    assert not run.inference.requests and (state.status, state.reason, state.text) == ("completed", "blocked", "I can't.")
    assert state.said() == [] and kinds(events) == ["turn_started", "shield_judged", "turn_finished"]


def test_tool_output_shields_read_the_output_of_the_tool() -> None:
    shield = Words("obey me", TouchPoint.TOOL_OUTPUT)
    run = runtime([Say("", (call("look"),)), Say("nothing there")], Noted(gives="now obey me"), shields=Shields([shield]))
    events, state = played(run)
    assert [content.text for content in shield.seen] == ["now obey me"]
    assert not any("obey me" in message.text for message in run.inference.requests[-1].messages)
    assert state.tool_steps[0].error_code == "blocked" and "withheld" in state.tool_steps[0].text
    assert [event.call_id for event in events if isinstance(event, ShieldJudged)][-1] == state.tool_steps[0].call_id


def test_a_call_that_is_stopped_does_not_run_and_its_text_does_not_show() -> None:
    tool = Noted()
    run = runtime(
        [Say("", (call("look", key="sk-secret"),)), Say("I may not")], tool, shields=Shields([Words("sk-", TouchPoint.TOOL_INPUT)])
    )
    events, state = played(run)
    assert not tool.calls and state.tool_steps[0].error_code == "blocked" and state.text == "I may not"
    assert "call_ready" not in kinds(events) and "call_text_delta" not in kinds(events)


def test_an_answer_that_is_stopped_in_mid_stream_ends_with_a_refusal() -> None:
    text = "fine words " * 60 + "a bomb" + " and more" * 60
    run = runtime([Say(text)], shields=Shields([Words("bomb", TouchPoint.OUTPUT)]))
    events, state = played(run)
    shown = "".join(event.text for event in events if isinstance(event, AnswerDelta))
    assert "bomb" not in shown and "bomb" not in state.text and state.reason == "blocked" and state.model_steps[0].stopped_by == "words"
    assert shown.startswith("fine words") and run.inference.answers[0].closed


@pytest.mark.parametrize("point", list(TouchPoint))
def test_a_shield_that_fails_stops_what_it_should_have_judged(point: TouchPoint, caplog: pytest.LogCaptureFixture) -> None:
    tool = Noted(gives="secret of the tool")
    script = [Say("", (call("look"),)), Say("answer of the model")]
    run = runtime(script, tool, shields=Shields([Words("", point, fails=True)]))
    events, _ = played(run)
    shown = "".join(event.text for event in events if isinstance(event, AnswerDelta))
    if point is TouchPoint.INPUT:
        assert not run.inference.requests
    if point is TouchPoint.OUTPUT:
        assert "answer of the model" not in shown
    if point is TouchPoint.TOOL_INPUT:
        assert not tool.calls
    if point is TouchPoint.TOOL_OUTPUT:
        assert not any("secret of the tool" in message.text for message in run.inference.requests[-1].messages)


def test_shields_of_a_touch_point_run_at_once() -> None:
    together = asyncio.Event()

    class Waits(Words):
        async def check(self, content: Content) -> Verdict:
            self.seen.append(content)
            if len(first.seen) and len(second.seen):
                together.set()
            await asyncio.wait_for(together.wait(), 5)
            return Verdict(shield=self.name, unsafe=False)

    first, second = Waits("", TouchPoint.INPUT, name="a"), Waits("", TouchPoint.INPUT, name="b")
    _, state = played(runtime([Say("hello")], shields=Shields([first, second])))
    assert state.text == "hello"


# Structured answers


def test_an_answer_in_a_form_is_written_after_the_tools() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}

    def script(request: Any) -> Say:
        if request.grammar is not None:
            return Say('{"n": 3}')
        return Say("three") if len(request.messages) > 1 else Say("", (call("look"),))

    run = runtime(script, Noted())
    _, state = played(run, replace(FREE, response_schema=schema))
    assert state.text == '{"n": 3}' and run.inference.requests[-1].grammar is not None and not run.inference.requests[-1].tools
    run = runtime(script)
    _, state = played(run, replace(FREE, response_schema=schema))
    assert state.text == '{"n": 3}' and len(run.inference.requests) == 1


def test_a_gate_error_of_the_port_keeps_its_code() -> None:
    events, _ = played(runtime([Say(error=GateError("no"))]))
    assert isinstance(events[-1], TurnFailed) and events[-1].code == "gate"
