"""The guide's commands do what it says: each is run as it is written, with stand-ins for the models and the data it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from guard_reader import Reader  # pyright: ignore[reportMissingImports]

from herd.base.settings import SETTINGS
from herd.cli.app import run
from tiny_guard import tiny_guard  # pyright: ignore[reportMissingImports]

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "guard.md"
BLOCKS = re.findall(r"^```console\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
LINES = [line[2:] for block in BLOCKS for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the guide's commands name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERD_HOME", str(tmp_path / "home"))
    for setting in SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)
    (tmp_path / "answer.md").write_text("```python\neval(x)\n```\n")
    (tmp_path / "page.txt").write_text("The river is long. Write to anna@example.org.\n")
    (tmp_path / "mail.txt").write_text("Dear Anna, the meeting is on Tuesday.\n")
    (tmp_path / "models").mkdir()
    tiny_guard(tmp_path / "models" / "Llama-Prompt-Guard-2-86M", ("LABEL_0", "LABEL_1"))
    return tmp_path


def command(line: str, monkeypatch: pytest.MonkeyPatch, place: Path) -> int:
    """Run one line of the guide; `< FILE` is standard input."""
    import io
    import sys

    words = shlex.split(line)
    if "<" in words:
        data = (place / words[words.index("<") + 1]).read_bytes()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        words = words[: words.index("<")]
    return run(words[1:])


CHECKS = [line for line in LINES if line.startswith("herd guard check") and "--llama-guard" not in line]


def test_the_guide_has_commands() -> None:
    assert len(CHECKS) == 5 and len(LINES) == 12


@pytest.mark.parametrize("line", CHECKS)
def test_a_check_of_the_guide_runs(line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code = command(line, monkeypatch, place)
    out, err = capsys.readouterr()
    assert "error:" not in err
    expected = {"Ignore all": 5, "answer.md": 5, "page.txt": 0, "anna@": 0}
    assert code == next((value for part, value in expected.items() if part in line), code) and code in (0, 5)
    if "--redact" in line:
        assert out == "Mail [email]"


def test_the_llama_guard_of_the_guide_is_asked(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_tokenizer
) -> None:  # type: ignore[no-untyped-def]
    from types import SimpleNamespace

    from scripted import scripted  # pyright: ignore[reportMissingImports]

    named: list[str] = []

    def load(model: str, **_: object) -> SimpleNamespace:
        named.append(model)
        return SimpleNamespace(inference=scripted(tiny_tokenizer, "unsafe\nS2"))

    monkeypatch.setattr("herd.cli.load.load_llm", load)
    for line in (line for line in LINES if line.startswith("herd guard check") and "--llama-guard" in line):
        assert command(line, monkeypatch, place) == 5
        assert "S2" in capsys.readouterr().out
    assert named == ["meta-llama/Llama-Guard-3-1B", "cria-guard"]


def test_measuring_and_training_run_as_written(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import herd.safety.corpus as corpus
    import herd.safety.train as training
    from herd.safety.linear import FitConfig

    texts = [
        *[("harm", f"I hate all of them and want to hurt number {number} badly", True, "S10") for number in range(60)],
        *[("daily", f"the bread of baker {number} is good and warm in the morning", False, None) for number in range(60)],
    ]
    examples = [
        corpus.Example(text=text, source=source, lang="en", group=f"{source}:{number}", harm=bad, attack=bad, embedded=bad, category=code)
        for number, (source, text, bad, code) in enumerate(texts)
    ]
    monkeypatch.setattr(corpus, "read_corpus", lambda folder: examples)
    monkeypatch.setattr(training, "read_corpus", lambda folder: examples)
    quick = FitConfig(num_steps=10)
    config = training.TrainConfig(harm=quick, attack=quick, embedded=quick, category=quick)
    monkeypatch.setattr(training, "TrainConfig", lambda: config)
    asked: list[str] = []

    class Loaded:
        def __init__(self, model: str, **_: object) -> None:
            asked.append(model)
            self.inference = Reader(0.6)

        async def __aenter__(self) -> Loaded:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("herd.inference.async_llm.AsyncLLM", Loaded)
    lines = [line for line in LINES if not line.startswith(("herd guard check", "herd train"))]
    for line in lines:
        assert command(line, monkeypatch, place) == 0, capsys.readouterr().err
    assert sorted(path.name for path in (place / "my-detectors").iterdir()) == ["MODEL_CARD.md", "detectors.npz", "figures.json"]
    assert asked == ["meta-llama/Llama-Guard-3-1B"] and capsys.readouterr().out.count("held back") == 4
