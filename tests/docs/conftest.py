"""A random model that stands in for cria where that is not bundled: as `tiny_model`, with a context that holds a prompt with tools."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from herd.checkpoint.load import save_model
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.text.tokenizer import Tokenizer
from tiny_model import tiny_config, tiny_tokenizer  # noqa: F401  # pyright: ignore[reportMissingImports]

sys.path.append(str(Path(__file__).parents[1] / "stack"))


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:  # noqa: F811
    """Its folder."""
    with torch.device("meta"):
        model = Transformer(replace(tiny_config(tiny_tokenizer.vocab_size), max_position_embeddings=4096))
    folder = tmp_path_factory.mktemp("docs") / "cria"
    save_model(initialise(model, seed=5), folder, tokenizer=tiny_tokenizer)
    return folder
