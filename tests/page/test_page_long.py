"""A long conversation stays quick: 500 messages and 60,000 tokens, and an answer that streams at their end.

The short form has a tenth of it and looks at what is drawn, not at the clock. HERD_TEST_FULL=1 runs the whole and prints its figures: a
frame's time by the clock, and the longest task of the page's main thread by the processor time that it used. The second does not count what
other processes took meanwhile, and is held to 50 ms. The model is sent the last message alone: the tiny one has no context for 60,000
tokens, and the page does not know.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from browser import FULL, Reader  # pyright: ignore[reportMissingImports]
from playwright.sync_api import Browser, Route, expect

Open = Callable[..., Reader]
TASK_MS = 50
HEAP_BYTES = 120_000_000
PARAGRAPH = "The herd walks up the hill in the morning, and **nobody** hurries: `walk(n)` takes about $n^2$ steps.\n\n"
CODE = "```python\ndef walk(n):\n    # up the hill\n    return [step ** 2 for step in range(n)]\n```\n\n"


def conversation(num_messages: int, tokens: int) -> dict[str, Any]:
    """A file of one chat. A token is taken as four characters, as of English text."""
    nodes: list[dict[str, Any]] = []
    each = tokens * 4 // num_messages
    for at in range(num_messages):
        text = (PARAGRAPH * 9 + CODE)[:each] if at % 2 else f"Question {at}: " + "what then? " * (each // 11)
        parent = nodes[-1]["id"] if nodes else None
        role = "assistant" if at % 2 else "user"
        nodes.append({"id": f"n{at}", "chat": "long", "parent": parent, "made": at + 1, "role": role, "text": text})
    chat = {"id": "long", "title": "A long walk", "made": 1, "changed": 1, "leaf": nodes[-1]["id"]}
    return {"format": "herd-chats", "version": 1, "chats": [chat], "nodes": nodes}


def task_times(trace: bytes) -> list[float]:
    """Milliseconds of processor time that each task of the page's main thread took."""
    events = json.loads(trace)["traceEvents"]
    named = [event for event in events if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"]
    threads = {(event["pid"], event["tid"]) for event in named}
    tasks = [event for event in events if event["name"].endswith("RunTask") and (event["pid"], event["tid"]) in threads]
    return [event["tdur"] / 1000 for event in tasks if "tdur" in event]


@pytest.mark.slow
def test_a_long_conversation_streams_without_a_slow_frame(open_page: Open, browser: Browser) -> None:
    num_messages, tokens = (500, 60_000) if FULL else (50, 6_000)
    reader = open_page()
    page = reader.page
    data = conversation(num_messages, tokens)
    page.get_by_role("button", name="Settings").click()
    chooser = page.locator("input[type=file][accept*=json]")
    chooser.set_input_files({"name": "long.json", "mimeType": "application/json", "buffer": json.dumps(data).encode()})
    expect(page.get_by_role("dialog").get_by_role("status")).to_have_text("1 chats were read.")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="A long walk", exact=True).click()
    expect(page.locator(".message")).to_have_count(num_messages)
    # Colours and formulas of what is old come with their modules, a moment after it.
    expect(page.locator(".maths:not(:has(math)), .code code:not(:has(span))")).to_have_count(0)

    def last_only(route: Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        assert len(body["messages"]) == num_messages + 1
        answer = (PARAGRAPH + CODE) * (40 if FULL else 4)
        route.continue_(post_data=json.dumps(body | {"messages": body["messages"][-1:], "structured_outputs": {"choice": [answer]}}))

    page.unroute("**/v1/chat/completions")
    page.route("**/v1/chat/completions", last_only)
    page.evaluate(
        """() => {
            window.frames_ms = [];
            window.redrawn = 0;
            let last = performance.now();
            const frame = (now) => {
                window.frames_ms.push(now - last);
                last = now;
                window.timer = requestAnimationFrame(frame);
            };
            requestAnimationFrame((now) => { last = now; requestAnimationFrame(frame); });
            // What was there before the answer is not touched while it streams.
            const old = [...document.querySelectorAll(".message")];
            window.watcher = new MutationObserver((seen) => (window.redrawn += seen.length));
            const all = { childList: true, subtree: true, characterData: true };
            for (const message of old.slice(0, -1)) window.watcher.observe(message, all);
        }"""
    )
    browser.start_tracing(page=page, categories=["toplevel", "devtools.timeline", "disabled-by-default-devtools.timeline"])
    reader.ask("And now?")
    expect(page.locator(".message")).to_have_count(num_messages + 2)
    reader.wait()
    expect(reader.last.locator(".stats")).to_be_visible()
    tasks = sorted(task_times(browser.stop_tracing()))
    found = page.evaluate(
        """() => {
            cancelAnimationFrame(window.timer);
            return { frames: window.frames_ms, redrawn: window.redrawn, heap: performance.memory.usedJSHeapSize,
              nodes: document.querySelectorAll("*").length };
        }"""
    )
    assert found["redrawn"] == 0
    assert found["heap"] < HEAP_BYTES
    frames = sorted(found["frames"])
    print(f"\n{num_messages} messages: {len(frames)} frames, median {frames[len(frames) // 2]:.1f} ms, longest {frames[-1]:.1f} ms,")
    print(f"heap {found['heap'] / 1e6:.1f} MB, {found['nodes']:,} elements")
    print(f"{len(tasks):,} tasks of the main thread, longest {tasks[-1]:.1f} ms of processor time")
    if FULL:
        assert tasks[-1] <= TASK_MS
