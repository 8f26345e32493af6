"""Chats kept on the server: the same in every browser of a key, and of no other; what the server refuses stays here until it has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Reader  # pyright: ignore[reportMissingImports]
from live_server import KEYS, ThreadServer, bearer, keys  # pyright: ignore[reportMissingImports]
from playwright.sync_api import Route, expect

Open = Callable[..., Reader]
Serve = Callable[..., ThreadServer]
CHATS = "/v1/herd/chats"


@pytest.fixture(name="clean", autouse=True)
def clean_fixture(site: ThreadServer) -> Iterator[None]:
    """Tests of this file share a server."""
    yield
    with site.client() as client:
        client.delete(CHATS).raise_for_status()


def keep_at_server(reader: Reader) -> Reader:
    page = reader.page
    page.get_by_role("button", name="Settings").click()
    page.locator("select[name=keep]").select_option("server")
    expect(page.locator("select[name=keep]")).to_have_value("server")
    expect(page.get_by_role("dialog")).to_contain_text("where only your key finds them")
    page.keyboard.press("Escape")
    return reader


def rows(reader: Reader) -> Any:
    return reader.page.locator(".sidebar .chat")


def kept(site: ThreadServer, **headers: str) -> dict[str, list[str]]:
    """What the server has: titles, each with its messages."""
    with site.client(headers=headers) as client:
        chats = client.get(CHATS).raise_for_status().json()["data"]
        found = {chat["title"]: client.get(f"{CHATS}/{chat['id']}").json()["messages"] for chat in chats}
    return {title: [one["text"] for one in messages] for title, messages in found.items()}


def wait_kept(reader: Reader, site: ThreadServer, title: str, texts: list[str]) -> None:
    """Wait until the server has a chat with these messages."""
    for _ in range(600):
        if kept(site).get(title) == texts:
            return
        reader.page.wait_for_timeout(100)
    raise AssertionError(kept(site))


def test_chats_on_the_server_are_the_same_in_every_browser(open_page: Open, site: ThreadServer, tmp_path: Path) -> None:
    reader = keep_at_server(open_page())
    reader.ask("Tell me of llamas", "They hum.")
    reader.will_say("They spit.")
    reader.last.get_by_role("button", name="Answer again").click()
    expect(reader.last.locator(".markdown")).to_have_text("They spit.")
    reader.wait()
    wait_kept(reader, site, "Tell me of llamas", ["Tell me of llamas", "They hum.", "They spit."])
    other = keep_at_server(open_page())
    expect(rows(other)).to_have_text(["Tell me of llamas"])
    search = other.page.get_by_label("Search chats")
    search.fill("HUM llamas")
    expect(rows(other)).to_have_text(["Tell me of llamas"])
    search.fill("walrus")
    expect(rows(other)).to_have_count(0)
    search.fill("")
    rows(other).click()
    # Both branches came, and the one that was shown last is shown.
    expect(other.last.locator(".markdown")).to_have_text("They spit.")
    other.last.get_by_role("button", name="Earlier version").click()
    expect(other.last.locator(".markdown")).to_have_text("They hum.")
    other.ask("Why?", "To be heard.")
    wait_kept(other, site, "Tell me of llamas", ["Tell me of llamas", "They hum.", "They spit.", "Why?", "To be heard."])
    # What the other browser said is there when the first one reads the chat again.
    reader.page.reload()
    rows(reader).click()
    expect(reader.last.locator(".markdown")).to_have_text("To be heard.")
    reader.page.get_by_role("button", name="Settings").click()
    with reader.page.expect_download() as found:
        reader.page.get_by_role("button", name="Export").click()
    data = json.loads(Path(found.value.path()).read_text(encoding="utf-8"))
    assert {node["text"] for node in data["nodes"]} == {"Tell me of llamas", "They hum.", "They spit.", "Why?", "To be heard."}
    reader.page.keyboard.press("Escape")
    # A file comes in, and one chat goes; the other browser sees both.
    data["chats"][0] |= {"id": "copy", "title": "A copy"}
    for node in data["nodes"]:
        node["chat"] = "copy"
    (tmp_path / "chats.json").write_text(json.dumps(data), encoding="utf-8")
    reader.page.get_by_role("button", name="Settings").click()
    reader.page.locator("input[type=file][accept*=json]").set_input_files(tmp_path / "chats.json")
    expect(reader.page.get_by_role("dialog").get_by_role("status")).to_have_text("1 chats were read.")
    reader.page.keyboard.press("Escape")
    reader.page.locator(".sidebar li", has_text="Tell me of llamas").hover()
    reader.page.get_by_label("Delete “Tell me of llamas”").click()
    reader.page.get_by_role("button", name="Delete", exact=True).click()
    expect(reader.page.locator(".sidebar li")).to_have_count(1)
    expect(rows(reader)).to_have_text(["A copy"])
    other.page.reload()
    expect(rows(other)).to_have_text(["A copy"])
    assert set(kept(site)) == {"A copy"} and len(kept(site)["A copy"]) == 5


def test_what_the_server_refuses_is_told_and_stays_in_the_browser_until_it_has_it(open_page: Open, site: ThreadServer) -> None:
    reader = keep_at_server(open_page())
    page = reader.page
    refusal = json.dumps({"error": {"message": "the disk is full", "code": "storage"}})

    status = 507

    def refuse(route: Route) -> None:
        if route.request.method == "PUT":
            route.fulfill(status=status, content_type="application/json", body=refusal)
        else:
            route.continue_()

    page.route(f"**{CHATS}/*", refuse)
    reader.ask("Tell me of llamas", "They hum.")
    note = page.locator(".note.kept")
    expect(note).to_contain_text("are not on the server yet; this browser holds them.")
    expect(note).to_contain_text("the disk is full")
    assert kept(site) == {}
    # The page is closed and opened again: nothing of it is lost. It does not send again by itself what a 400 refuses.
    status = 400
    page.reload()
    expect(rows(reader)).to_have_text(["Tell me of llamas"])
    rows(reader).click()
    expect(reader.last.locator(".markdown")).to_have_text("They hum.")
    expect(note).to_contain_text("the disk is full")
    page.unroute(f"**{CHATS}/*", refuse)
    note.get_by_role("button", name="Retry").click()
    expect(note).to_have_count(0)
    wait_kept(reader, site, "Tell me of llamas", ["Tell me of llamas", "They hum."])
    left = """async () => {
        const opening = indexedDB.open("herd-outbox");
        const db = await new Promise((done) => (opening.onsuccess = () => done(opening.result)));
        const asked = db.transaction("outbox").objectStore("outbox").count();
        return new Promise((done) => (asked.onsuccess = () => done(asked.result)));
    }"""
    assert page.evaluate(left) == 0
    # A chat that the server will not delete stays, and so does everything where it will not delete all.
    page.route(f"**{CHATS}*", lambda route: _only_reads(route, refusal))
    page.route(f"**{CHATS}/*", lambda route: _only_reads(route, refusal))
    page.locator(".sidebar li", has_text="llamas").hover()
    page.get_by_label("Delete “Tell me of llamas”").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(note).to_contain_text("the disk is full")
    expect(rows(reader)).to_have_count(1 if page.get_by_text("Delete this chat?").count() == 0 else 0)
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Delete everything").click()
    page.get_by_role("button", name="Yes, delete all chats and settings").click()
    expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text("the disk is full")
    assert kept(site) == {"Tell me of llamas": ["Tell me of llamas", "They hum."]}


def _only_reads(route: Route, refusal: str) -> None:
    if route.request.method == "GET":
        route.continue_()
    else:
        route.fulfill(status=507, content_type="application/json", body=refusal)


def test_chats_of_this_browser_can_be_copied_to_the_server_and_everything_deleted(open_page: Open, site: ThreadServer) -> None:
    reader = open_page()
    page = reader.page
    reader.ask("Tell me of llamas", "They hum.")
    assert kept(site) == {}
    keep_at_server(reader)
    expect(rows(reader)).to_have_count(0)
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Copy those of this browser").click()
    expect(page.get_by_role("dialog").get_by_role("status")).to_have_text("1 chats were read.")
    expect(rows(reader)).to_have_text(["Tell me of llamas"])
    assert kept(site) == {"Tell me of llamas": ["Tell me of llamas", "They hum."]}
    page.get_by_role("button", name="Delete everything").click()
    page.get_by_role("button", name="Yes, delete all chats and settings").click()
    expect(page.get_by_role("dialog").get_by_role("status")).to_have_text("Everything was deleted.")
    assert kept(site) == {}
    page.reload()
    expect(rows(reader)).to_have_count(0)
    page.get_by_role("button", name="Settings").click()
    expect(page.locator("select[name=keep]")).to_have_value("browser")


def test_chats_of_one_key_are_never_seen_by_another(open_page: Open, serve: Serve) -> None:
    server = serve(keys=keys())
    reader = open_page(server=server, path="")
    page = reader.page
    page.goto(server.url)

    def enter(name: str) -> None:
        page.locator("dialog input[type=password]").fill(KEYS[name])
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator(".bar .state-dot.ready")).to_be_visible()
        expect(page.get_by_role("dialog")).to_have_count(0)

    enter("anna")
    keep_at_server(reader)
    reader.ask("Tell me of llamas", "They hum.")
    # The server refuses what comes next: it stays here, for Anna.
    page.route(f"**{CHATS}/*", lambda route: _only_reads(route, json.dumps({"error": {"message": "no"}})))
    reader.ask("And of alpacas?", "They are smaller.")
    expect(page.locator(".note.kept")).to_be_visible()
    page.unroute(f"**{CHATS}/*")
    page.evaluate("sessionStorage.clear()")
    page.reload()
    enter("bert")
    expect(page.locator(".sidebar .empty")).to_be_visible()
    reader.ask("Tell me of yaks", "They grunt.")
    expect(rows(reader)).to_have_text(["Tell me of yaks"])
    for _ in range(600):
        if kept(server, **bearer("bert")) == {"Tell me of yaks": ["Tell me of yaks", "They grunt."]}:
            break
        page.wait_for_timeout(100)
    assert set(kept(server, **bearer("bert"))) == {"Tell me of yaks"}
    page.evaluate("sessionStorage.clear()")
    page.reload()
    enter("anna")
    expect(rows(reader)).to_have_text(["Tell me of llamas"])
    rows(reader).click()
    expect(reader.last.locator(".markdown")).to_have_text("They are smaller.")
    for _ in range(600):
        if len(kept(server, **bearer("anna")).get("Tell me of llamas", ())) == 4:
            break
        page.wait_for_timeout(100)
    told = kept(server, **bearer("anna"))
    assert told == {"Tell me of llamas": ["Tell me of llamas", "They hum.", "And of alpacas?", "They are smaller."]}


def test_a_long_chat_goes_to_the_server_in_parts_and_comes_back_whole(open_page: Open, site: ThreadServer, tmp_path: Path) -> None:
    nodes = [
        {
            "id": f"n{number}",
            "chat": "long",
            "parent": f"n{number - 1}" if number else None,
            "made": number,
            "role": "user",
            "text": f"No. {number}",
        }
        for number in range(1200)
    ]
    # Half a character, as a text may end that was cut by someone, is no reason to refuse the rest.
    nodes[7]["text"] = "half \ud83d"
    chat = {"id": "long", "title": "A long one", "made": 1, "changed": 1, "leaf": "n2"}
    (tmp_path / "long.json").write_text(
        json.dumps({"format": "herd-chats", "version": 1, "chats": [chat], "nodes": nodes}), encoding="utf-8"
    )
    reader = keep_at_server(open_page())
    page = reader.page
    sent: list[int] = []
    page.on(
        "request", lambda request: sent.append(len(json.loads(request.post_data or "")["messages"])) if request.method == "PUT" else None
    )
    page.get_by_role("button", name="Settings").click()
    page.locator("input[type=file][accept*=json]").set_input_files(tmp_path / "long.json")
    expect(page.get_by_role("dialog").get_by_role("status")).to_have_text("1 chats were read.")
    assert sum(sent) == 1200 and max(sent) <= 500
    texts = kept(site)["A long one"]
    assert len(texts) == 1200 and texts[7] == "half \ufffd" and texts[1199] == "No. 1199"
    page.reload()
    rows(reader).click()
    expect(page.locator(".message")).to_have_count(3)


def test_a_server_that_keeps_no_state_offers_no_place_for_chats(open_page: Open, serve: Serve) -> None:
    bare = serve(state_dir=None)
    reader = open_page(server=bare)
    reader.page.get_by_role("button", name="Settings").click()
    expect(reader.page.locator("select[name=keep] option[value=server]")).to_be_disabled()
    expect(reader.page.get_by_role("dialog")).to_contain_text("This server keeps no state, so it cannot keep them.")
    expect(reader.page.get_by_role("button", name="Copy those on the server")).to_have_count(0)
