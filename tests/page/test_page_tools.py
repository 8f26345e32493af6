"""Tools in the page: what the model asks for is shown, nothing runs without leave, and the keyboard is enough for all of it."""

from __future__ import annotations

import json
from collections.abc import Callable

from browser import Reader  # pyright: ignore[reportMissingImports]
from playwright.sync_api import expect

Open = Callable[..., Reader]
TOOL = {
    "name": "weather",
    "description": "The weather of a place.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}


def with_tool(reader: Reader, *names: str) -> Reader:
    reader.page.get_by_label("Tools of this chat").click()
    for name in names:
        reader.page.locator(f"input[name={name}]").check()
    reader.page.keyboard.press("Escape")
    return reader


def test_a_call_waits_for_leave_then_runs_and_its_result_goes_back(open_page: Open) -> None:
    reader = with_tool(open_page(), "calculate")
    reader.will_call("calculate", expression="(17 + 4) * 2")
    reader.will_say("It is 42.")
    reader.ask("What is (17 + 4) * 2?")
    call = reader.page.locator(".tool")
    expect(call).to_contain_text("asks for your leave")
    expect(call.locator(".arguments")).to_contain_text("(17 + 4) * 2")
    expect(call.locator(".result")).to_have_count(0)
    assert "calculate" in reader.said()
    assert len(reader.bodies) == 1
    assert reader.bodies[0]["tools"][0]["function"]["name"] == "calculate"
    call.get_by_role("button", name="Allow", exact=True).click()
    expect(reader.last.locator(".markdown")).to_have_text("It is 42.")
    called, answered = reader.bodies[1]["messages"][-2:]
    assert json.loads(called["tool_calls"][0]["function"]["arguments"]) == {"expression": "(17 + 4) * 2"}
    assert answered == {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "name": "calculate", "content": "42"}
    call.locator("summary").click()
    expect(call.locator(".result")).to_have_text("42")


def test_a_denied_call_does_not_run_and_the_model_is_told(open_page: Open) -> None:
    reader = with_tool(open_page(), "calculate")
    reader.will_call("calculate", expression="(17 + 4) * 2")
    reader.will_say("Then not.")
    reader.ask("Work it out.")
    reader.page.locator(".deny").click()
    expect(reader.last.locator(".markdown")).to_have_text("Then not.")
    assert reader.bodies[1]["messages"][-1]["content"] == "The user did not allow this call."
    expect(reader.page.locator(".tool .state")).to_have_text("denied")


def test_always_is_remembered_until_it_is_taken_back(open_page: Open) -> None:
    reader = with_tool(open_page(), "calculate")
    reader.will_call("calculate", expression="(17 + 4) * 2")
    reader.will_say("It is 42.")
    reader.will_call("calculate", expression="(17 + 4) * 2")
    reader.will_say("Still 42.")
    reader.ask("Once.")
    reader.page.get_by_role("button", name="Always allow").click()
    expect(reader.last.locator(".markdown")).to_have_text("It is 42.")
    reader.ask("Twice.")
    expect(reader.last.locator(".markdown")).to_have_text("Still 42.")
    reader.page.get_by_label("Tools of this chat").click()
    reader.page.get_by_role("button", name="Ask again").click()
    expect(reader.page.get_by_role("button", name="Ask again")).to_have_count(0)


def test_a_function_of_the_readers_own_takes_its_result_by_hand(open_page: Open) -> None:
    reader = open_page()
    page = reader.page
    page.get_by_label("Tools of this chat").click()
    schema = page.get_by_label("A function of your own, as JSON schema")
    schema.fill('{"name": "not a name"}')
    page.get_by_role("button", name="Add function").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text('"name" must be letters')
    schema.fill(json.dumps({"type": "function", "function": TOOL}))
    page.get_by_role("button", name="Add function").click()
    expect(page.locator("input[name=weather]")).to_be_checked()
    page.keyboard.press("Escape")
    reader.will_call("weather", place="Lima")
    reader.will_say("Sunny in Lima.")
    reader.ask("How is Lima?")
    assert reader.bodies[0]["tools"] == [{"type": "function", "function": TOOL}]
    page.get_by_label("Result to give back").fill("sunny, 21 degrees")
    page.get_by_role("button", name="Send result").click()
    expect(reader.last.locator(".markdown")).to_have_text("Sunny in Lima.")
    assert reader.bodies[1]["messages"][-1]["content"] == "sunny, 21 degrees"


def test_a_call_that_waits_outlives_the_page(open_page: Open) -> None:
    reader = with_tool(open_page(), "calculate")
    reader.will_call("calculate", expression="(17 + 4) * 2")
    reader.ask("Work it out.")
    expect(reader.page.locator(".approval")).to_be_visible()
    reader.page.wait_for_timeout(1200)
    reader.page.reload()
    reader.will_say("It is 42.")
    reader.page.get_by_role("button", name="Allow", exact=True).click()
    expect(reader.last.locator(".markdown")).to_have_text("It is 42.")


def test_the_keyboard_alone_leads_through_a_whole_chat_with_a_tool(open_page: Open) -> None:
    reader = open_page()
    press, page = reader.page.keyboard.press, reader.page

    def tab_to(name: str, *, back: bool = False) -> None:
        for _ in range(60):
            focused = page.evaluate(
                "[document.activeElement?.ariaLabel, document.activeElement?.textContent, document.activeElement?.name].join('|')"
            )
            if name in focused:
                return
            press("Shift+Tab" if back else "Tab")
        raise AssertionError(f"the focus never came to {name!r}")

    expect(page.locator("#prompt")).to_be_focused()
    tab_to("Tools of this chat")
    press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    tab_to("calculate")
    press("Space")
    press("Escape")
    expect(page.get_by_label("Tools of this chat")).to_be_focused()
    tab_to("Write a message", back=True)
    reader.will_call("calculate", expression="(17 + 4) * 2")
    reader.will_say("It is 42.")
    reader.will_say("Or 42 again.")
    page.keyboard.type("What is it?")
    press("Enter")
    expect(page.locator(".approval")).to_be_visible()
    press("Alt+a")
    expect(reader.last.locator(".markdown")).to_have_text("It is 42.")
    reader.wait()
    press("Alt+r")
    expect(reader.last.locator(".markdown")).to_have_text("Or 42 again.")
    reader.wait()
    press("Alt+e")
    expect(page.locator(".said.editing textarea")).to_be_focused()
    press("Escape")
    press("Alt+m")
    expect(page.get_by_role("dialog")).to_contain_text("tiny")
    press("Escape")
    press("Alt+n")
    expect(page.locator(".welcome")).to_be_visible()
    expect(page.locator("#prompt")).to_be_focused()
    press("Alt+s")
    expect(page.locator("#search")).to_be_focused()
    page.locator(".scroll-log").focus()
    press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Keyboard shortcuts")


def test_what_the_page_calculates_is_arithmetic_and_nothing_else(open_page: Open) -> None:
    reader = open_page()
    run = """async (text) => {
        const { calculate } = await import("/page/tools.js");
        try { return calculate(text); } catch (error) { return String(error.message); }
    }"""
    known = {
        "1+2*3": 7,
        "-2^2": -4,
        "2^3^2": 512,
        "(1+2)*-3": -9,
        "7 % 4": 3,
        "sqrt(16) + abs(-1)": 5,
        "2*pi": 6.283185307179586,
        "1e3": 1000,
    }
    for text, value in known.items():
        assert reader.page.evaluate(run, text) == value, text
    for text in ("alert(1)", "constructor", "1+", "(1", "1 2", "", "toString(1)"):
        assert isinstance(reader.page.evaluate(run, text), str), text
