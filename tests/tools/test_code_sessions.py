"""Sessions: an interpreter for each conversation, a pool of warm ones, an end for the idle, cancelling, and the tool over them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from jail_fixtures import SMALL, any_jail_spec  # pyright: ignore[reportMissingImports]

from herd.tools.code.session import CodeSessions
from herd.tools.code.tool import CodeInterpreterTool
from herd.tools.errors import JailError
from herd.tools.registry import Registry, ToolGroup
from herd.tools.tool import Attachment, ToolContext


@pytest.fixture(name="sessions")
def sessions_fixture() -> Iterator[CodeSessions]:
    sessions = CodeSessions(any_jail_spec(replace(SMALL, run_s=20.0)), warm=1, max_sessions=2)
    yield sessions
    sessions.close()


def until(condition: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.02)
    assert condition()  # type: ignore[operator]


def test_sessions_do_not_see_one_another(sessions: CodeSessions) -> None:
    assert sessions.run_blocking("a", "x = 1; open('f', 'w').write('a')").status == "completed"
    assert sessions.run_blocking("b", "'x' in globals(), __import__('os').path.exists('f')").result == "(False, False)"
    assert sessions.run_blocking("a", "x").result == "1"


def test_a_warm_interpreter_is_taken_and_replaced(sessions: CodeSessions) -> None:
    until(lambda: sessions.num_warm == 1)
    sessions.run_blocking("a", "1")
    until(lambda: sessions.num_warm == 1)


def test_the_session_unused_for_longest_gives_way_and_is_told(sessions: CodeSessions) -> None:
    sessions.run_blocking("a", "x = 1")
    sessions.run_blocking("b", "x = 2")
    sessions.run_blocking("c", "x = 3")
    assert sessions.num_sessions == 2
    outcome = sessions.run_blocking("a", "'x' in globals()")
    assert outcome.result == "False"
    assert "earlier variables and files of this session are gone" in outcome.text()
    assert "are gone" not in sessions.run_blocking("a", "1").text()


def test_idle_sessions_end() -> None:
    sessions = CodeSessions(any_jail_spec(), warm=0, idle_s=0.2)
    try:
        sessions.run_blocking("a", "1")
        until(lambda: sessions.num_sessions == 0)
    finally:
        sessions.close()


def test_many_at_once_are_not_mixed(sessions: CodeSessions) -> None:
    async def main() -> list[str | None]:
        runs = [sessions.run(f"s{number % 2}", f"import time; time.sleep(0.01); {number}") for number in range(12)]
        return [outcome.result for outcome in await asyncio.gather(*runs)]

    assert asyncio.run(main()) == [str(number) for number in range(12)]


def test_cancelling_ends_the_run_and_the_session_begins_anew(sessions: CodeSessions) -> None:
    async def main() -> None:
        await sessions.run("a", "x = 1")
        task = asyncio.create_task(sessions.run("a", "import time; time.sleep(60)"))
        await asyncio.sleep(0.3)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        outcome = await sessions.run("a", "'x' in globals()")
        assert outcome.result == "False"
        assert time.monotonic() - started < 30

    asyncio.run(main())


def test_cancelling_one_that_waits_leaves_the_one_that_runs(sessions: CodeSessions) -> None:
    async def main() -> None:
        running = asyncio.create_task(sessions.run("a", "import time; time.sleep(1); 'done'"))
        await asyncio.sleep(0.3)
        waiting = asyncio.create_task(sessions.run("a", "1"))
        await asyncio.sleep(0.1)
        waiting.cancel()
        assert (await running).result == "'done'"

    asyncio.run(main())


def test_a_session_that_is_busy_does_not_stop_another(sessions: CodeSessions) -> None:
    async def main() -> None:
        slow = [asyncio.create_task(sessions.run("a", "import time; time.sleep(2)")) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert (await sessions.run("b", "1")).result == "1"
        assert not slow[1].done()
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    asyncio.run(main())


def test_a_dead_interpreter_is_replaced(sessions: CodeSessions) -> None:
    assert sessions.run_blocking("a", "import os; os._exit(1)").ended == "ended"
    assert sessions.run_blocking("a", "1").result == "1"


def test_files_of_the_conversation_are_there_and_come_again_after_a_crash(sessions: CodeSessions) -> None:
    file = Attachment(name="d.csv", mime_type="text/csv", data=b"1,2")
    for code in ("open('d.csv').read()", "import os; os._exit(1)", "open('d.csv').read()"):
        outcome = sessions.run_blocking("a", code, files=(file,))
    assert outcome.result == "'1,2'"
    assert outcome.attachments == ()


def test_closing_ends_a_run_and_refuses_the_next() -> None:
    sessions = CodeSessions(any_jail_spec(replace(SMALL, run_s=60.0)), warm=0)

    async def main() -> None:
        task = asyncio.create_task(sessions.run("a", "import time; time.sleep(60)"))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(sessions.close)
        assert (await task).ended == "cancelled"

    asyncio.run(main())
    with pytest.raises(JailError, match="is closed"):
        sessions.run_blocking("a", "1")


def test_closing_while_an_interpreter_starts_ends_it() -> None:
    sessions = CodeSessions(any_jail_spec(replace(SMALL, run_s=60.0)), warm=0)

    async def main() -> None:
        task = asyncio.create_task(sessions.run("a", "import time; time.sleep(60)"))
        await asyncio.sleep(0)
        await asyncio.to_thread(sessions.close)
        assert (await task).ended == "cancelled"

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 40


def test_the_tool_runs_code_in_the_session_of_its_context(sessions: CodeSessions) -> None:
    registry = Registry([ToolGroup(name="code", description="", tools=(CodeInterpreterTool(sessions),))])

    async def main() -> None:
        context = ToolContext(session_id="t", files=(Attachment(name="a.txt", mime_type="text/plain", data=b"hi"),))
        first = await registry.call("code_interpreter", {"code": "x = open('a.txt').read()\nopen('b.txt', 'w').write(x * 2)"}, context)
        assert (first.ok, first.text) == (True, "completed\n[stdout]\n4\n[/stdout]\n[files: b.txt]")
        assert [(file.name, file.data) for file in first.attachments] == [("b.txt", b"hihi")]
        failed = await registry.call("code_interpreter", {"code": "1/0"}, context)
        assert (failed.ok, failed.error_code) == (False, "code_failed")
        assert "ZeroDivisionError" in failed.text
        assert (await registry.call("code_interpreter", {"code": 3}, context)).error_code == "tool_arguments"

    asyncio.run(main())
