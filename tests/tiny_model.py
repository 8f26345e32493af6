"""A random model of a few thousand weights and a tokenizer trained on a page of text, made once a session for tests that need both.

Import the fixtures into a conftest. The rows of special tokens are zero in the output matrix, so that greedy answers never end.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from herd.checkpoint.load import save_model
from herd.inference.llm import LLM
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.text.bpe_train import train_bpe
from herd.text.tokenizer import Tokenizer

TEXT = """The herd grazes on the high plain. A cria is a young llama, and the cria follows the herd.
The wind is cold in the evening; the herd lies down close together. In the morning the sun rises over the mountains.
Ein kleines Lama läuft über die Wiese. Où est le troupeau? El rebaño está en la montaña. ลามะอยู่บนภูเขา। झुंड पहाड़ पर है।
"""
CONTEXT = 512


def tiny_config(vocab_size: int) -> ModelConfig:
    """Two layers of width 32."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
    )


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """256 bytes, some merges and the special tokens."""
    return train_bpe([TEXT] * 4, 320)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """The model with its tokenizer on disk, as Hugging Face lays it out."""
    with torch.device("meta"):
        model = Transformer(tiny_config(tiny_tokenizer.vocab_size))
    initialise(model, seed=5)
    assert model.lm_head is not None
    with torch.no_grad():
        model.lm_head.weight[tiny_tokenizer.num_base :] = 0.0
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(model, folder, tokenizer=tiny_tokenizer)
    return folder


@pytest.fixture(scope="session")
def tiny_llm(tiny_folder: Path) -> LLM:
    """The model, loaded."""
    return LLM(tiny_folder, device="cpu")
