"""`herd.Agent`: functions as tools, sessions, approval, memory, plain and async code."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

import herd
from herd.agents.agent import Agent, ApprovalRequest
from herd.agents.config import UNKNOWN_TAINT, ClientTool
from herd.agents.events import AnswerDelta, TurnFinished
from herd.agents.function_tool import FunctionTool, read_docstring
from herd.base.errors import FormatError, NotFoundError, UsageError
from herd.text.messages import ToolDefinition
from herd.tools.errors import ToolArgumentsError
from herd.tools.tool import Attachment, Taint, ToolContext
from scripted_agent import Say, Scripted, call  # pyright: ignore[reportMissingImports]


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


@dataclass
class Report:
    town: str
    degrees: int


def weather(town: str, unit: Unit = Unit.C, days: Annotated[int, "How many days."] = 1, when: Literal["now", "later"] = "now") -> Report:
    """Tells the weather.

    Args:
        town: where,
            as people call it.
        unit: of the answer.
    """
    return Report(town=town, degrees=20 if unit is Unit.C else 68)


def test_a_function_is_a_tool_by_its_signature_and_docstring() -> None:
    made = FunctionTool(weather)
    assert (made.name, made.description, made.taint) == ("weather", "Tells the weather.", UNKNOWN_TAINT)
    fields = made.parameters["properties"]
    assert fields["town"]["description"] == "where, as people call it." and fields["town"]["type"] == "string"
    assert fields["days"]["description"] == "How many days." and fields["days"]["default"] == 1
    assert made.parameters["required"] == ["town"] and made.parameters["additionalProperties"] is False
    result = asyncio.run(made.call({"town": "Bern", "unit": "fahrenheit"}, ToolContext()))
    assert result.text == '{"town": "Bern", "degrees": 68}'
    with pytest.raises(ToolArgumentsError, match="unit"):
        asyncio.run(made.call({"town": "Bern", "unit": "kelvin"}, ToolContext()))


def test_an_async_function_and_one_that_asks_for_the_context() -> None:
    @herd.tool(name="who", reads_private=True, timeout_s=5.0)
    async def function(context: ToolContext) -> str:
        return context.session_id

    made = FunctionTool(function)
    assert made.taint == Taint(reads_private=True) and made.limits.timeout_s == 5 and made.parameters.get("properties", {}) == {}
    assert asyncio.run(made.call({}, ToolContext(session_id="s1"))).text == "s1"


@pytest.mark.parametrize(
    ("function", "words"),
    [(lambda x: x, "no name of a tool"), (lambda: 1, "no name of a tool")],
)
def test_a_lambda_is_no_tool_without_a_name(function: Any, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        FunctionTool(function)


def test_a_function_without_types_or_with_stars_is_refused() -> None:
    def untyped(town):  # type: ignore[no-untyped-def]
        return town

    def stars(*towns: str) -> str:
        return ""

    with pytest.raises(FormatError, match="'town' of untyped has no type"):
        FunctionTool(untyped)
    with pytest.raises(FormatError, match="'towns' of stars has no name of its own"):
        FunctionTool(stars)


def test_a_docstring_without_sections_is_all_description() -> None:
    assert read_docstring("One.\n\nTwo.") == ("One.\n\nTwo.", {})


def ask_weather(request: Any) -> Say:
    results = [message.text for message in request.messages if message.role == "tool"]
    return Say(f"it says {results[-1]}") if results else Say("", (call("weather", town="Bern"),))


def test_an_agent_runs_a_function_and_answers() -> None:
    with Agent(Scripted(ask_weather), tools=[weather], instructions="Be brief.") as agent:
        result = agent.ask("How is it in Bern?")
        assert result.text == 'it says {"town": "Bern", "degrees": 20}' and result.status == "completed"
        assert [made.name for made in result.tool_calls] == ["weather"]
        assert agent.tool_labels() == {"weather": UNKNOWN_TAINT}
        assert result.to_dict()["steps"][0]["kind"] == "shield_call"


def test_an_agent_streams_to_plain_and_to_async_code() -> None:
    with Agent(Scripted([Say("one two three")]), shields=()) as agent:
        words = [event.text for event in agent.stream("go") if isinstance(event, AnswerDelta)]
        assert "".join(words) == "one two three"

        async def main() -> list[Any]:
            session = await agent.asession()
            events = [event async for event in session.astream("go")]
            assert (await session.aask("again")).text == "one two three"
            assert (await agent.aask("go")).status == "completed"
            return events

        assert isinstance(asyncio.run(main())[-1], TurnFinished)


def test_leaving_a_stream_early_cancels_its_turn() -> None:
    with Agent(Scripted([Say("one two", hangs=True), Say("again")]), shields=()) as agent:
        session = agent.session()
        for event in session.stream("go"):
            if isinstance(event, AnswerDelta):
                break
        assert session.turns[0].status == "cancelled"
        assert session.ask("more").text == "again"


def test_a_session_goes_on_in_another_process(tmp_path: Path) -> None:
    place = tmp_path / "agents.db"
    with Agent(Scripted([Say("first")]), store=place, shields=()) as agent:
        session = agent.session(name="talk")
        session.ask("one")
    model = Scripted([Say("second")])
    with Agent(model, store=str(place), shields=()) as agent:
        assert [record.name for record in agent.sessions()] == ["talk"]
        agent.session(session.id).ask("two")
        assert [message.text for message in model.requests[0].messages] == ["one", "first", "two"]
        with pytest.raises(NotFoundError, match="there is no session 'session_x'"):
            agent.session("session_x")


@pytest.mark.parametrize(("said", "runs"), [(True, 1), ("always", 1), (False, 0), ("perhaps", 0), (None, 0)])
def test_a_person_is_asked_by_a_callback(said: Any, runs: int) -> None:
    asked: list[ApprovalRequest] = []
    sent: list[str] = []

    @herd.tool(acts_outside=True, approval="ask")
    def send(to: str) -> str:
        """Sends."""
        sent.append(to)
        return "sent"

    def approve(request: ApprovalRequest) -> Any:
        asked.append(request)
        return said

    with Agent(Scripted([Say("", (call("send", to="anna"),)), Say("done")]), tools=[send], approve=approve, shields=()) as agent:
        assert agent.ask("go").text == "done"
    assert len(sent) == runs and asked[0].tool == "send" and asked[0].arguments == {"to": "anna"} and asked[0].why == "policy"


def test_a_turn_waits_where_nobody_can_be_asked_and_goes_on_with_an_answer() -> None:
    sent: list[str] = []

    @herd.tool(acts_outside=True, approval="ask")
    async def send(to: str) -> str:
        """Sends."""
        sent.append(to)
        return "sent"

    phone = ClientTool(definition=ToolDefinition(name="phone"), taint=Taint())
    with Agent(Scripted([Say("", (call("send", to="a"), call("phone"))), Say("done")]), tools=[send, phone], shields=()) as agent:
        session = agent.session()
        result = session.ask("go")
        assert result.status == "waiting" and not sent and [step.state for step in result.waiting] == ["approval", "client"]
        approval, client = result.waiting
        result = session.answer({client.call_id: "rings"}, {approval.call_id: "once"})
        assert result.text == "done" and sent == ["a"]


def test_an_answer_has_the_form_that_was_asked_for() -> None:
    from pydantic import BaseModel

    class Town(BaseModel):
        name: str
        size: int

    with Agent(Scripted([Say('{"name": "Bern", "size": 3}')]), response=Town, shields=()) as agent:
        assert agent.ask("go").parsed == Town(name="Bern", size=3)
    with Agent(Scripted([Say('{"a": 1}')]), response={"type": "object"}, shields=()) as agent:
        assert agent.ask("go").parsed == {"a": 1}
    with (
        Agent(Scripted([Say('{"a"')]), response={"type": "object"}, shields=()) as agent,
        pytest.raises(herd.HerdError, match="not in the form"),
    ):
        agent.ask("go")


def test_a_session_remembers_documents_and_citations_are_checked(tmp_path: Path) -> None:
    def script(request: Any) -> Say:
        if any(message.role == "tool" for message in request.messages):
            return Say("Llamas live in the Andes [1]. They like jazz [7].")
        return Say("", (call("knowledge_search", query="where do llamas live"),))

    model = Scripted(script)
    (tmp_path / "llamas.md").write_text("Llamas live in the Andes of South America.\n")
    with Agent(model, shields=()) as agent:
        session = agent.session()
        document = session.remember(tmp_path / "llamas.md")
        session.remember("The moon is far away.", title="Moon")
        result = session.ask("Where do llamas live?")
        (citation,) = result.citations
        assert (citation.number, citation.document_id, citation.title) == (1, document, "llamas.md") and citation.support == 1.0
        assert result.false_citations == (7,)
        assert session.record.taint == Taint(reads_untrusted=True, reads_private=True)
    with Agent(model, shields=(), memory="always") as agent:
        session = agent.session()
        session.remember("Llamas live in the Andes.", title="L")
        result = session.ask("Where do llamas live?")
        assert [step.kind for step in result.steps] == ["memory_retrieval", "inference"] and result.citations[0].title == "L"


def test_files_of_a_session_reach_the_tools(tmp_path: Path) -> None:
    @herd.tool
    def names(context: ToolContext) -> str:
        """Lists."""
        return ",".join(file.name for file in context.files)

    (tmp_path / "a.csv").write_text("1")
    with Agent(Scripted([Say("", (call("names"),)), Say("done")]), tools=[names], shields=()) as agent:
        session = agent.session()
        session.add_file(tmp_path / "a.csv")
        session.add_file(Attachment(name="b.txt", mime_type="text/plain", data=b""))
        assert session.ask("go").steps[1].text == "a.csv,b.txt"
        with pytest.raises(UsageError, match="cannot read"):
            session.add_file(tmp_path / "none")


def test_an_error_of_the_model_is_raised_with_its_code() -> None:
    from herd.base.errors import ContextOverflowError

    with Agent(Scripted([Say(error=ContextOverflowError("too long", hint="shorten"))]), shields=()) as agent:
        with pytest.raises(herd.HerdError, match="too long") as told:
            agent.ask("go")
        assert told.value.code == "context_overflow"


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(UsageError, match="base_url names a server"):
        Agent(Scripted([]), base_url="http://127.0.0.1:1/v1")
    with pytest.raises(UsageError, match="is no tool"):
        Agent(Scripted([]), tools=[3])
    with pytest.raises(UsageError, match="there is no web_search here: no provider"):
        Agent(Scripted([]), tools=["web_search"])


def test_built_in_tools_come_by_name() -> None:
    with Agent(Scripted([Say("", (call("clock"),)), Say("done")]), tools=["clock"], shields=()) as agent:
        assert "UTC" in agent.ask("go").steps[1].text


@pytest.fixture(autouse=True)
def plain_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HERD_HOME", str(tmp_path / "home"))
    for name in ("BRAVE_SEARCH_API_KEY", "TAVILY_SEARCH_API_KEY", "HERD_SEARXNG_URL", "HERD_SEARCH_INDEX"):
        monkeypatch.delenv(name, raising=False)
    yield
