"""The examples run as their README says, on cria, and stay as small as examples should be."""

from __future__ import annotations

import io
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))
LINES = [
    line.removeprefix("$ python examples/")
    for line in (EXAMPLES / "README.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("$ python examples/")
]


def run(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What an example prints."""
    name, *arguments = shlex.split(line)
    monkeypatch.chdir(EXAMPLES.parent)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_every_example_is_told_and_short() -> None:
    told = re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert sorted(told) == [path.name for path in FILES] == sorted(line.split()[0] for line in LINES)
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 120 and f"python examples/{path.name}" in text, path.name


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split()[0])
def test_an_example_runs_as_written(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HERD_HOME", str(tmp_path))
    printed = run(line, monkeypatch, capsys)
    assert printed.strip()
    name = line.split()[0]
    if name == "batch_translator.py":
        assert list(json.loads(printed)) == ["en", "de", "fr", "it", "pt", "hi", "es", "th"]
    elif name == "guarded_bot.py":
        first, second = printed.split("> ")[1:]
        assert "not answered" not in first and "(not answered: jailbreak)" in second
    elif name == "document_assistant.py":
        assert re.search(r"^  \[1\] \w[\w-]*\.md: ", printed, re.MULTILINE)
    elif name == "two_agents.py":
        assert [line.partition(":")[0] for line in printed.splitlines() if ":" in line][:1] == ["writer"] and "critic: " in printed


def test_what_the_tools_of_the_shop_do(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = runpy.run_path(str(EXAMPLES / "chat_with_tools.py"))
    assert shop["stock"]("lamp") == "12 in stock" and "no article" in shop["stock"]("sofa")
    assert shop["order"]("lamp", 3) == "ordered; 15 in stock now"
