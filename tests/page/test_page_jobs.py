"""Training runs in the page: their curves appear and grow while a run writes its log; and the speed under an answer is the server's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from browser import Reader  # pyright: ignore[reportMissingImports]
from live_server import ThreadServer, bearer, keys  # pyright: ignore[reportMissingImports]
from playwright.sync_api import Route, expect

from herd.train.run_log import RunLog

Open = Callable[..., Reader]
Serve = Callable[..., ThreadServer]


def record(step: int) -> dict[str, Any]:
    """As the trainer writes it."""
    return {"step": step, "num_counted": step, "loss": round(4.0 / step, 4), "lr": 0.001, "heldout": {"en": 2.0 / step, "de": 3.0 / step}}


def begun(place: Path, name: str) -> RunLog:
    """A run of three steps that goes on."""
    (place / name / "pretrain").mkdir(parents=True)
    (place / name / "config.toml").write_text('name = "tiny"\n\n[pretrain]\nnum_steps = 10\n')
    log = RunLog(place / name / "pretrain")
    log.event("start", step=0)
    for step in (1, 2, 3):
        log.write(record(step))
    return log


def test_the_curves_of_a_training_run_are_shown_and_grow(open_page: Open, serve: Serve, tmp_path: Path) -> None:
    log = begun(tmp_path, "river")
    server = serve(runs_dir=str(tmp_path))
    # axe is put into the page as a script, which its own policy would refuse.
    reader = open_page(server=server, bypass_csp=True, color_scheme="dark")
    page = reader.page
    page.get_by_role("button", name="Jobs").click()
    card = page.locator("dialog section.run", has_text="river")
    expect(card).to_contain_text("step 3 of 10 · loss 1.333")
    expect(card).to_contain_text("running")
    loss = card.get_by_role("img", name="loss: 1.333 at step 3")
    expect(loss).to_be_visible()
    expect(loss.locator("path")).to_have_count(1)
    expect(card.get_by_role("img", name="heldout: de 1, en 0.6667 at step 3").locator("path")).to_have_count(2)
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert not Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag22aa", "best-practice"]}).response["violations"]
    before = loss.locator("path").get_attribute("d")
    log.write(record(4))
    grown = card.get_by_role("img", name="loss: 1 at step 4")
    expect(grown).to_be_visible()
    assert grown.locator("path").get_attribute("d") != before
    log.event("end", step=4, reason="done", seconds=1.0)
    expect(card).to_contain_text("done")
    card.get_by_role("button", name="Curves").click()
    expect(card.get_by_role("img")).to_have_count(0)


def test_where_there_is_no_run_it_says_so_and_a_tenant_sees_none(open_page: Open, serve: Serve, tmp_path: Path) -> None:
    begun(tmp_path, "secret")
    server = serve(keys=keys(admin=1), runs_dir=str(tmp_path))
    for name, sees in (("anna", True), ("bert", False)):
        reader = open_page(server=server, path="")
        reader.page.add_init_script(f"sessionStorage.setItem('herd.key', '{bearer(name)['Authorization'].removeprefix('Bearer ')}')")
        reader.open()
        reader.page.get_by_role("button", name="Jobs").click()
        expect(reader.page.get_by_text("There are no batches.")).to_be_visible()
        expect(reader.page.locator("dialog section.run")).to_have_count(1 if sees else 0)
        expect(reader.page.get_by_role("heading", name="Training runs")).to_have_count(1 if sees else 0)


def test_the_speed_is_what_the_server_measured_though_the_answer_comes_at_once(open_page: Open) -> None:
    reader = open_page()

    def held(route: Route) -> None:
        head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
        parts: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": "All at once."}}]}]
        parts.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 5, "completion_tokens": 40, "total_tokens": 45}
        timings = {"prompt_ms": 1.0, "predicted_n": 40, "predicted_ms": 3000.0, "predicted_per_second": 13.0}
        parts.append({"choices": [], "usage": usage, "timings": timings})
        body = "".join(f"data: {json.dumps(head | part)}\n\n" for part in parts) + "data: [DONE]\n\n"
        route.fulfill(content_type="text/event-stream", body=body)

    reader.page.unroute("**/v1/chat/completions")
    reader.page.route("**/v1/chat/completions", held)
    reader.ask("Speak.")
    expect(reader.last.locator(".stats")).to_contain_text("40 tokens · 13 tokens/s")
