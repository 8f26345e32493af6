"""A real browser on a real server: Debian's Chromium, driven by Playwright, on the tiny model that says what a test tells it to.

What it says is forced by a grammar with one sentence (`structured_outputs`), put into the page's own request on its way: tokens come from
the engine, chunks from the server, and only the words from the test.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_server import ThreadServer  # pyright: ignore[reportMissingImports]
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Route, expect, sync_playwright

FULL = os.environ.get("HERD_TEST_FULL") == "1"
ALLOWED_NOISE = ("the server responded with a status of",)
"""What a browser says of every refusal, also of those that a test asks for."""

expect.set_options(timeout=120_000)


@pytest.fixture(name="browser", scope="module")
def browser_fixture() -> Iterator[Browser]:
    """One browser for a file of tests: while it is open, an event loop runs in this thread, and other tests start their own. Skips where
    there is none.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs a Chromium, and none is on the PATH (apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(name="site", scope="module")
def page_server() -> Iterator[ThreadServer]:
    """One server for a file of tests."""
    server = ThreadServer()
    yield server
    server.stop()


class Reader:
    """A page, and what the model will say next in it."""

    def __init__(self, page: Page, server: ThreadServer) -> None:
        self.page, self.server = page, server
        self.bodies: list[dict[str, Any]] = []
        """What the page sent, as it sent it."""
        self.problems: list[str] = []
        self.foreign: list[str] = []
        """Addresses of other hosts that the page wanted something from."""
        self._lines: list[dict[str, Any]] = []
        page.set_default_timeout(120_000)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.foreign.append(request.url) if not self._own(request.url) else None)
        page.route("**/v1/chat/completions", self._send)

    def _own(self, url: str) -> bool:
        return url.startswith((self.server.url, "data:", "blob:"))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(noise in message.text for noise in ALLOWED_NOISE):
            self.problems.append(message.text)

    def _send(self, route: Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        self.bodies.append(body)
        more = self._lines.pop(0) if self._lines else {}
        merged = {name: value for name, value in (body | more).items() if value is not None}
        route.continue_(post_data=json.dumps(merged))

    def will_say(self, *lines: str, **fields: Any) -> None:
        """The next answers, one a request."""
        # An answer of a fixed text and tools on offer exclude each other, so these are left out on the way.
        self._lines += [{"structured_outputs": {"choice": [line]}, "max_tokens": 8000, "tools": None, **fields} for line in lines]

    def will_call(self, name: str, **arguments: str) -> None:
        """The next answer is a call of a tool, with these arguments: the schema that the model has to follow allows no other."""
        schema = {"type": "object", "properties": {key: {"enum": [value]} for key, value in arguments.items()}, "required": list(arguments)}
        tool = {"type": "function", "function": {"name": name, "parameters": schema}}
        self._lines.append({"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False})

    def will_take(self, **fields: Any) -> None:
        """The next request gets these fields, and the model says what it likes."""
        self._lines.append(fields)

    def open(self, path: str = "/") -> Reader:
        """Go there, and wait until the model is ready."""
        self.page.goto(self.server.url + path)
        expect(self.page.locator(".bar .state-dot.ready")).to_be_visible()
        return self

    def ask(self, text: str, answer: str | None = None) -> Reader:
        """Send a message; with an answer, the model says that, and it is waited for."""
        if answer is not None:
            self.will_say(answer)
        self.page.locator("#prompt").fill(text)
        self.page.locator("#prompt").press("Enter")
        if answer is not None:
            self.wait()
        return self

    def wait(self) -> None:
        """Until nothing is being written."""
        expect(self.page.locator(".send.stop")).to_have_count(0)
        expect(self.page.locator(".scroll-log")).to_have_attribute("aria-busy", "false")

    @property
    def answers(self) -> Any:
        """The answers that are shown."""
        return self.page.locator(".message.answer")

    @property
    def last(self) -> Any:
        """The last one."""
        return self.answers.last

    def said(self) -> str:
        """What is told to those who cannot see."""
        return self.page.locator("div.unseen[role=status]").inner_text()


@pytest.fixture(name="serve")
def serve_fixture() -> Iterator[Callable[..., ThreadServer]]:
    """Starts servers of a test's own settings. They stop after its pages are closed: a page that asks a server that is gone complains."""
    servers: list[ThreadServer] = []

    def started(**settings: Any) -> ThreadServer:
        servers.append(ThreadServer(**settings))
        return servers[-1]

    yield started
    for server in servers:
        server.stop()


@pytest.fixture(name="open_page")
def open_page(browser: Browser, site: ThreadServer, serve: Callable[..., ThreadServer]) -> Iterator[Callable[..., Reader]]:
    """Opens pages, each in a profile of its own; at the end, none may have complained or asked another host for anything. They close before
    the servers of `serve` stop.
    """
    contexts: list[BrowserContext] = []
    readers: list[Reader] = []

    def opened(*, server: ThreadServer | None = None, path: str = "/", **options: Any) -> Reader:
        settings: dict[str, Any] = {"locale": "en-GB", "viewport": {"width": 1200, "height": 800}, "reduced_motion": "reduce"}
        context = browser.new_context(**(settings | options))
        contexts.append(context)
        reader = Reader(context.new_page(), server or site)
        readers.append(reader)
        return reader.open(path) if path else reader

    yield opened
    for context in contexts:
        context.close()
    assert [reader.problems for reader in readers if reader.problems] == []
    assert [reader.foreign for reader in readers if reader.foreign] == []
