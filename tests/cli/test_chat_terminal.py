"""`herd chat` at a terminal: editing, pasting, interrupting, history and leaving, through a pseudo-terminal as a person would."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from pseudo_terminal import (  # pyright: ignore[reportMissingImports]
    ALT_ENTER,
    CTRL_C,
    CTRL_D,
    CTRL_G,
    ENTER,
    TAB,
    UP,
    PseudoTerminal,
    pasted,
)

STATISTICS = r"\[\d+ tokens, [\d.]+ tokens/s, first after [\d.]+ s, context [\d,]+ of [\d,]+[^\]]*\]"
SHORT = ("--temperature", "0", "--max-tokens", "3", "--device", "cpu")


def users(path: Path) -> list[str]:
    """What the user of a saved conversation said."""
    return [message["content"] for message in json.loads(path.read_text())["messages"] if message["role"] == "user"]


def test_messages_of_several_lines_stay_whole_however_they_are_typed(tiny_folder: Path, herd_home: Path, tmp_path: Path) -> None:
    with PseudoTerminal("chat", "-m", tiny_folder, *SHORT) as terminal:
        terminal.expect(r"tiny: [\d,]+ parameters, context 512 tokens. /help lists commands, Ctrl-D leaves.")
        assert "\x1b[2m" in terminal.raw, "remarks are grey where there are colours"
        terminal.prompt()
        terminal.type(pasted("pasted one\npasted two\npasted three") + ENTER)
        terminal.expect(STATISTICS)
        terminal.prompt()
        terminal.type("alt one" + ALT_ENTER + "alt two" + ENTER)
        terminal.expect(STATISTICS)
        terminal.prompt()
        terminal.type('"""quoted one' + ENTER)
        terminal.expect(r"\.\.\.")
        terminal.type('quoted two"""' + ENTER)
        terminal.expect(STATISTICS)
        terminal.prompt()
        terminal.type("/save talk.json" + ENTER)
        terminal.expect("saved 6 messages")
        terminal.prompt()
        terminal.type(CTRL_D)
        assert terminal.ends() == 0
    expected = ["pasted one\npasted two\npasted three", "alt one\nalt two", "quoted one\nquoted two"]
    assert users(tmp_path / "talk.json") == expected
    history = herd_home / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600, "what was said is readable by its owner alone"
    assert [line for line in history.read_text().splitlines() if line.startswith("+")][:3] == [
        "+pasted one",
        "+pasted two",
        "+pasted three",
    ]


def test_ctrl_c_stops_an_answer_keeps_it_and_the_chat_goes_on(endless_folder: Path, tmp_path: Path) -> None:
    with PseudoTerminal("chat", "-m", endless_folder, "--temperature", "0", "--max-tokens", "190000", "--device", "cpu") as terminal:
        terminal.prompt()
        terminal.type("Talk for ever" + ENTER)
        # Far more than the line drawn anew: the answer runs, so the keys are signals again.
        terminal.expect(r"(?s)Talk for ever.{1500}")
        terminal.type(CTRL_C)
        terminal.expect("stopped; what was said is kept")
        terminal.prompt()
        terminal.type("half a line" + CTRL_C)
        terminal.prompt()
        terminal.type("/save talk.json" + ENTER)
        terminal.expect("saved 2 messages")
        terminal.prompt()
        terminal.type("/nonsense" + ENTER)
        terminal.expect("error: unknown command /nonsense")
        terminal.prompt()
        terminal.type("/exit" + ENTER)
        assert terminal.ends() == 0
    conversation = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["role"] for message in conversation] == ["user", "assistant"] and conversation[1]["content"]


def test_earlier_messages_come_back_commands_complete_and_the_editor_opens(tiny_folder: Path, herd_home: Path, tmp_path: Path) -> None:
    herd_home.mkdir()
    (herd_home / "history").write_text("\n# 2024-07-23 00:00:00.000000\n+said on another day\n")
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf 'from the editor' > \"$1\"\n")
    editor.chmod(0o755)
    with PseudoTerminal("chat", "-m", tiny_folder, *SHORT, EDITOR=str(editor), VISUAL=str(editor)) as terminal:
        terminal.prompt()
        terminal.type(UP)
        terminal.expect("said on another day")
        terminal.type(ENTER)
        terminal.expect(STATISTICS)
        terminal.prompt()
        terminal.type(CTRL_G)
        terminal.expect("from the editor")
        terminal.type(ENTER)
        terminal.expect(STATISTICS)
        terminal.prompt()
        terminal.type("/set top" + TAB)
        terminal.expect("/set top_")
        terminal.type(CTRL_C)
        terminal.prompt()
        terminal.type("/save talk.json" + ENTER)
        terminal.expect("saved 4 messages")
        terminal.prompt()
        terminal.type('"""never closed' + ENTER)
        terminal.expect(r"\.\.\.")
        terminal.type(CTRL_D)
        assert terminal.ends() == 0
    assert users(tmp_path / "talk.json") == ["said on another day", "from the editor"]


def test_answers_go_to_a_file_and_what_is_typed_does_not(tiny_folder: Path, tmp_path: Path) -> None:
    with PseudoTerminal("chat", "-m", tiny_folder, *SHORT, answers=tmp_path / "answers.txt") as terminal:
        terminal.prompt()
        terminal.type("Hello" + ENTER)
        terminal.expect(STATISTICS)
        terminal.prompt()
        terminal.type(CTRL_D)
        assert terminal.ends() == 0
    answers = (tmp_path / "answers.txt").read_bytes()
    assert answers.endswith(b"\n") and b"Hello" not in answers and b">>>" not in answers and b"tokens/s" not in answers


def test_ctrl_c_ends_herd_run_with_130(endless_folder: Path) -> None:
    with PseudoTerminal("run", "-m", endless_folder, "--temperature", "0", "--max-tokens", "190000", "x") as terminal:
        terminal.expect(r".{20}")
        terminal.type(CTRL_C)
        assert terminal.ends() == 130
    assert "Traceback" not in terminal.screen
