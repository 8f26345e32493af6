"""Logits and gradients against transformers' LlamaForCausalLM: random weights, float32, every shape that Llama 3 uses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from herd.base.errors import ConfigError
from herd.model.attention import CausalCore
from herd.model.config import ModelConfig, RopeScaling
from herd.model.init import initialise
from herd.model.presets import preset
from herd.model.transformer import Transformer

F8, F32 = RopeScaling(factor=8.0), RopeScaling(factor=32.0)


def shape(heads: int, kv_heads: int, head_dim: int, scaling: RopeScaling | None, **more: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "vocab_size": 160,
        "hidden_size": 96,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "initializer_range": 0.1,
    }
    return ModelConfig(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, rope_scaling=scaling, **(fields | more))


CONFIGS = {
    "8 of 32 KV heads of 128, factor 8, as 8B": shape(32, 8, 128, F8, num_hidden_layers=1),
    "8 of 16 KV heads of 128, factor 8, three layers": shape(16, 8, 128, F8, num_hidden_layers=3),
    "8 of 32 KV heads of 64, factor 32, tied, as 3.2-1B": shape(32, 8, 64, F32, tie_word_embeddings=True),
    "8 of 24 KV heads of 128, factor 32, tied, as 3.2-3B": shape(24, 8, 128, F32, tie_word_embeddings=True, num_hidden_layers=1),
    "8 of 16 KV heads of 128, no scaling, as Llama 3": shape(16, 8, 128, None),
    "8 of 16 KV heads of 64, no scaling, tied": shape(16, 8, 64, None, tie_word_embeddings=True),
    "1 KV head of 64, factor 8": shape(4, 1, 64, F8),
    "1 KV head of 128, no scaling, tied": shape(4, 1, 128, None, tie_word_embeddings=True),
    "1 KV head of 128, factor 32": shape(6, 1, 128, F32),
    "as many KV heads as heads of 64, no scaling": shape(4, 4, 64, None),
    "as many KV heads as heads of 64, factor 8, tied": shape(4, 4, 64, F8, tie_word_embeddings=True),
    "as many KV heads as heads of 128, factor 32": shape(3, 3, 128, F32),
    "one head in all, one layer": shape(1, 1, 64, F8, num_hidden_layers=1),
    "theta 10000, another epsilon": shape(4, 2, 64, None, rope_theta=10000.0, rms_norm_eps=1e-3),
    "other scaling constants": shape(
        4, 2, 64, RopeScaling(factor=4.0, low_freq_factor=2.0, high_freq_factor=16.0, original_max_position_embeddings=1024)
    ),
    "cria-tiny": preset("cria-tiny"),
}


def rope_parameters(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    return {
        "rope_type": "llama3",
        "rope_theta": config.rope_theta,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    }


def pair(config: ModelConfig) -> tuple[Transformer, LlamaForCausalLM]:
    """Our model and theirs with one set of weights; norm weights are random too, so that a forgotten one shows."""
    ours = initialise(Transformer(config), seed=7).eval()
    with torch.no_grad():
        for index, (name, parameter) in enumerate(ours.named_parameters()):
            if name.endswith("norm.weight"):
                parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
            rope_parameters=rope_parameters(config),
        )
    ).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    return ours, theirs


def random_tokens(config: ModelConfig, batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_equal_those_of_transformers(name: str) -> None:
    ours, theirs = pair(CONFIGS[name])
    tokens_BT = random_tokens(ours.config, 2, 24)
    logits = ours(tokens_BT)
    assert logits.dtype == torch.float32
    assert relative_error(logits, theirs(tokens_BT).logits) < 1e-4


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_far_beyond_the_original_context_equal_those_of_transformers(name: str) -> None:
    ours, theirs = pair(CONFIGS[name])
    positions_BT = torch.tensor([[0, 1, 2, 2047, 8190, 8191, 8192, 8193, 65536, 131069, 131070, 131071]])
    tokens_BT = random_tokens(ours.config, 1, positions_BT.shape[1], seed=1)
    expected = theirs(tokens_BT, position_ids=positions_BT).logits
    assert relative_error(ours(tokens_BT, positions_BT=positions_BT), expected) < 1e-4
    # The test would be empty if positions did nothing.
    assert relative_error(ours(tokens_BT), expected) > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_of_valid_positions_equal_those_of_transformers(name: str, side: str) -> None:
    ours, theirs = pair(CONFIGS[name])
    tokens_BT = random_tokens(ours.config, 3, 12, seed=2)
    valid_BT = torch.arange(12) < torch.tensor([[12], [7], [1]])
    if side == "left":
        valid_BT = valid_BT.flip(1)
    positions_BT = (valid_BT.long().cumsum(1) - 1).clamp(min=0)
    expected = theirs(tokens_BT, attention_mask=valid_BT.long(), position_ids=positions_BT).logits
    logits = ours(tokens_BT, valid_BT=valid_BT)
    assert bool(logits.isfinite().all())
    assert relative_error(logits[valid_BT], expected[valid_BT]) < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_no_valid_position(side: str) -> None:
    model, _ = pair(CONFIGS["1 KV head of 64, factor 8"])
    row_1T = random_tokens(model.config, 1, 9, seed=3)
    padding = torch.full((1, 5), 11)
    parts = (padding, row_1T) if side == "left" else (row_1T, padding)
    flags = (torch.zeros(1, 5), torch.ones(1, 9)) if side == "left" else (torch.ones(1, 9), torch.zeros(1, 5))
    valid_BT = torch.cat(flags, 1).bool()
    logits = model(torch.cat(parts, 1), valid_BT=valid_BT)
    torch.testing.assert_close(logits[valid_BT], model(row_1T)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_equal_those_of_transformers(tied: bool) -> None:
    ours, theirs = pair(shape(4, 2, 64, F8, tie_word_embeddings=tied))
    tokens_BT = random_tokens(ours.config, 2, 16, seed=4)
    for model, logits in ((ours, ours(tokens_BT)), (theirs, theirs(tokens_BT).logits)):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    theirs_by_name = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        grad, expected = parameter.grad, theirs_by_name[name].grad
        assert grad is not None
        assert expected is not None
        assert relative_error(grad, expected) < 1e-4, name


@torch.no_grad()
def test_bfloat16_logits_are_those_of_float32_to_its_precision() -> None:
    config = CONFIGS["8 of 16 KV heads of 64, no scaling, tied"]
    wide, narrow = initialise(Transformer(config), seed=5), initialise(Transformer(config), seed=5, dtype=torch.bfloat16)
    tokens_BT = random_tokens(config, 1, 20)
    logits = narrow(tokens_BT)
    assert narrow.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert relative_error(logits, wide(tokens_BT)) < 0.05


def test_a_core_and_a_padding_mask_together_are_refused() -> None:
    model = initialise(Transformer(CONFIGS["one head in all, one layer"]), seed=0)
    tokens_BT = random_tokens(model.config, 1, 3)
    with pytest.raises(ConfigError, match="not both"):
        model(tokens_BT, core=CausalCore(), valid_BT=torch.ones(1, 3, dtype=torch.bool))


def gradients(model: Transformer, tokens_BT: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(model(tokens_BT)[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_checkpointing_through_the_block_runner_gives_the_same_gradients() -> None:
    model = initialise(Transformer(CONFIGS["8 of 16 KV heads of 128, factor 8, three layers"]), seed=0)
    tokens_BT = random_tokens(model.config, 2, 10)
    plain = gradients(model, tokens_BT)
    ran: list[int] = []

    def run(block: torch.nn.Module, *args: object) -> Tensor:
        ran.append(1)
        return checkpoint(block, *args, use_reentrant=False)

    model.block_runner = run
    recomputed = gradients(model, tokens_BT)
    assert len(ran) == model.config.num_hidden_layers
    assert plain.keys() == recomputed.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
