"""Peers in another interpreter: the pipe between them, what is refused, and what is left out with a word. The engine is a stand-in."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[2])

ENGINE = """
class Generator:
    def __init__(self, folder, **options):
        assert options["compute_type"] == "int8" and options["intra_threads"] >= 1

    def generate_batch(self, prompts, max_length, **options):
        assert all(word.startswith("w") for prompt in prompts for word in prompt)
        short = 1 if len(prompts) == 3 else 0
        return [type("Result", (), {"sequences_ids": [[0] * (max_length - short)]}) for _ in prompts]
"""


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that has the stand-in."""
    monkeypatch.syspath_prepend(ROOT)
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "ctranslate2.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(modules))
    return Path(sys.executable)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    exported = tmp_path / "ct2-110m" / "int8"
    exported.mkdir(parents=True)
    (exported / "model.bin").touch()
    (exported / "vocabulary.json").write_text(json.dumps([f"w{number}" for number in range(2000)]))
    return tmp_path


def options(**given: Path | None) -> argparse.Namespace:
    return argparse.Namespace(**{"openvino_python": None, "ctranslate2_python": None, **given})


def ids(length: int) -> list[int]:
    return list(range(length))


def test_figures_come_over_the_pipe(python: Path, checkpoints: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from benchmarks.foreign_peers import foreign_peers

    found = foreign_peers(options(ctranslate2_python=python), checkpoints, "110m", "8", ids)
    assert list(found) == ["ctranslate2"]
    assert "openvino: left out, no --openvino-python given" in capfd.readouterr().err
    peer = found["ctranslate2"]
    assert peer.prefill() > 0
    assert peer.loading()["load_s"] > 0
    with pytest.raises(SystemExit, match=r"ctranslate2 failed: RuntimeError: asked for 32 tokens of 3 prompts, got \[31, 31, 31\]"):
        peer.decode(3)
    peer.close()


@pytest.mark.parametrize(
    ("interpreter", "message"),
    [(lambda _: Path("/no/such/python"), "/no/such/python does not run"), (lambda python: python, "cannot import openvino_genai")],
    ids=["absent", "without"],
)
def test_what_is_absent_is_left_out_with_a_word(
    interpreter: Callable[[Path], Path], message: str, python: Path, checkpoints: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.foreign_peers import foreign_peers

    assert foreign_peers(options(openvino_python=interpreter(python)), checkpoints, "110m", "8", ids) == {}
    assert f"openvino: left out, {message}" in capfd.readouterr().err.replace(str(python), "").replace("out,  ", "out, ")


def test_an_export_that_fails_is_told(python: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from benchmarks.foreign_peers import foreign_peers

    assert foreign_peers(options(ctranslate2_python=python), tmp_path, "110m", "8", ids) == {}
    assert "ctranslate2: left out, its export failed" in capfd.readouterr().err


def test_kinds_that_a_peer_does_not_have(python: Path, checkpoints: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from benchmarks.foreign_peers import foreign_peers

    assert foreign_peers(options(ctranslate2_python=python), checkpoints, "110m", "4", ids) == {}
    assert "nothing to set beside 4" in capfd.readouterr().err
