"""A random model of four layers, large enough for groups of 32, and tokens to calibrate it on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from herd.checkpoint.load import save_model
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.transformer import Transformer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ModelConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.15,
    )
    with torch.device("meta"):
        model = Transformer(config)
    initialise(model, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for block in model.model.layers:
            # Some inputs stick out, as they do in trained models.
            for norm in (block.input_layernorm, block.post_attention_layernorm):
                norm.weight.copy_(torch.exp(1.2 * torch.randn(64, generator=generator)))
    folder = tmp_path_factory.mktemp("quant") / "model"
    save_model(model.bfloat16(), folder)
    return folder


@pytest.fixture(scope="session")
def tokens_BT() -> Tensor:
    return torch.randint(0, 320, (8, 48), generator=torch.Generator().manual_seed(7))
