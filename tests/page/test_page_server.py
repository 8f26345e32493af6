"""What runs on the server, seen in the page: documents and citations, code and plots, MCP calls that ask, guards that end an answer.

Everything is real but the model's words: the stores and their embeddings, the jail, an MCP server, the shields. The engine embeds as the
tiny model does, and answers with the lines that a test gives it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from browser import Reader  # pyright: ignore[reportMissingImports]
from live_server import ThreadServer, tokenizer  # pyright: ignore[reportMissingImports]
from mcp.server.mcpserver import MCPServer
from playwright.sync_api import expect

from herd.engine.stream import Admitted, Emit, TokenRequest, Tokens
from herd.stack import server as stack_server
from herd.stack.engine_process import EngineProcess, RequestHandle

Open = Callable[..., Reader]
SECRET = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7bq0\n-----END RSA PRIVATE KEY-----"
PLOT = """import base64
data = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
open("plot.png", "wb").write(base64.b64decode(data))
print("drawn")"""


class TalkingEngine(EngineProcess):
    """The tiny model, which says a test's lines while there are any."""

    lines: list[str] = []  # noqa: RUF012 - one list for the one engine of this module

    async def submit(self, request: TokenRequest, emit: Emit) -> RequestHandle:
        """Embeddings are the model's own."""
        if request.embed is not None or not self.lines:
            return await super().submit(request, emit)
        ids = [*tokenizer().encode(self.lines.pop(0), allowed_special="all"), tokenizer().eot_id]

        async def say() -> None:
            emit(Admitted(num_cached=0))
            for place in range(0, len(ids), 4):
                await asyncio.sleep(0)
                emit(Tokens(index=0, ids=tuple(ids[place : place + 4]), finish="stop" if place + 4 >= len(ids) else None))

        task = asyncio.ensure_future(say())
        return RequestHandle(lambda index: task.cancel())


