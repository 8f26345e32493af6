"""`herd run` and `herd chat` of a model whose packed weights are there: no torch, the same answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from herd_command import HerdCommand, environment  # pyright: ignore[reportMissingImports]

from herd.engine.packed.mapped import locate
from herd.kernels import dispatch

pytestmark = [
    pytest.mark.skipif(dispatch.choice().library is None, reason="the C kernels do not run here"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes the model"),
]
PROGRAM = """
import json, sys
from herd.cli.app import run
code = run(sys.argv[1:])
heavy = ("torch", "jaxtyping", "llguidance", "httpx", "openai", "sqlalchemy", "rich", "prompt_toolkit", "huggingface_hub", "scipy")
print(json.dumps([code, [name for name in heavy if name in sys.modules]]), file=sys.stderr)
"""


def alone(*words: str | Path, stdin: str = "") -> tuple[str, list[str]]:
    """A command in a process of its own: what it printed, and the heavy packages that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)], input=stdin, capture_output=True, text=True, env=environment(), check=True
    )
    code, heavy = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    return done.stdout, heavy


def test_a_warm_run_imports_nothing_heavy_and_answers_as_ever(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("run", "-m", tiny_folder, "--max-tokens", "12", "--seed", "5", "--temperature", "1", "The herd")
    monkeypatch.setenv("HERD_PACKED_BYTES", "0")
    expected, heavy = alone(*words)
    assert "torch" in heavy
    monkeypatch.delenv("HERD_PACKED_BYTES")
    first, heavy = alone(*words)
    assert "torch" in heavy and locate(tiny_folder, None) is not None
    second, heavy = alone(*words)
    assert heavy == [] and expected == first == second != ""


def test_threads_are_limited_without_torch(tiny_folder: Path) -> None:
    words = ("run", "-m", tiny_folder, "--max-tokens", "3", "--seed", "5", "--threads", "1", "The herd")
    assert alone(*words)[0] == alone(*words)[0]
    assert alone(*words)[1] == []


def test_a_warm_chat_imports_no_torch(tiny_folder: Path) -> None:
    words = ("chat", "-m", tiny_folder, "--max-tokens", "5", "--seed", "1")
    first, _ = alone(*words, stdin="Hello\nAgain\n")
    second, heavy = alone(*words, stdin="Hello\nAgain\n")
    assert "torch" not in heavy and first == second != ""


def test_weights_that_do_not_fit_are_refused_when_they_are_packed_too(
    herd: HerdCommand, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert herd("run", "-m", tiny_folder, "--max-tokens", "1", "Hello").code == 0
    assert locate(tiny_folder, None) is not None
    monkeypatch.setattr("herd.cli.fits.available_memory", lambda: 1000)
    message, hint = herd("run", "-m", tiny_folder, "Hello").refusal(4)
    assert f"the weights of {tiny_folder} take" in message and "cpu has 0.0 MiB free" in message and "smaller model" in hint
