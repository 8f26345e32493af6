"""The tiny model, a home of its own for every test, herd's command line in this process, and models that say what they are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from herd_command import HerdCommand, Talker  # pyright: ignore[reportMissingImports]

from herd.checkpoint.load import save_model
from herd.inference.llm import LLM
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.text.tokenizer import Tokenizer
from tiny_model import tiny_config, tiny_folder, tiny_llm, tiny_tokenizer  # noqa: F401  # pyright: ignore[reportMissingImports]

VARIABLES = ("MODEL", "DEVICE", "DTYPE", "THREADS", "TEMPERATURE", "TOP_P", "MAX_TOKENS", "DATA", "DEBUG", "LOG_LEVEL")


@pytest.fixture(autouse=True)
def herd_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HERD_HOME in a temporary folder, no herd.toml, no settings from outside, help texts of one width."""
    folder = tmp_path / "home"
    monkeypatch.setenv("HERD_HOME", str(folder))
    monkeypatch.setenv("COLUMNS", "100")
    for name in (*(f"HERD_{name}" for name in VARIABLES), "NO_COLOR", "_HERD_COMPLETE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def herd(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> HerdCommand:
    """Runs a command line in this process: `herd("run", "-m", folder, "Hello")`."""
    return HerdCommand(capsys, monkeypatch)


@pytest.fixture
def says(tiny_tokenizer: Tokenizer) -> Callable[..., LLM]:  # noqa: F811
    """`says("Hi.", "Bye.")` is a model that gives these answers one after another; `fails` maps tokens, by number, to what is raised."""

    def make(*answers: str, fails: dict[int, BaseException] | None = None, context: int = 4096) -> LLM:
        script = [token_id for answer in answers for token_id in (*tiny_tokenizer.encode(answer), tiny_tokenizer.eot_id)]
        return LLM(Talker(script, tiny_tokenizer.vocab_size, context, fails or {}), tokenizer=tiny_tokenizer)

    return make


@pytest.fixture(scope="session")
def endless_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:  # noqa: F811
    """A tiny model on disk that talks for 200,000 tokens: time enough to interrupt it."""
    with torch.device("meta"):
        model = Transformer(replace(tiny_config(tiny_tokenizer.vocab_size), max_position_embeddings=200_000))
    initialise(model, seed=5)
    assert model.lm_head is not None
    with torch.no_grad():
        model.lm_head.weight[tiny_tokenizer.num_base :] = 0.0
    folder = tmp_path_factory.mktemp("models") / "endless"
    save_model(model, folder, tokenizer=tiny_tokenizer)
    return folder
