"""Chat in the page: what is sent, what is shown, and what readers complain of in other pages."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

from browser import Reader  # pyright: ignore[reportMissingImports]
from live_server import ThreadServer, bearer, engine_counters, keys, wait_for  # pyright: ignore[reportMissingImports]
from playwright.sync_api import expect

Open = Callable[..., Reader]
Serve = Callable[..., ThreadServer]
MARKDOWN = """# Primes

A *prime* has **two** divisors, see [the list](https://example.org/primes).

1. two
2. three

| n | prime |
|---|-------|
| 2 | yes   |

```python
def is_prime(n):
    # trial division
    return n > 1 and all(n % d for d in range(2, n))
```

The sum $\\sum_{k=1}^n k = \\frac{n(n+1)}{2}$ is known, and so is

$$\\int_0^1 x^2 \\, dx = \\frac{1}{3}$$

It costs $5 or $6."""


def test_markdown_streams_into_blocks_with_code_copy_colours_and_formulas(open_page: Open) -> None:
    reader = open_page(permissions=["clipboard-read", "clipboard-write"])
    reader.ask("What is a prime?", MARKDOWN)
    answer = reader.last
    expect(answer.locator("h1")).to_have_text("Primes")
    expect(answer.locator("a")).to_have_attribute("rel", re.compile("noopener"))
    expect(answer.locator("ol li")).to_have_count(2)
    expect(answer.locator("td").first).to_have_text("2")
    expect(answer.locator("code .hl-word").first).to_have_text("def")
    expect(answer.locator("code .hl-comment")).to_have_text("# trial division")
    expect(answer.locator("math")).to_have_count(2)
    expect(answer.locator("math munderover")).to_have_count(0)
    expect(answer.locator(".markdown")).to_contain_text("It costs $5 or $6.")
    answer.locator(".code-bar button").click()
    expect(answer.locator(".code-bar button")).to_have_text("Copied")
    assert reader.page.evaluate("navigator.clipboard.readText()").startswith("def is_prime(n):\n    # trial")
    answer.locator(".copy").click()
    expect(answer.locator(".copy")).to_have_attribute("aria-label", "Copied")
    assert reader.page.evaluate("navigator.clipboard.readText()") == MARKDOWN


def test_what_is_whole_is_drawn_once_and_only_the_open_block_again(open_page: Open) -> None:
    reader = open_page()
    reader.page.evaluate(
        """() => {
            window.removed = [];
            new MutationObserver((all) => all.forEach((one) => one.removedNodes.forEach((node) => {
              if (one.target.classList?.contains("markdown")) window.removed.push(node.textContent);
            }))).observe(document.querySelector(".scroll-log"), { childList: true, subtree: true });
        }"""
    )
    reader.ask("Write.", "First paragraph.\n\nSecond paragraph.\n\n```\nline one\nline two\n```\n\nThird.")
    expect(reader.last.locator(".markdown > *")).to_have_count(4)
    removed = reader.page.evaluate("window.removed")
    # What was taken away was always the beginning of one block: never a block that was whole, never two.
    blocks = ["First paragraph.", "Second paragraph.", "textCopyline one\nline two\n", "Third."]
    assert all(any(block.startswith(text.strip()) or text == block for block in blocks) for text in removed), removed
    # A frame draws at most one of them; 60 frames a second are the most there are.
    drawn = reader.page.evaluate(
        """async () => {
            const { MarkdownView } = await import("/page/markdown.js");
            const root = document.createElement("div");
            const view = new MarkdownView(root);
            let text = "";
            const kept = [];
            for (let at = 0; at < 40; at++) {
              text += `Paragraph ${at} has *some* words.\\n\\n`;
              view.cost_ms = 0;
              view.update(text, false);
              kept.push(root.children[0]);
            }
            view.update(text, true);
            return { blocks: root.children.length, same: kept.slice(1).every((node) => node === kept[1]) };
        }"""
    )
    assert drawn == {"blocks": 40, "same": True}


def test_stop_ends_the_work_on_the_server_and_keeps_what_was_written(open_page: Open, site: ThreadServer) -> None:
    reader = open_page()
    reader.ask("Talk.")
    expect(reader.last.locator(".markdown")).not_to_be_empty()
    with site.client() as client:
        assert engine_counters(client)["num_requests_running"] == 1
        reader.page.locator(".send.stop").click()
        wait_for(site.idle, within=10, what="the request's end")
        steps = engine_counters(client)["iterations_total"]
        expect(reader.last.locator(".note")).to_have_text("Stopped.")
        assert engine_counters(client)["iterations_total"] == steps
    text = reader.last.locator(".markdown").inner_text()
    assert text.strip()
    assert "Stopped" in reader.said()
    expect(reader.page.locator(".scroll-log")).to_have_attribute("aria-busy", "false")
    # And Escape does the same.
    reader.ask("Talk again.")
    expect(reader.last.locator(".markdown")).not_to_be_empty()
    reader.page.keyboard.press("Escape")
    wait_for(site.idle, within=10, what="the request's end")


def test_leaving_the_page_ends_the_work_too(open_page: Open, site: ThreadServer) -> None:
    reader = open_page()
    reader.ask("Talk.")
    expect(reader.last.locator(".markdown")).not_to_be_empty()
    reader.page.reload()
    wait_for(site.idle, within=10, what="the request's end")
    expect(reader.last.locator(".note.error")).to_contain_text("closed before the answer was whole")


def test_another_answer_and_an_edit_are_branches_that_are_kept(open_page: Open) -> None:
    reader = open_page()
    reader.ask("One?", "First answer.")
    reader.will_say("Second answer.")
    reader.last.locator(".again").click()
    expect(reader.last.locator(".markdown")).to_have_text("Second answer.")
    reader.wait()
    expect(reader.last.locator(".branches")).to_have_text("2/2")
    reader.last.get_by_label("Earlier version").click()
    expect(reader.last.locator(".markdown")).to_have_text("First answer.")
    reader.ask("And two?", "Yes, two.")
    assert [message["content"] for message in reader.bodies[-1]["messages"]] == ["One?", "First answer.", "And two?"]
    said = reader.page.locator(".message.said").first
    said.hover()
    said.locator(".edit").click()
    reader.will_say("Third answer.")
    reader.page.locator(".said.editing textarea").fill("Three?")
    reader.page.locator(".said.editing textarea").press("Enter")
    expect(reader.last.locator(".markdown")).to_have_text("Third answer.")
    reader.wait()
    assert [message["content"] for message in reader.bodies[-1]["messages"]] == ["Three?"]
    expect(reader.answers).to_have_count(1)
    reader.page.locator(".said .branches").get_by_label("Earlier version").click()
    expect(reader.answers).to_have_count(2)
    expect(reader.last.locator(".markdown")).to_have_text("Yes, two.")
    reader.page.reload()
    expect(reader.last.locator(".markdown")).to_have_text("Yes, two.")


def test_controls_show_the_servers_defaults_and_send_only_what_was_changed(open_page: Open) -> None:
    reader = open_page()
    page = reader.page
    page.get_by_label("System prompt and sampling of this chat").click()
    expect(page.locator("input[name=temperature]")).to_have_attribute("placeholder", "0.6")
    expect(page.locator("input[name=top_p]")).to_have_attribute("placeholder", "0.9")
    expect(page.locator("input[name=max_tokens]")).to_have_attribute("placeholder", "to the end of the context")
    page.get_by_label("System prompt", exact=True).fill("Be brief.")
    page.locator("input[name=temperature]").fill("0")
    page.locator("input[name=seed]").fill("7")
    page.locator("textarea[name=extra]").fill("{nonsense")
    expect(page.locator(".wrong")).to_be_visible()
    page.locator("textarea[name=extra]").fill('{"min_tokens": 2}')
    expect(page.locator(".wrong")).to_have_count(0)
    page.keyboard.press("Escape")
    reader.ask("Hello", "Hi.")
    body = reader.bodies[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["seed"], body["min_tokens"]) == (0, 7, 2)
    assert "top_p" not in body
    assert "max_tokens" not in body


def test_statistics_and_the_gauge_tell_what_the_server_counted(open_page: Open) -> None:
    reader = open_page()
    reader.ask("Count.", "One two three.")
    expect(reader.last.locator(".stats")).to_contain_text(re.compile(r"\d+ tokens · .*tokens/s · .* s to first · prompt \d+"))
    gauge = reader.page.get_by_role("meter")
    expect(gauge).to_have_attribute("aria-valuemax", "16384")
    used = int(gauge.get_attribute("aria-valuenow") or 0)
    assert used > 10
    reader.page.locator("#prompt").fill("many words " * 50)
    expect(gauge).not_to_have_attribute("aria-valuenow", str(used))


def test_nothing_is_truncated_silently(open_page: Open) -> None:
    reader = open_page()
    reader.will_take(max_tokens=5)
    reader.ask("Talk.")
    expect(reader.last.locator(".note")).to_contain_text("reached its token limit")
    reader.wait()
    # What does not fit is refused by the server with its numbers, and all of it stays where it was.
    long = "word " * 20_000
    reader.ask(long)
    expect(reader.last.locator(".note.error")).to_contain_text("16,384")
    assert reader.page.locator(".said .bubble").last.inner_text().strip() == long.strip()
    assert reader.bodies[-1]["messages"][-1]["content"] == long


def test_text_files_go_into_the_prompt_whole_and_others_are_refused(open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Llamas hum.\n" * 30, encoding="utf-8")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\x00")
    reader = open_page()
    reader.page.locator(".composer input[type=file]").set_input_files([tmp_path / "notes.txt", tmp_path / "photo.jpg"])
    expect(reader.page.locator(".composer .note.error")).to_contain_text("photo.jpg is not text")
    expect(reader.page.locator(".composer .chip")).to_have_text("notes.txt")
    reader.ask("What do they do?", "They hum.")
    content = reader.bodies[-1]["messages"][0]["content"]
    assert content == "File notes.txt:\n```\n" + "Llamas hum.\n" * 30 + "\n```\n\nWhat do they do?"
    reader.page.locator(".said .file summary").click()
    expect(reader.page.locator(".said .file pre")).to_contain_text("Llamas hum.")


def test_the_reader_is_followed_only_at_the_bottom(open_page: Open) -> None:
    reader = open_page(viewport={"width": 900, "height": 500})
    log = reader.page.locator(".scroll-log")
    for number in range(2):
        reader.ask(f"Say {number}", "\n\n".join(f"Paragraph {n}." for n in range(20)))
    at_end = "box => box.scrollHeight - box.scrollTop - box.clientHeight < 50"
    assert log.evaluate(at_end)
    reader.ask("Talk.")
    expect(reader.last.locator(".markdown")).not_to_be_empty()
    assert log.evaluate(at_end)
    log.hover()
    reader.page.mouse.wheel(0, -400)
    jump = reader.page.get_by_role("button", name="Jump to latest")
    expect(jump).to_be_visible()
    place = log.evaluate("box => box.scrollTop")
    length = len(reader.last.locator(".markdown").inner_text())
    wait_for(lambda: len(reader.last.locator(".markdown").inner_text()) > length + 200, what="more text")
    assert log.evaluate("box => box.scrollTop") == place
    jump.click()
    expect(jump).to_have_count(0)
    length = len(reader.last.locator(".markdown").inner_text())
    wait_for(lambda: len(reader.last.locator(".markdown").inner_text()) > length + 200, what="more text")
    assert log.evaluate(at_end)
    reader.page.keyboard.press("Escape")
    reader.wait()


def test_a_key_is_asked_for_where_the_server_wants_one(open_page: Open, serve: Serve) -> None:
    server = serve(keys=keys())
    reader = open_page(server=server, path="")
    reader.page.goto(server.url)
    dialog = reader.page.get_by_role("dialog")
    expect(dialog).to_contain_text("This server asks for a key")
    dialog.get_by_label("API key").fill("wrong")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog.get_by_role("alert")).to_contain_text("no valid API key")
    dialog.get_by_label("API key").fill(bearer("anna")["Authorization"].split()[1])
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_have_count(0)
    reader.ask("Hello", "Hi, Anna.")
    expect(reader.last.locator(".markdown")).to_have_text("Hi, Anna.")
    assert reader.page.evaluate("localStorage.length") == 0
    # And a stream that breaks keeps what came, with a way to ask again. The engine is killed as it writes.
    reader.ask("Talk.")
    expect(reader.last.locator(".markdown")).not_to_be_empty()
    os.kill(server.process.pid, signal.SIGKILL)
    expect(reader.last.locator(".note.error .retry")).to_be_visible()
    assert reader.last.locator(".markdown").inner_text().strip()
    wait_for(lambda: server.process.state == "ready", within=120, what="the engine's return")
    reader.will_say("Here again.")
    reader.last.locator(".retry").click()
    expect(reader.last.locator(".markdown")).to_have_text("Here again.")
    expect(reader.last.locator(".branches")).to_have_text("2/2")
