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

from herd.data.records import read_records
from herd.inference.port import ChatRequest
from herd.recipes.judged import read_choice
from scripted_agent import Say, Scripted, call  # pyright: ignore[reportMissingImports]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))
LINES = [
    line.removeprefix("$ python examples/")
    for line in (EXAMPLES / "README.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("$ python examples/")
]


def needs_a_jail() -> None:
    """Skips, with the reason, where code cannot be run."""
    from herd.base.errors import HerdError
    from herd.tools.code.choose import choose

    try:
        choose()
    except HerdError as error:
        pytest.skip(f"no jail works here: {error.message}")


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
    name = line.split()[0]
    if name == "data_analyst.py":
        needs_a_jail()
    if name in ("data_analyst.py", "fine_tune_and_chat.py"):
        line = f"{line.partition(' --output')[0]} --output {tmp_path / 'made'}"
    if name == "own_mistakes.py":
        line = line.replace("pairs.jsonl", str(tmp_path / "pairs.jsonl"))
    printed = run(line, monkeypatch, capsys)
    assert printed.strip()
    if name == "batch_translator.py":
        assert list(json.loads(printed)) == ["en", "de", "fr", "it", "pt", "hi", "es", "th"]
    elif name == "guarded_bot.py":
        first, second = printed.split("> ")[1:]
        assert "not answered" not in first and "(not answered: jailbreak)" in second
    elif name == "document_assistant.py":
        assert re.search(r"^  \[1\] \w[\w-]*\.md: ", printed, re.MULTILINE)
    elif name == "fine_tune_and_chat.py":
        before, after = re.findall(r"^(?:before|after): +(.*)$", printed, re.MULTILINE)
        assert "nine" not in before and after == "We open at nine and close at six, from Monday to Saturday."
        assert (tmp_path / "made" / "adapter").is_dir() and (tmp_path / "made" / "model" / "model.safetensors").is_file()
    elif name == "own_mistakes.py":
        records = list(read_records(tmp_path / "pairs.jsonl"))
        assert printed.startswith(f"{len(records)} pairs") and len(records) >= 3
        for choice in map(read_choice, records):  # as `herd train dpo` reads them
            (better, high), (worse, low) = choice.answers
            assert better[-1] != worse[-1] and high > low
    elif name == "two_agents.py":
        assert [line.partition(":")[0] for line in printed.splitlines() if ":" in line][:1] == ["writer"] and "critic: " in printed


def test_what_the_tools_of_the_shop_do(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = runpy.run_path(str(EXAMPLES / "chat_with_tools.py"))
    assert shop["stock"]("lamp") == "12 in stock" and "no article" in shop["stock"]("sofa")
    assert shop["order"]("lamp", 3) == "ordered; 15 in stock now"


PLOT = """import pandas as pd
import matplotlib.pyplot as plt
table = pd.read_csv("shop.csv")
plt.bar(table["month"], table["lamps"])
plt.show()
print(table["lamps"].sum())"""


def test_the_analysts_plot_is_kept_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    needs_a_jail()
    monkeypatch.setenv("HERD_HOME", str(tmp_path / "home"))
    analyst = runpy.run_path(str(EXAMPLES / "data_analyst.py"))
    seen: list[str] = []

    def says(request: ChatRequest) -> Say:
        seen.append(request.messages[-1].text)
        if len(seen) == 1:
            assert "columns are: month,lamps,chairs" in request.messages[0].text
            return Say(calls=(call("code_interpreter", code=PLOT),))
        return Say(text="Lamps sell better every month.")

    answer, kept = analyst["analyse"](Scripted(says), "Plot the lamps.", analyst["shop_table"](), tmp_path / "plots")
    assert answer == "Lamps sell better every month."
    assert "116" in seen[1], "the code read the table"
    assert [path.suffix for path in kept] == [".png"]
    assert kept[0].read_bytes().startswith(b"\x89PNG\r\n\x1a\n") and kept[0].stat().st_size > 2_000


def test_the_questions_of_a_folder_are_its_headings(tmp_path: Path) -> None:
    tuner = runpy.run_path(str(EXAMPLES / "fine_tune_and_chat.py"))
    (tmp_path / "a.md").write_text("# Opening\n\nIntro.\n\n## When do\n## When do you open? \n\nAt nine.\nAnd late.\n\n## Prices\n\nLow.\n")
    (tmp_path / "b.jsonl").write_text('{"question": "Why?", "answer": "So."}\n\n')
    (tmp_path / "c.csv").write_text("## Not read?\n\nNo.\n")
    assert [json.loads(line) for line in tuner["chats_of"](tmp_path)] == [
        {"question": "When do you open?", "answer": "At nine. And late."},
        {"question": "Why?", "answer": "So."},
    ]
    assert len(tuner["chats_of"](EXAMPLES / "shop")) == 8
    with pytest.raises(SystemExit, match="holds no questions"):
        tuner["tune"](tmp_path / "nothing", tmp_path / "made")
