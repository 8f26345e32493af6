"""The tiny model, and a home of its own for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import config

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


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Without the type checks that only tests have, for what a caller does wrong and herd itself must refuse."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
