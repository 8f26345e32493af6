"""What commands print: aligned tables, JSON with its letters, colour only where it is welcome."""

from __future__ import annotations

import io
import json
import sys

import pytest

from herd.cli import output


@pytest.mark.parametrize(
    ("terminal", "variables", "grey"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": ""}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_remarks_are_grey_only_on_a_terminal_that_shows_colours(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, variables: dict[str, str], grey: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert output.dim("remark") == ("\x1b[2mremark\x1b[0m" if grey else "remark")


def test_notes_go_to_stderr_and_lines_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    output.note("a note")
    output.line("a line")
    assert capsys.readouterr() == ("a line\n", "a note\n")


def test_a_table_is_aligned_and_has_no_trailing_space(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([("a", "1"), ("longer", "")], ("name", "n"))
    assert capsys.readouterr().out == "name    n\na       1\nlonger\n"


def test_facts_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.facts({"a": "1", "longer": "2"})
    assert capsys.readouterr().out == "a       1\nlonger  2\n"


def test_json_keeps_letters_and_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"text": "ลามะ", "number": 1.5})
    out = capsys.readouterr().out
    assert "ลามะ" in out and json.loads(out) == {"text": "ลามะ", "number": 1.5}


def test_letters_that_stdout_lacks_become_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    output.write("é ลา\n")
    assert raw.getvalue() == b"\xe9 ??\n"
