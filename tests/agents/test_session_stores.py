"""All session stores keep the same, for their owner alone; a turn goes on after a crash at any step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from herd.agents.config import AgentConfig, ApprovalPolicy, ClientTool, TurnLimits
from herd.agents.errors import SessionBusyError
from herd.agents.events import AgentEvent, TurnFinished
from herd.agents.loop import run_turn
from herd.agents.memory_store import MemorySessionStore
from herd.agents.runtime import Runtime
from herd.agents.sessions import SessionStore, StoreJournal
from herd.agents.sql_store import open_session_store
from herd.agents.steps import Step
from herd.agents.toolset import Toolset
from herd.agents.turn import Turn
from herd.base.errors import NotFoundError
from herd.inference.params import SamplingParams
from herd.text.messages import Message, ToolDefinition
from herd.tools.tool import Attachment, Taint
from postgres_server import fresh_database  # pyright: ignore[reportMissingImports]
from scripted_agent import Noted, Say, Scripted, call  # pyright: ignore[reportMissingImports]

FREE = AgentConfig(approval=ApprovalPolicy(outside="auto"))
SEND = Taint(acts_outside=True)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SessionStore]:
    if request.param == "memory":
        yield MemorySessionStore()
        return
    kept = open_session_store(tmp_path / "agents.db" if request.param == "sqlite" else fresh_database())
    yield kept
    kept.close()


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(main(), 60)

    return asyncio.run(bounded())


async def play(runtime: Runtime, config: AgentConfig, turn: Turn) -> list[AgentEvent]:
    return [event async for event in run_turn(runtime, config, turn)]


def test_an_agent_is_kept_whole(store: SessionStore) -> None:
    config = AgentConfig(
        name="Ada",
        tools=("clock",),
        client_tools=(ClientTool(definition=ToolDefinition(name="phone"), taint=Taint(reads_private=True)),),
        limits=TurnLimits(max_steps=3, max_tokens=None),
        approval=ApprovalPolicy(by_tool={"send": "deny"}),
        sampling=SamplingParams(temperature=0.0, stop=("END",), logit_bias={3: 1.0}),
        response_schema={"type": "object"},
    )

    async def main() -> None:
        made = await store.create_agent("me", config)
        assert (await store.agent("me", made.id)).config == config
        await store.update_agent("me", made.id, AgentConfig(name="Bea"))
        assert [agent.config.name for agent in await store.agents("me")] == ["Bea"]
        session = await store.create_session("me", agent_id=made.id, meta={"a": 1})
        await store.delete_agent("me", made.id)
        with pytest.raises(NotFoundError, match="there is no session"):
            await store.session("me", session.id)

    run(main)


def test_a_session_goes_on_over_turns_with_its_history_labels_and_grants(store: SessionStore) -> None:
    async def main() -> None:
        session = await store.create_session("me", name="talk")
        tool = Noted(taint=Taint(reads_untrusted=True))
        model = Scripted([Say("", (call("look"),)), Say("first answer"), Say("second answer")])
        runtime = Runtime(inference=model, tools=Toolset([tool]), journal=StoreJournal(store, "me"))
        turn = await store.begin_turn("me", session.id, [Message.user("one")])
        turn.grants.add("send")
        with pytest.raises(SessionBusyError, match="not over"):
            await store.begin_turn("me", session.id, [Message.user("two")])
        await play(runtime, FREE, turn)
        found = await store.session("me", session.id)
        assert (found.taint, found.grants, found.open_turn, found.num_turns) == (Taint(reads_untrusted=True), {"send"}, None, 1)
        turn = await store.begin_turn("me", session.id, [Message.user("two")])
        assert turn.taint == Taint(reads_untrusted=True) and turn.grants == {"send"}
        await play(runtime, FREE, turn)
        assert [message.role for message in model.requests[-1].messages] == ["user", "assistant", "tool", "assistant", "user"]
        assert [kept.text for kept in await store.turns("me", session.id)] == ["first answer", "second answer"]
        assert [kept.said() for kept in await store.turns("me", session.id)][1] == turn.said()
        assert await store.open_turns() == []

    run(main)


def test_what_is_one_owners_is_no_others(store: SessionStore) -> None:
    async def main() -> None:
        session = await store.create_session("me")
        agent = await store.create_agent("me", FREE)
        turn = await store.begin_turn("me", session.id, [Message.user("hi")])
        document = await store.add_document("me", session.id, text="secret")
        for attempt in (
            store.session("you", session.id),
            store.turns("you", session.id),
            store.turn("you", session.id, turn.id),
            store.begin_turn("you", session.id, []),
            store.save_turn("you", turn),
            store.documents("you", session.id),
            store.delete_document("you", session.id, document.id),
            store.files("you", session.id),
            store.add_file("you", session.id, Attachment(name="a", mime_type="text/plain", data=b"")),
            store.add_document("you", session.id, text="x"),
            store.agent("you", agent.id),
            store.create_session("you", agent_id=agent.id),
            store.delete_agent("you", agent.id),
            store.delete_session("you", session.id),
        ):
            with pytest.raises(NotFoundError):
                await attempt
        assert await store.sessions("you") == [] and await store.agents("you") == []

    run(main)


def test_files_and_documents_belong_to_the_session(store: SessionStore) -> None:
    async def main() -> None:
        session = await store.create_session("me")
        await store.add_file("me", session.id, Attachment(name="a.csv", mime_type="text/csv", data=b"1,2"))
        first = await store.add_document("me", session.id, text="llamas", title="L")
        await store.add_document("me", session.id, text="alpacas", title="A")
        turn = await store.begin_turn("me", session.id, [Message.user("hi")])
        assert [file.data for file in turn.files] == [b"1,2"]
        await store.delete_document("me", session.id, first.id)
        assert [document.title for document in await store.documents("me", session.id)] == ["A"]
        with pytest.raises(NotFoundError):
            await store.delete_document("me", session.id, first.id)
        await store.delete_session("me", session.id)
        with pytest.raises(NotFoundError):
            await store.turns("me", session.id)

    run(main)


class Crash(BaseException):
    """What no handler catches: the process is gone."""


class Crashing(StoreJournal):
    """Dies before, or right after, its nth write."""

    def __init__(self, store: SessionStore, at: int, *, after: bool) -> None:
        super().__init__(store, "me")
        self.left, self.after, self.died = at, after, False

    async def _crash(self, write: Callable[[], Awaitable[None]]) -> None:
        if self.died:
            raise Crash
        if self.left == 0 and not self.after:
            self.died = True
            raise Crash
        await write()
        if self.left == 0:
            self.died = True
            raise Crash
        self.left -= 1

    async def save_turn(self, turn: Turn) -> None:
        await self._crash(lambda: StoreJournal.save_turn(self, turn))

    async def save_step(self, turn: Turn, step: Step) -> None:
        await self._crash(lambda: StoreJournal.save_step(self, turn, step))


def conversation(request: Any) -> Say:
    """Says what comes next, by what stands in the conversation: look and send at once, then answer."""
    results = [message.text for message in request.messages if message.role == "tool"]
    return Say(f"done: {' / '.join(results)}") if results else Say("", (call("look"), call("send", to="anna")))


@pytest.mark.parametrize("after", [False, True])
def test_a_turn_that_crashed_at_any_step_ends_and_nothing_outside_happens_twice_in_silence(store: SessionStore, after: bool) -> None:
    async def once(at: int) -> bool:
        session = await store.create_session("me")
        look, send, asked = Noted("look"), Noted("send", gives="sent", taint=SEND), []

        async def approve(step: Any, turn: Turn) -> Any:
            asked.append(step.why)
            return "deny"

        journal = Crashing(store, at, after=after)
        tools = Toolset([look, send])
        turn = await store.begin_turn("me", session.id, [Message.user("go")])
        dying = asyncio.ensure_future(play(Runtime(inference=Scripted(conversation), tools=tools, journal=journal), FREE, turn))
        done, _ = await asyncio.wait([dying], timeout=5)
        assert done
        if not journal.died:
            assert isinstance(dying.result()[-1], TurnFinished)
            return False
        dying.exception()
        for owner, session_id, turn_id in await store.open_turns():
            back = await store.turn(owner, session_id, turn_id)
            fresh = Runtime(inference=Scripted(conversation), tools=tools, journal=StoreJournal(store, owner), approve=approve)
            await play(fresh, FREE, back)
        (kept,) = await store.turns("me", session.id)
        assert kept.status == "completed" and kept.text.startswith("done: "), (at, kept)
        assert len(send.calls) <= 1
        outcome = next(step for step in kept.tool_steps if step.call.name == "send")
        if asked:
            assert asked == ["interrupted"] and outcome.error_code == "unknown_outcome"
        else:
            assert len(send.calls) == 1 and outcome.text == "sent"
        assert len(kept.tool_steps) == 2 and len({step.id for step in kept.steps}) == len(kept.steps)
        return True

    async def main() -> int:
        at = 0
        while await once(at):
            at += 1
        return at

    assert run(main) >= 7


def test_a_person_may_have_an_interrupted_call_run_again(store: SessionStore) -> None:
    async def main() -> None:
        session = await store.create_session("me")
        send = Noted("send", gives="sent", taint=SEND)
        turn = await store.begin_turn("me", session.id, [Message.user("go")])
        journal = StoreJournal(store, "me")
        model = Scripted([Say("", (call("send"),)), Say("sent it")])

        class Dies(Noted):
            async def call(self, arguments: Any, context: Any) -> Any:
                raise Crash

        task = asyncio.ensure_future(play(Runtime(inference=model, tools=Toolset([Dies("send", taint=SEND)]), journal=journal), FREE, turn))
        await asyncio.wait([task])
        task.exception()
        back = await store.turn("me", session.id, turn.id)
        assert back.tool_steps[0].state == "running"
        runtime = Runtime(inference=model, tools=Toolset([send]), journal=journal)
        await play(runtime, FREE, back)
        (waiting,) = back.waiting
        assert waiting.why == "interrupted" and not send.calls and back.status == "waiting"
        back.answer(decisions={waiting.call_id: "once"})
        await play(runtime, FREE, back)
        assert len(send.calls) == 1 and back.text == "sent it" and back.tool_steps[0].attempts == 2

    run(main)
