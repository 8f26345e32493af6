"""The tiny model, and a home of its own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import tiny_folder, tiny_llm, tiny_tokenizer  # noqa: F401  # pyright: ignore[reportMissingImports]

VARIABLES = ("MODEL", "DEVICE", "DTYPE", "THREADS", "TEMPERATURE", "TOP_P", "MAX_TOKENS", "DATA", "DEBUG", "LOG_LEVEL")


@pytest.fixture(autouse=True)
def herd_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HERD_HOME in a temporary folder, no herd.toml, no settings from outside."""
    folder = tmp_path / "home"
    monkeypatch.setenv("HERD_HOME", str(folder))
    for name in VARIABLES:
        monkeypatch.delenv(f"HERD_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder
