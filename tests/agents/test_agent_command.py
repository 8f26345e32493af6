"""`herd agent` without a terminal: turns shown, questions, sessions, traces; the model is a script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from herd.agents.agent import Agent
from herd.cli.agent_talk import COMMANDS, Talk, question_of
from herd.cli.app import run
from scripted_agent import Noted, Say, Scripted, call  # pyright: ignore[reportMissingImports]


class Screen:
    def __init__(self) -> None:
        self.said, self.remarks = "", []

    def answer(self, text: str) -> None:
        self.said += text

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    def decide(self, question: str) -> str:
        raise AssertionError("nobody is asked here")


def script(request: Any) -> Say:
    return Say("it is seen") if any(message.role == "tool" for message in request.messages) else Say("", (call("look", at="\x1b[31mred"),))


@pytest.fixture
def scripted_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The command's model is the script."""
    from herd.agents import models

    monkeypatch.setenv("HERD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(
        "herd.agents.agent.source_of", lambda model, **_: models.source_of(Scripted(talks), base_url=None, api_key=None, load={})
    )
    return tmp_path


def talks(request: Any) -> Say:
    asked = next(message.text for message in reversed(request.messages) if message.role == "user")
    results = [message for message in request.messages if message.role == "tool"]
    return Say("", (call("clock"),)) if request.tools and not results else Say(f"you said {asked}")


def test_a_talk_shows_calls_and_obeys_no_escape_sequence() -> None:
    screen = Screen()
    with Agent(Scripted(script), tools=[Noted()], shields=()) as agent:
        talk = Talk(agent, screen)
        talk.handle("look there")
        assert screen.said == "it is seen\n" and not any("\x1b" in remark for remark in screen.remarks)
        assert screen.remarks[0].startswith("-> look(") and screen.remarks[1] == "<- look: seen"
        for command in COMMANDS:
            if command not in ("/exit", "/new"):
                talk.handle(command)
        assert any(remark.startswith("turn 1  completed") for remark in screen.remarks)
        talk.handle("/nothing")
        assert "error: unknown command /nothing" in screen.remarks
        talk.handle("/new")
        talk.handle("/exit")
        assert talk.done


def test_a_question_says_what_for() -> None:
    from herd.agents.agent import ApprovalRequest
    from herd.tools.tool import Taint

    request = ApprovalRequest(
        tool="send", arguments={"to": "a\x07"}, why="rule_of_two", taint=Taint(), session_taint=Taint(), call_id="c", session_id="s"
    )
    assert "come together; run it?" in question_of(request) and "\x07" not in question_of(request)


def test_a_prompt_is_answered_once_and_its_session_is_kept(scripted_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["agent", "hello", "--tools", "clock", "--shields", "none"]) == 0
    out, err = capsys.readouterr()
    assert out == "you said hello\n" and "-> clock({})" in err
    assert run(["agent", "--list", "--json"]) == 0
    (session,) = json.loads(capsys.readouterr().out)["sessions"]
    assert session["num_turns"] == 1
    assert run(["agent", "more", "--session", session["id"], "--shields", "none", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["session_id"] == session["id"] and result["status"] == "completed"
    assert run(["agent", "trace", session["id"]]) == 0
    shown = capsys.readouterr().out
    assert "turn 1  completed" in shown and "turn 2  completed" in shown and "tool " in shown
    assert run(["agent", "--list"]) == 0
    assert session["id"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["agent", "trace"], 2, "trace needs a session"),
        (["agent", "two", "words"], 2, "there is a second argument"),
        (["agent", "x", "--approve", "sometimes"], 2, "choose ask, always or never"),
        (["agent", "x", "--session", "session_none"], 3, "there is no session"),
        (["agent", "trace", "session_none"], 3, "there is no session"),
        (["agent", "x", "--tools", "clok"], 3, "did you mean 'clock'?"),
    ],
)
def test_what_is_wrong_is_told(
    arguments: list[str], code: int, words: str, scripted_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == code
    assert words in capsys.readouterr().err
