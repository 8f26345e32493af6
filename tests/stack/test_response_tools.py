"""Responses with tools of the server's: the events of every kind of output, approvals, limits, and what is kept and what is told."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from mcp.server.mcpserver import MCPServer
from scripted_app import Script, kinds, scripted  # pyright: ignore[reportMissingImports]
from sqlalchemy import select

from herd.base.errors import NotFoundError
from herd.stack.responses.equipment import Equipment
from herd.stack.responses.kit import Found
from herd.stack.toolkit import networks_of
from herd.store.database import Database, sqlite_url
from herd.store.tables.registrations import RegistrationRow
from herd.tools.files.index import FileIndex, build_index
from herd.tools.registry import ToolGroup
from herd.tools.tool import Attachment, Taint, ToolContext, ToolLimits, ToolResult
from herd.tools.toolbox import Toolbox, ToolboxConfig, open_toolbox
from herd.tools.web.address import WebPolicy
from herd.tools.web.search import Offline, WebSearchTool

BEGIN = ["response.created", "response.in_progress"]
MESSAGE = ["response.output_item.added", "response.content_part.added", "response.output_text.delta", "response.output_text.done",
           "response.content_part.done", "response.output_item.done"]  # fmt: skip
LOCAL = WebPolicy(ports=frozenset(range(1, 65536)), allowed_networks=networks_of(["127.0.0.0/8"]))
ADDED, DONE = "response.output_item.added", "response.output_item.done"


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "parameters": arguments})


class Interpreter:
    """Stands for the jail: says what it was given, with a picture."""

    name = "code_interpreter"
    description = "Runs Python."
    parameters: Mapping[str, Any] = {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}
    taint = Taint()
    limits = ToolLimits()

    def __init__(self) -> None:
        self.sessions: list[str] = []

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        self.sessions.append(context.session_id)
        return ToolResult(text=f"ran {arguments['code']}", attachments=(Attachment(name="a.png", mime_type="image/png", data=b"png"),))


class Shelf:
    """Two files in a vector store of Anna's, or of everyone's."""

    def __init__(self, owner: str = "") -> None:
        self.owner = owner
        self.asked: list[Any] = []

    async def check(self, owner: str, store_ids: Sequence[str]) -> None:
        for store_id in store_ids:
            if owner != self.owner or store_id != "vs_1":
                raise NotFoundError(f"there is no vector store {store_id!r}")

    async def __call__(
        self, owner: str, store_ids: Sequence[str], query: str, *, limit: int, filters: Mapping[str, Any] | None, least: float
    ) -> list[Found]:
        self.asked.append((query, limit, filters, least))
        return [Found(file_id="file-1", filename="herd.txt", text="The herd has 21 sheep.", score=0.9, attributes={"year": 2024})]


def toolbox(tmp_path: Path, interpreter: Interpreter) -> Toolbox:
    (tmp_path / "pages").mkdir(exist_ok=True)
    (tmp_path / "pages" / "rivers.txt").write_text("A river is water that flows to the sea.")
    build_index(tmp_path / "pages", tmp_path / "index.db")
    box = Toolbox()
    search = WebSearchTool(Offline(FileIndex(tmp_path / "index.db")))
    box.registry.register(ToolGroup(name="builtin::websearch", description="", tools=(search,)))
    box.registry.register(ToolGroup(name="builtin::code_interpreter", description="", tools=(interpreter,)))
    return box


def equipped(tmp_path: Path, *, shelf: Shelf | None = None, interpreter: Interpreter | None = None) -> Equipment:
    box = toolbox(tmp_path, interpreter or Interpreter())

    async def made() -> Toolbox:
        return box

    return Equipment(made, vectors=shelf, policy=LOCAL)


@pytest.fixture(scope="module", name="remote")
def remote_fixture() -> Iterator[str]:
    """An MCP server with two tools."""
    server: Any = MCPServer("adder")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b

    @server.tool()
    def boom() -> str:
        """Fails."""
        raise ValueError("boom")

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="error", lifespan="on", ws="none"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{sock.getsockname()[1]}/mcp"
    running.should_exit = True
    thread.join(20)
    sock.close()


async def streamed(app: Any, **fields: Any) -> list[Any]:
    return [event async for event in await app.openai().responses.create(**{"model": "tiny", "input": "?", "stream": True, **fields})]


def test_the_events_of_a_file_search_and_its_citation(tmp_path: Path) -> None:
    async def check() -> None:
        shelf = Shelf()
        engine = Script(call("file_search", query="sheep"), "There are 21 sheep [1].")
        async with scripted(engine, tmp_path, equipment=equipped(tmp_path, shelf=shelf)) as app:
            tool: Any = {"type": "file_search", "vector_store_ids": ["vs_1"], "max_num_results": 3,
                         "filters": {"type": "eq", "key": "year", "value": 2024}}  # fmt: skip
            events = await streamed(app, tools=[tool], include=["file_search_call.results"])
            searched = [ADDED, *(f"response.file_search_call.{word}" for word in ("in_progress", "searching", "completed")), DONE]
            annotated = [*MESSAGE[:3], "response.output_text.annotation.added", *MESSAGE[3:]]
            assert kinds(events) == [*BEGIN, *searched, *annotated, "response.completed"]
            response = events[-1].response
            search, message = response.output
            assert search.queries == ["sheep"] and search.results[0].text == "The herd has 21 sheep." and search.status == "completed"
            (note,) = message.content[0].annotations
            assert (note.type, note.file_id, note.filename) == ("file_citation", "file-1", "herd.txt")
            assert shelf.asked == [("sheep", 3, tool["filters"], 0.0)]
            assert "The herd has 21 sheep." in engine.prompts[1]
            plain = await app.openai().responses.retrieve(response.id)
            assert plain.output[0].results is None  # type: ignore[union-attr]
            shown = await app.openai().responses.retrieve(response.id, include=["file_search_call.results"])
            assert shown.output[0].results[0].file_id == "file-1"  # type: ignore[union-attr,index]
            await app.openai().responses.create(model="tiny", input="And?", previous_response_id=response.id)
            assert "The herd has 21 sheep." in engine.prompts[2]
            with pytest.raises(openai.NotFoundError):
                await app.openai().responses.create(model="tiny", input="?", tools=[{**tool, "vector_store_ids": ["vs_2"]}])

    asyncio.run(check())


def test_the_events_of_a_web_search(tmp_path: Path) -> None:
    async def check() -> None:
        engine = Script(call("web_search", query="river"), "Water that flows.")
        async with scripted(engine, tmp_path, equipment=equipped(tmp_path)) as app:
            events = await streamed(app, tools=[{"type": "web_search"}], include=["web_search_call.action.sources"])
            searched = [ADDED, *(f"response.web_search_call.{word}" for word in ("in_progress", "searching", "completed")), DONE]
            assert kinds(events) == [*BEGIN, *searched, *MESSAGE, "response.completed"]
            search = events[-1].response.output[0]
            assert search.action.query == "river" and search.action.sources
            assert "flows to the sea" in engine.prompts[1]

    asyncio.run(check())


def test_the_events_of_code_and_its_container(tmp_path: Path) -> None:
    async def check() -> None:
        interpreter = Interpreter()
        engine = Script(call("code_interpreter", code="1 + 1"), "Two.", call("code_interpreter", code="2 + 2"), "Four.")
        async with scripted(engine, tmp_path, equipment=equipped(tmp_path, interpreter=interpreter)) as app:
            tool: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
            events = await streamed(app, tools=[tool], include=["code_interpreter_call.outputs"], tool_choice={"type": "code_interpreter"})
            words = ("call.in_progress", "call_code.delta", "call_code.done", "call.interpreting", "call.completed")
            assert kinds(events) == [
                *BEGIN, ADDED, *(f"response.code_interpreter_{word}" for word in words), DONE, *MESSAGE, "response.completed",
            ]  # fmt: skip
            response = events[-1].response
            ran = response.output[0]
            assert ran.code == "1 + 1" and ran.outputs[0].logs == "ran 1 + 1" and ran.outputs[1].url.startswith("data:image/png;base64,")
            assert "call" in str(engine.asked[0].grammar) or engine.asked[0].grammar is not None
            second = await app.openai().responses.create(model="tiny", input="?", tools=[tool], previous_response_id=response.id)
            assert second.output[0].container_id == ran.container_id  # type: ignore[union-attr]
            assert second.output[0].outputs is None  # type: ignore[union-attr]
            assert len(set(interpreter.sessions)) == 1 and ran.container_id not in interpreter.sessions

    asyncio.run(check())


def test_an_mcp_server_is_listed_called_and_fails(tmp_path: Path, remote: str) -> None:
    async def check() -> None:
        engine = Script(call("add", a=2, b=3), call("boom"), "Five, and a failure.")
        async with scripted(engine, tmp_path, equipment=equipped(tmp_path)) as app:
            tool: Any = {"type": "mcp", "server_label": "sums", "server_url": remote, "require_approval": "never",
                         "headers": {"X-Key": "s3cret"}}  # fmt: skip
            events = await streamed(app, tools=[tool])
            listing = [ADDED, "response.mcp_list_tools.in_progress", "response.mcp_list_tools.completed", DONE]
            called = [ADDED, "response.mcp_call.in_progress", "response.mcp_call_arguments.delta", "response.mcp_call_arguments.done"]
            assert kinds(events) == [
                *BEGIN, *listing, *called, "response.mcp_call.completed", DONE, *called, "response.mcp_call.failed", DONE,
                *MESSAGE, "response.completed",
            ]  # fmt: skip
            response = events[-1].response
            listed, added, failed = response.output[:3]
            assert [one.name for one in listed.tools] == ["add", "boom"] and listed.server_label == "sums"
            assert added.output == "5" and json.loads(added.arguments) == {"a": 2, "b": 3} and added.error is None
            assert failed.output is None and "boom" in json.dumps(failed.model_dump()["error"])
            assert "s3cret" not in json.dumps([event.model_dump() for event in events], default=str)
            # What was listed is not listed again.
            after = await app.openai().responses.create(model="tiny", input="?", tools=[tool], previous_response_id=response.id)
            assert [item.type for item in after.output] == ["message"]

    asyncio.run(check())


def test_a_registered_group_is_asked_again_after_a_restart_and_is_as_it_was_agreed_to(tmp_path: Path, remote: str) -> None:
    body = {"toolgroup_id": "mcp::adder", "provider_id": "model-context-protocol", "mcp_endpoint": {"uri": remote}}
    settings: dict[str, Any] = {"mcp_networks": ("127.0.0.0/8",)}

    async def check() -> None:
        async with scripted(Script("."), tmp_path, **settings) as app:
            assert (await app.http.post("/v1/toolgroups", json=body)).status_code == 200
            told = (await app.http.get("/v1/tools", params={"toolgroup_id": "mcp::adder"})).json()["data"]
            await app.service.close()
        async with scripted(Script("."), tmp_path, **settings) as app:
            assert (await app.http.get("/v1/tools", params={"toolgroup_id": "mcp::adder"})).json()["data"] == told != []
            call = {"tool_name": "adder__add", "kwargs": {"a": 2, "b": 3}}
            assert "5" in (await app.http.post("/v1/tool-runtime/invoke", json=call)).json()["content"]
            await app.service.close()
        # One whose tools are not what was agreed to is not offered.
        with Database(sqlite_url(tmp_path / "test.db")).write() as session:
            row = session.scalars(select(RegistrationRow)).one()
            row.thing = {**row.thing, "agreed": {**row.thing["agreed"], "add": "another digest"}}
        async with scripted(Script("."), tmp_path, **settings) as app:
            listed = (await app.http.get("/v1/tools", params={"toolgroup_id": "mcp::adder"})).json()
            assert [tool["name"] for tool in listed["data"]] == ["adder__boom"]
            assert listed["missing"]["adder__add"] == "changed since it was agreed to"
            await app.service.close()

    asyncio.run(check())


def test_a_call_waits_for_a_yes_and_a_no_is_told_to_the_model(tmp_path: Path, remote: str) -> None:
    async def check() -> None:
        engine = Script(call("add", a=2, b=3), "It is five.", call("add", a=2, b=3), "Then not.")
        async with scripted(engine, tmp_path, equipment=equipped(tmp_path)) as app:
            client = app.openai()
            tool: Any = {"type": "mcp", "server_label": "sums", "server_url": remote}
            events = await streamed(app, tools=[tool])
            assert kinds(events)[-3:] == [ADDED, DONE, "response.completed"]
            first = events[-1].response
            request = first.output[1]
            assert request.type == "mcp_approval_request" and json.loads(request.arguments) == {"a": 2, "b": 3}
            yes: Any = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
            second = await client.responses.create(model="tiny", input=[yes], tools=[tool], previous_response_id=first.id)
            ran: Any = second.output[0]
            assert ran.type == "mcp_call" and ran.output == "5" and ran.approval_request_id == request.id
            assert second.output_text == "It is five." and len(engine.asked) == 2
            third = await client.responses.create(model="tiny", input="?", tools=[tool])
            no: Any = {"type": "mcp_approval_response", "approval_request_id": third.output[1].id, "approve": False, "reason": "Too dear"}
            last = await client.responses.create(model="tiny", input=[no], tools=[tool], previous_response_id=third.id)
            assert last.output_text == "Then not." and "Too dear" in engine.prompts[3]

    asyncio.run(check())


def test_the_rule_of_two_asks_where_nobody_else_would(tmp_path: Path, remote: str) -> None:
    async def check() -> None:
        engine = Script(call("file_search", query="sheep"), call("add", a=2, b=3))
        async with scripted(engine, tmp_path, equipment=equipped(tmp_path, shelf=Shelf())) as app:
            tools: Any = [
                {"type": "file_search", "vector_store_ids": ["vs_1"]},
                {"type": "mcp", "server_label": "sums", "server_url": remote, "require_approval": "never"},
            ]
            found = await app.openai().responses.create(model="tiny", input="?", tools=tools)
            assert [item.type for item in found.output] == ["mcp_list_tools", "file_search_call", "mcp_approval_request"]

    asyncio.run(check())


def test_an_mcp_server_of_this_machine_is_not_reached_where_nobody_allowed_it(tmp_path: Path, remote: str) -> None:
    async def check() -> None:
        equipment = equipped(tmp_path)
        equipment._policy = WebPolicy(ports=LOCAL.ports)  # pyright: ignore[reportPrivateUsage]
        async with scripted(Script("No tools."), tmp_path, equipment=equipment) as app:
            tool: Any = {"type": "mcp", "server_label": "sums", "server_url": remote, "require_approval": "never"}
            found = await app.openai().responses.create(model="tiny", input="?", tools=[tool])
            listed: Any = found.output[0]
            assert listed.type == "mcp_list_tools" and listed.tools == [] and "cannot be reached" in listed.error

    asyncio.run(check())


def test_functions_beside_the_servers_tools_end_the_turn(tmp_path: Path) -> None:
    async def check() -> None:
        engine = Script(call("web_search", query="river"), call("get_weather", city="Lima"))
        async with scripted(engine, tmp_path, equipment=equipped(tmp_path)) as app:
            function: Any = {
                "type": "function",
                "name": "get_weather",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            }
            found = await app.openai().responses.create(model="tiny", input="?", tools=[{"type": "web_search"}, function])
            assert [item.type for item in found.output] == ["web_search_call", "function_call"] and found.status == "completed"
            assert found.usage is not None and found.usage.output_tokens > 10

    asyncio.run(check())


def test_calls_of_the_servers_tools_are_limited_and_an_answer_comes(tmp_path: Path) -> None:
    async def check() -> None:
        searches = [call("web_search", query=f"river {number}") for number in range(3)]
        engine = Script(*searches, "That is all I know.")
        async with scripted(engine, tmp_path, equipment=equipped(tmp_path)) as app:
            found = await app.openai().responses.create(model="tiny", input="?", tools=[{"type": "web_search"}], max_tool_calls=2)
            states = [item.status for item in found.output]  # type: ignore[union-attr]
            assert found.output_text == "That is all I know." and states == ["completed", "completed", "failed", "completed"]

    asyncio.run(check())


def test_a_schema_holds_the_text_after_tools(tmp_path: Path) -> None:
    async def check() -> None:
        engine = Script(call("web_search", query="river"), "A river flows.", '{"a": 1}')
        async with scripted(engine, tmp_path, equipment=equipped(tmp_path)) as app:
            schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
            text: Any = {"format": {"type": "json_schema", "name": "one", "schema": schema}}
            found = await app.openai().responses.create(model="tiny", input="?", tools=[{"type": "web_search"}], text=text)
            assert found.output_text == '{"a": 1}' and engine.asked[2].grammar is not None

    asyncio.run(check())


def test_a_tool_that_is_not_here_is_refused_with_the_reason(tmp_path: Path) -> None:
    async def check() -> None:
        box = Toolbox()
        box.missing["builtin::code_interpreter"] = "no jail works here"

        async def made() -> Toolbox:
            return box

        async with scripted(Script("?"), tmp_path, equipment=Equipment(made)) as app:
            for tool, told in (("code_interpreter", "no jail works here"), ("web_search", "not set up")):
                with pytest.raises(openai.BadRequestError) as caught:
                    await app.openai().responses.create(model="tiny", input="?", tools=[{"type": tool}])  # type: ignore[list-item]
                assert caught.value.code == "unsupported" and told in str(caught.value)

    asyncio.run(check())


def test_code_runs_in_the_jail_and_its_error_is_its_result(tmp_path: Path) -> None:
    async def check() -> None:
        box = await open_toolbox(ToolboxConfig(warm=0))
        if "builtin::code_interpreter" in box.missing:
            pytest.skip(box.missing["builtin::code_interpreter"])

        async def made() -> Toolbox:
            return box

        engine = Script(call("code_interpreter", code="x = 6 * 7\nprint(x)"), "It is 42.", call("code_interpreter", code="x / 0"), "No.")
        try:
            async with scripted(engine, tmp_path, equipment=Equipment(made)) as app:
                asked: Any = {"model": "tiny", "tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}
                asked["include"] = ["code_interpreter_call.outputs"]
                first = await app.openai().responses.create(**asked, input="?")
                ran: Any = first.output[0]
                assert ran.status == "completed" and "42" in ran.outputs[0].logs and "42" in engine.prompts[1]
                second = await app.openai().responses.create(**asked, input="?", previous_response_id=first.id)
                failed: Any = second.output[0]
                assert failed.status == "completed" and "ZeroDivisionError" in failed.outputs[0].logs
                assert failed.container_id == ran.container_id and "NameError" not in failed.outputs[0].logs
        finally:
            await box.close()

    asyncio.run(check())
