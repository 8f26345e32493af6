"""The pictures of docs/guides/page.md, taken of the page itself: run it after a change of the page, and they show that change.

`python docs/screenshots.py [ADDRESS]` needs Chromium and `pip install -e '.[test]'`. It serves cria (or takes a
server that runs already) and puts the words of the answers into its mouth
(`structured_outputs`), so that the pictures stay the same from one run to the next; everything else is as a reader would see it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

FOLDER = Path(__file__).parent / "guides" / "images"
ANSWER = """A number above one is **prime** when only one and itself divide it. It is enough to try divisors up to its root:

```python
def is_prime(n: int) -> bool:
    # A divisor above the root has a partner below it.
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
```

About $\\frac{n}{\\ln n}$ numbers up to $n$ are prime."""
SCHEMA = {"type": "object", "properties": {"expression": {"enum": ["(1 + sqrt(5)) / 2"]}}, "required": ["expression"]}
SAYS: dict[str, Any] = {"structured_outputs": {"choice": [ANSWER]}}
CALLS: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "calculate", "parameters": SCHEMA}}],
    "tool_choice": "required",
    "parallel_tool_calls": False,
}


def serve(home: str) -> tuple[subprocess.Popen[str], str]:
    """A server on a free port, and its address."""
    train(Path(home) / "runs")
    command = [sys.executable, "-m", "herd", "serve", "cria", "--port", "0", "--context", "1024", "--state-dir", home, "--no-access-log"]
    command += ["--runs", str(Path(home) / "runs")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r"http://[\d.:]+", line)
        if found:
            return process, found[0]
    raise SystemExit("the server did not start")


def train(place: Path) -> None:
    """Two runs for the picture of jobs, written by the trainer's own log: one at work, one done."""
    from herd.train.run_log import RunLog

    for name, steps, most in (("shop-lora", 120, 120), ("river", 640, 1000)):
        folder = place / name / "pretrain"
        folder.mkdir(parents=True)
        (place / name / "config.toml").write_text(f'name = "{name}"\n\n[pretrain]\nnum_steps = {most}\n')
        log = RunLog(folder)
        log.event("start", step=0)
        for step in range(1, steps + 1, 4):
            loss = 2.1 + 4.2 * math.exp(-step / 160) + 0.06 * math.sin(step * 12.9898)
            lr = 3e-4 * min(1.0, step / 60) * (0.55 + 0.45 * math.cos(math.pi * step / most))
            found: dict[str, Any] = {"step": step, "loss": loss, "lr": lr, "grad_norm": 0.4 + 1.5 * math.exp(-step / 90)}
            if step % 40 == 1:
                found["heldout"] = {"en": 0.9 + loss / 5, "de": 1.1 + loss / 5, "hi": 0.7 + loss / 6}
            log.write(found)
        if steps == most:
            log.event("end", step=steps, reason="done", seconds=1.0)
        else:
            os.utime(folder / "log.jsonl")


def opened(browser: Browser, address: str, more: dict[str, Any], **options: Any) -> Page:
    """A page whose requests get more fields on their way: what the model has to say."""
    page = browser.new_context(locale="en-GB", reduced_motion="reduce", **options).new_page()
    page.set_default_timeout(120_000)

    def send(route: Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        route.continue_(post_data=json.dumps(body | more))

    page.route("**/v1/chat/completions", send)
    page.goto(address)
    expect(page.locator(".bar .state-dot.ready")).to_be_visible(timeout=120_000)
    return page


def ask(page: Page, text: str) -> None:
    """Send a message and wait for the whole answer."""
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")
    expect(page.locator(".message.answer .actions").last).to_be_visible(timeout=120_000)
    # Speeds are of the moment and of no interest; a picture with them would never be the same twice.
    page.evaluate("document.querySelectorAll('.stats').forEach((one) => one.remove())")


def keep(page: Page, name: str) -> None:
    """Take the picture."""
    page.evaluate("document.activeElement?.blur()")
    page.wait_for_timeout(300)
    page.screenshot(path=FOLDER / f"page-{name}.png")


def main() -> None:
    """All of them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        server, address = (None, sys.argv[1]) if len(sys.argv) > 1 else serve(home)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            page = opened(browser, address, SAYS, viewport={"width": 1180, "height": 760})
            ask(page, "How can I tell whether a number is prime?")
            keep(page, "chat")
            page = opened(browser, address, CALLS, viewport={"width": 1180, "height": 640}, color_scheme="dark")
            page.get_by_label("Tools of this chat").click()
            page.locator("input[name=calculate]").check()
            page.keyboard.press("Escape")
            ask(page, "What is the golden ratio?")
            keep(page, "tool")
            page = opened(browser, address, SAYS, viewport={"width": 390, "height": 760}, has_touch=True)
            ask(page, "How can I tell whether a number is prime?")
            keep(page, "phone")
            page = opened(browser, address, SAYS, viewport={"width": 1180, "height": 860})
            page.get_by_role("button", name="Jobs").click()
            page.locator(".run", has_text="river").get_by_role("button", name="Curves").wait_for()
            page.get_by_role("img", name="heldout").first.wait_for()
            keep(page, "jobs")
        finally:
            browser.close()
            if server is not None:
                server.terminate()
                server.wait(60)
    for file in sorted(FOLDER.glob("page-*.png")):
        print(f"{file.name}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
