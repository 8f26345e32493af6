"""Chats are kept in the browser: found again, renamed, taken out, brought back, and deleted for good."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from browser import Reader  # pyright: ignore[reportMissingImports]
from playwright.sync_api import expect

Open = Callable[..., Reader]


def two_chats(reader: Reader) -> Reader:
    reader.ask("Tell me of llamas", "They hum.")
    reader.page.get_by_role("button", name="New chat").click()
    reader.ask("Tell me of alpacas", "They are smaller.")
    return reader


def test_chats_are_listed_searched_renamed_and_deleted(open_page: Open) -> None:
    reader = two_chats(open_page())
    page = reader.page
    rows = page.locator(".sidebar .chat")
    assert rows.all_inner_texts() == ["Tell me of alpacas", "Tell me of llamas"]
    search = page.get_by_label("Search chats")
    search.fill("hum")
    expect(rows).to_have_text(["Tell me of llamas"])
    search.fill("walrus")
    expect(page.locator(".sidebar .empty")).to_have_text("No chat has these words.")
    search.fill("")
    page.locator(".sidebar li", has_text="llamas").hover()
    page.get_by_label("Rename “Tell me of llamas”").click()
    page.get_by_label("Rename", exact=True).fill("Humming")
    page.keyboard.press("Enter")
    expect(rows).to_have_text(["Humming", "Tell me of alpacas"])
    rows.first.click()
    expect(reader.last.locator(".markdown")).to_have_text("They hum.")
    page.locator(".sidebar li", has_text="Humming").hover()
    page.get_by_label("Delete “Humming”").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    # While it asks whether to delete, the row is no button either: only when the row itself has gone is the chat deleted.
    expect(page.locator(".sidebar li")).to_have_count(1)
    expect(rows).to_have_text(["Tell me of alpacas"])
    page.reload()
    expect(rows).to_have_text(["Tell me of alpacas"])


def test_what_is_exported_can_be_read_back_by_another_browser(open_page: Open, tmp_path: Path) -> None:
    reader = two_chats(open_page())
    reader.page.get_by_role("button", name="Settings").click()
    with reader.page.expect_download() as found:
        reader.page.get_by_role("button", name="Export").click()
    file = tmp_path / "chats.json"
    found.value.save_as(file)
    data = json.loads(file.read_text(encoding="utf-8"))
    assert data["format"] == "herd-chats"
    assert {node["text"] for node in data["nodes"]} == {"Tell me of llamas", "They hum.", "Tell me of alpacas", "They are smaller."}
    other = open_page()
    other.page.get_by_role("button", name="Settings").click()
    chooser = other.page.locator("input[type=file][accept*=json]")
    chooser.set_input_files({"name": "x.json", "mimeType": "application/json", "buffer": b'{"chats": []}'})
    expect(other.page.get_by_role("dialog").get_by_role("status")).to_contain_text("not a file of chats")
    chooser.set_input_files(file)
    expect(other.page.get_by_role("dialog").get_by_role("status")).to_have_text("2 chats were read.")
    other.page.keyboard.press("Escape")
    other.page.get_by_role("button", name="Tell me of llamas", exact=True).click()
    expect(other.last.locator(".markdown")).to_have_text("They hum.")


def test_delete_all_leaves_nothing_behind(open_page: Open) -> None:
    reader = two_chats(open_page())
    page = reader.page
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Delete everything").click()
    page.get_by_role("button", name="Yes, delete all chats and settings").click()
    expect(page.get_by_role("dialog").get_by_role("status")).to_have_text("Everything was deleted.")
    count = """async () => {
        const db = await new Promise((done) => { const asked = indexedDB.open("herd"); asked.onsuccess = () => done(asked.result); });
        let total = localStorage.length + sessionStorage.length;
        for (const name of db.objectStoreNames)
        {
            const asked = db.transaction(name).objectStore(name).count();
            total += await new Promise((done) => (asked.onsuccess = () => done(asked.result)));
        }
        return total;
    }"""
    assert page.evaluate(count) == 0
    page.reload()
    expect(page.locator(".sidebar .chat")).to_have_count(0)


def test_batches_are_made_followed_and_their_answers_fetched(open_page: Open, tmp_path: Path) -> None:
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4},
    }
    (tmp_path / "batch.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    reader = open_page()
    page = reader.page
    page.get_by_role("button", name="Jobs").click()
    page.locator("dialog input[type=file]").set_input_files(tmp_path / "batch.jsonl")
    expect(page.get_by_role("dialog")).to_contain_text("completed")
    expect(page.get_by_role("dialog")).to_contain_text("1 of 1 done, 0 failed")
    with page.expect_download() as found:
        page.get_by_role("button", name="Answers").click()
    assert json.loads(Path(found.value.path()).read_text(encoding="utf-8"))["custom_id"] == "a"
