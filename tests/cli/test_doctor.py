"""`herd doctor`: what the machine has, whether the installation answers, and the largest model that fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from herd_command import HerdCommand  # pyright: ignore[reportMissingImports]

from herd.version import __version__

GIB = 2**30
KEYS = {
    "herd",
    "python",
    "system",
    "packages",
    "threads",
    "cpu_kernels",
    "gpus",
    "memory_bytes",
    "memory_free_bytes",
    "gpu_memory_free_bytes",
    "disk_free_bytes",
    "home",
    "code_execution",
    "problems",
    "largest_that_fits",
}


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    """The tiny model stands in for cria."""
    monkeypatch.setattr("herd.checkpoint.resolve.bundled_model", lambda: tiny_folder)


@pytest.mark.usefixtures("healthy")
def test_a_sound_installation_answers_and_ends_with_0(herd: HerdCommand, herd_home: Path) -> None:
    result = herd("doctor", "--json")
    assert (result.code, result.err) == (0, "")
    data = result.json
    assert set(data) == KEYS and data["problems"] == []
    assert data["herd"] == __version__ and data["home"] == str(herd_home) and data["packages"]["torch"] != "missing"
    assert 0 < data["memory_free_bytes"] <= data["memory_bytes"] and data["disk_free_bytes"] > 0
    plain = herd("doctor")
    assert plain.code == 0 and "cria answers: this installation works" in plain.out and "GiB" in plain.out


def test_a_model_that_does_not_answer_ends_with_5(herd: HerdCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("herd.checkpoint.resolve.bundled_model", lambda: tmp_path / "gone")
    result = herd("doctor", "--json")
    assert result.refusal(5)[0] == "1 problem(s) found"
    assert len(result.json["problems"]) == 1 and result.json["problems"][0].startswith("cria does not answer: ")
    assert "problem: cria does not answer" in herd("doctor").out


@pytest.mark.usefixtures("healthy")
def test_settings_that_are_wrong_and_packages_that_are_missing_are_problems(herd: HerdCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_THREADS", "many")
    monkeypatch.setattr("herd.cli.doctor._PACKAGES", ("torch", "no-such-package"))
    result = herd("doctor", "--json")
    assert result.code == 5
    assert result.json["problems"][0] == "no-such-package is not installed: pip install no-such-package"
    assert "HERD_THREADS='many'" in result.json["problems"][1]
    assert result.json["packages"]["no-such-package"] == "missing"


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize(
    ("free", "expected"),
    [(1000 * GIB, "llama3.1:405b"), (200 * GIB, "llama3.1:70b"), (20 * GIB, "llama3.1:8b"), (3 * GIB, "llama3.2:1b"), (GIB, None)],
)
def test_the_largest_model_that_fits_comes_with_its_command(
    herd: HerdCommand, monkeypatch: pytest.MonkeyPatch, free: int, expected: str | None
) -> None:
    machine: dict[str, Any] = {"gpu_memory_free_bytes": None, "memory_free_bytes": free}
    monkeypatch.setattr("herd.cli.doctor._machine", lambda: machine)
    fitting = herd("doctor", "--json").json["largest_that_fits"]
    assert fitting is None if expected is None else fitting["command"] == f"herd pull {expected} && herd chat --model {expected}"
    assert ("no published model fits" if expected is None else expected) in herd("doctor").out


@pytest.mark.usefixtures("healthy")
def test_measuring_keeps_this_machine_for_plans(herd: HerdCommand, herd_home: Path) -> None:
    result = herd("doctor", "--measure", "--watts", "30", "--json")
    assert result.code == 0
    measured = result.json["measured"]
    assert measured["memory_gb_per_s"] > 0.1 and measured["bf16_tflops"] > 0.0001 and measured["watts"] == 30.0 and measured["measured"]
    assert measured["path"] == str(herd_home / "hardware.toml") and (herd_home / "hardware.toml").is_file()
    plan = herd("plan", "train", "cria-8m", "--hardware", "here", "--sequence", "512", "--batch-tokens", "4096", "--tokens", "1M", "--json")
    assert plan.code == 0 and plan.json["tokens_per_s"] > 0 and plan.json["hardware"]["name"] == "here"
    assert "here" in herd("plan", "hardware").out
    assert "--watts 30 goes with --measure" in herd("doctor", "--watts", "30").refusal(2)[0]