@pytest.fixture(scope="module", name="talking")
def talking_fixture() -> Iterator[ThreadServer]:
    """The server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack_server, "EngineProcess", TalkingEngine)
        server = ThreadServer(shields=("secrets",), mcp_networks=("127.0.0.0/8",))
    yield server
    server.stop()


@pytest.fixture(scope="module", name="remote")
def remote_fixture() -> Iterator[str]:
    """An MCP server with one tool."""
    server: Any = MCPServer("adder")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b

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


def call(name: str, **arguments: Any) -> str:
    """A call, as the model writes it."""
    return json.dumps({"name": name, "parameters": arguments})


def lines(*texts: str) -> None:
    """What the model says next."""
    TalkingEngine.lines[:] = texts


def test_documents_are_stored_searched_and_cited_and_the_citation_opens_its_passage(
    open_page: Open, talking: ThreadServer, tmp_path: Path
) -> None:
    (tmp_path / "llamas.txt").write_text("Llamas hum when they are content.", encoding="utf-8")
    reader = open_page(server=talking)
    page = reader.page
    page.get_by_role("button", name="Documents").click()
    page.get_by_label("Name of a collection").fill("Animals")
    page.get_by_role("button", name="New collection").click()
    card = page.locator("dialog section.card", has_text="Animals")
    card.locator("input[type=file]").set_input_files(tmp_path / "llamas.txt")
    expect(card.locator("li")).to_contain_text("llamas.txt")
    expect(card.locator("li")).to_contain_text("completed")
    page.keyboard.press("Escape")
    page.get_by_label("Tools of this chat").click()
    page.get_by_label("file_search: Animals").check()
    page.keyboard.press("Escape")
    lines(call("file_search", query="what llamas do"), "They hum [1].")
    reader.ask("What do llamas do?")
    expect(reader.last.locator(".markdown")).to_contain_text("They hum")
    reader.wait()
    search = reader.last.locator(".tool")
    expect(search).to_contain_text("file_search")
    search.locator("summary").click()
    expect(search.locator(".arguments")).to_contain_text("what llamas do")
    expect(search.locator(".result")).to_contain_text("Llamas hum when they are content.")
    reader.last.locator(".trace summary").click()
    expect(reader.last.locator(".trace li").first).to_be_visible()
    expect(reader.last.locator(".stats")).to_contain_text("tokens")
    reader.last.locator(".citations .chip", has_text="llamas.txt").click()
    expect(page.locator("dialog mark")).to_have_text("Llamas hum when they are content.")
    page.keyboard.press("Escape")
    # And a chat goes on with all of it.
    lines("Yes, when content.")
    reader.ask("Always?")
    expect(reader.last.locator(".markdown")).to_have_text("Yes, when content.")
    page.get_by_role("button", name="Documents").click()
    expect(card.locator("li")).to_contain_text("llamas.txt")  # till it is there the card may still grow, and move
    with page.expect_response(lambda response: response.request.method == "DELETE") as deleted:
        card.get_by_label("Delete Animals").click()
    assert deleted.value.status == 200, deleted.value.text()
    expect(card).to_have_count(0)


def test_code_runs_in_the_jail_and_its_plot_is_shown(open_page: Open, talking: ThreadServer) -> None:
    reader = open_page(server=talking)
    page = reader.page
    page.get_by_label("Tools of this chat").click()
    page.locator("input[name='server:code_interpreter']").check()
    page.keyboard.press("Escape")
    lines(call("code_interpreter", code=PLOT), "Here is the plot.")
    reader.ask("Draw.")
    expect(reader.last.locator(".markdown")).to_have_text("Here is the plot.")
    reader.wait()
    ran = reader.last.locator(".tool")
    ran.locator("summary").click()
    if "jail" in ran.locator(".result").inner_text():
        pytest.skip("no jail works on this machine")
    expect(ran.locator(".arguments")).to_contain_text("base64.b64decode")
    expect(ran.locator(".result")).to_contain_text("drawn")
    plot = reader.last.locator("figure img")
    expect(plot).to_be_visible()
    assert plot.evaluate("image => image.complete && image.naturalWidth") == 1
    with page.expect_download() as found:
        reader.last.locator("figure").get_by_label("Save").click()
    assert Path(found.value.path()).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("allowed", [True, False])
def test_an_mcp_call_asks_first(open_page: Open, talking: ThreadServer, remote: str, allowed: bool) -> None:
    reader = open_page(server=talking)
    page = reader.page
    page.get_by_label("Tools of this chat").click()
    page.get_by_label("MCP server: name and address").fill(f"sums {remote}")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_label(f"mcp: sums {remote}")).to_be_checked()
    page.keyboard.press("Escape")
    lines(call("add", a=2, b=3), "It is five." if allowed else "Then not.")
    reader.ask("What is 2 + 3?")
    asked = page.locator(".tool.asks")
    expect(asked).to_contain_text("add")
    expect(asked).to_contain_text("sums")
    asked.get_by_role("button", name="Allow" if allowed else "Deny", exact=True).click()
    expect(reader.last.locator(".markdown")).to_have_text("It is five." if allowed else "Then not.")
    if allowed:
        ran = reader.last.locator(".tool")
        ran.locator("summary").click()
        expect(ran.locator(".result")).to_have_text("5")


def test_a_guards_verdict_is_shown_where_it_ended_an_answer(open_page: Open, talking: ThreadServer) -> None:
    reader = open_page(server=talking)
    lines(f"Here it is:\n\n{SECRET}\n\nKeep it safe.")
    reader.ask("Show me the key.")
    note = reader.last.get_by_role("note")
    expect(note).to_contain_text("A guard ended this answer")
    expect(note.locator("summary")).to_contain_text("secrets")
    assert "MIIEowIBAAKCAQEA7bq0" not in reader.page.locator(".scroll-log").inner_text()
