"""For everyone: axe finds nothing, screen readers hear a conversation and not every token, phones and eight languages have all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import Reader  # pyright: ignore[reportMissingImports]
from playwright.sync_api import expect

Open = Callable[..., Reader]
SCREENS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True},
}
EVERYTHING = """# Title

Text with `code`, a [link](https://example.org) and $x^2$.

```python
x = 1  # one
```

| a | b |
|---|---|
| 1 | 2 |

> quoted"""
PANELS = ("Settings", "Documents", "Jobs", "Keyboard shortcuts")


def faults(reader: Reader) -> list[str]:
    """What axe finds, in words."""
    found = Axe().run(reader.page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]})
    return [f"{one['id']}: {node['html'][:160]}" for one in found.response["violations"] for node in one["nodes"]]


@pytest.mark.parametrize("screen", SCREENS)
def test_axe_finds_nothing(open_page: Open, screen: str) -> None:
    options: dict[str, Any] = SCREENS[screen]
    # axe is put into the page as a script, which its own policy would refuse.
    reader = open_page(bypass_csp=True, **options)
    page = reader.page
    assert faults(reader) == []
    page.get_by_label("Tools of this chat").click()
    page.locator("input[name=calculate]").check()
    assert faults(reader) == []
    page.keyboard.press("Escape")
    reader.ask(
        "Show me all.",
        EVERYTHING,
    )
    reader.will_call("calculate", expression="1+1")
    reader.ask("Work out 1+1.")
    expect(page.locator(".approval")).to_be_visible()
    assert faults(reader) == []
    for name in PANELS if screen != "phone" else PANELS[:1]:
        if screen == "phone":
            page.locator(".bar").get_by_label("Chats").click()
            assert faults(reader) == []
        page.get_by_role("button", name=name).click()
        assert faults(reader) == [], name
        page.keyboard.press("Escape")
    page.get_by_label("System prompt and sampling of this chat").click()
    assert faults(reader) == []
    page.keyboard.press("Escape")
    page.locator(".bar .model").click()
    expect(page.locator(".rows.disk li").first).to_be_visible()
    assert faults(reader) == []


def test_a_conversation_is_a_log_that_is_busy_while_it_is_written(open_page: Open) -> None:
    reader = open_page()
    log = reader.page.get_by_role("log")
    expect(log).to_have_attribute("aria-busy", "false")
    reader.ask("Talk.")
    expect(reader.last.locator(".markdown")).not_to_be_empty()
    expect(log).to_have_attribute("aria-busy", "true")
    assert reader.said() == "The model is answering."
    reader.page.keyboard.press("Escape")
    reader.wait()
    reader.ask("Hello", "Hi.")
    assert reader.said().startswith("The answer is complete")
    expect(log.get_by_role("article", name="You")).to_have_count(2)


def test_a_phone_has_everything_within_its_width(open_page: Open) -> None:
    reader = open_page(viewport={"width": 360, "height": 740}, has_touch=True)
    page = reader.page
    reader.ask("Show.", "```\n" + "x" * 400 + "\n```\n\n" + "y" * 300 + "\n\n$$" + "a+" * 80 + "b$$")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.querySelector('.scroll-log').scrollWidth <= document.querySelector('.scroll-log').clientWidth")
    expect(page.locator(".sidebar")).not_to_be_visible()
    page.locator(".bar").get_by_label("Chats").click()
    expect(page.locator(".sidebar")).to_be_visible()
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".sidebar")).not_to_be_visible()


LANGUAGES = {
    "en": "New chat",
    "de": "Neuer Chat",
    "fr": "Nouvelle conversation",
    "it": "Nuova chat",
    "pt": "Nova conversa",
    "hi": "नई बातचीत",
    "es": "Chat nuevo",
    "th": "แชตใหม่",
}


def test_the_page_speaks_eight_languages_each_fetched_when_chosen(open_page: Open) -> None:
    reader = open_page(locale="de-CH")
    page = reader.page
    expect(page.locator(".new")).to_have_text("Neuer Chat")
    page.get_by_role("button", name="Einstellungen").click()
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url.rpartition("/")[2]) if "/i18n/" in request.url else None)
    for code, text in LANGUAGES.items():
        page.locator("select[name=language]").select_option(code)
        expect(page.locator(".new")).to_have_text(text)
        assert page.evaluate("document.documentElement.lang") == code
    assert sorted(fetched) == sorted(f"{code}.js" for code in LANGUAGES if code not in ("en", "de"))
    page.reload()
    expect(page.locator(".new")).to_have_text(LANGUAGES["th"])


def test_dark_and_light_follow_the_system_and_the_readers_choice(open_page: Open) -> None:
    reader = open_page(color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = reader.page.evaluate(colour)
    reader.page.emulate_media(color_scheme="light")
    light = reader.page.evaluate(colour)
    assert dark != light
    reader.page.get_by_role("button", name="Settings").click()
    reader.page.locator("select[name=theme]").select_option("dark")
    expect(reader.page.locator("html")).to_have_attribute("data-theme", "dark")
    assert reader.page.evaluate(colour) == dark
