"""Prefill and decode through the static cache give what one forward over everything gives, and greedy tokens are those of transformers."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from herd.base.errors import ContextOverflowError
from herd.model.cache import StaticCache
from herd.model.config import ModelConfig, RopeScaling
from herd.model.init import initialise
from herd.model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=200,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    rope_scaling=RopeScaling(factor=8.0),
    initializer_range=0.15,
)


@pytest.fixture(name="model", scope="module")
def build() -> Transformer:
    return initialise(Transformer(CONFIG), seed=11).eval()


def random_tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def step(model: Transformer, cache: StaticCache, tokens_BT: Tensor) -> Tensor:
    length = tokens_BT.shape[1]
    logits = model(tokens_BT, core=cache, positions_BT=cache.positions(length))
    cache.advance(length)
    return logits


@pytest.mark.parametrize("chunks", [[1] * 30, [29, 1], [10] + [1] * 20, [7, 9, 1, 13], [30]], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_decoding_in_pieces_equals_the_full_forward(model: Transformer, batch: int, chunks: list[int]) -> None:
    tokens_BT = random_tokens(batch, 30)
    cache = StaticCache(CONFIG, capacity=40, batch=batch)
    pieces = [step(model, cache, piece) for piece in tokens_BT.split(chunks, dim=1)]
    with torch.no_grad():
        full = model(tokens_BT)
    assert cache.length == 30
    torch.testing.assert_close(torch.cat(pieces, 1), full, rtol=1e-4, atol=1e-4)


def test_a_truncated_cache_continues_as_if_the_rest_had_never_been(model: Transformer) -> None:
    tokens_BT, other_BT = random_tokens(1, 20), random_tokens(1, 6, seed=1)
    cache = StaticCache(CONFIG, capacity=32)
    step(model, cache, tokens_BT)
    cache.truncate(8)
    assert cache.length == 8
    logits = step(model, cache, other_BT)
    with torch.no_grad():
        full = model(torch.cat((tokens_BT[:, :8], other_BT), 1))
    torch.testing.assert_close(logits, full[:, 8:], rtol=1e-4, atol=1e-4)


def test_truncating_beyond_the_end_forgets_nothing(model: Transformer) -> None:
    cache = StaticCache(CONFIG, capacity=8)
    step(model, cache, random_tokens(1, 5))
    cache.truncate(7)
    assert cache.length == 5
    assert cache.positions(2).tolist() == [[5, 6]]


def test_more_tokens_than_the_cache_holds_are_refused(model: Transformer) -> None:
    cache = StaticCache(CONFIG, capacity=8)
    step(model, cache, random_tokens(1, 8))
    with pytest.raises(ContextOverflowError, match="9 tokens do not fit a cache of 8") as caught:
        step(model, cache, random_tokens(1, 1))
    assert caught.value.hint
    assert cache.length == 8


def test_the_cache_holds_the_bytes_that_the_config_foretells() -> None:
    cache = StaticCache(CONFIG, capacity=16, batch=2, dtype=torch.bfloat16)
    assert cache.keys.nbytes + cache.values.nbytes == 2 * 16 * CONFIG.kv_bytes_per_token(2)


def greedy(model: Transformer, prompt_BT: Tensor, num_tokens: int) -> Tensor:
    cache = StaticCache(CONFIG, capacity=prompt_BT.shape[1] + num_tokens, batch=prompt_BT.shape[0])
    chosen = [step(model, cache, prompt_BT)[:, -1:].argmax(-1)]
    while len(chosen) < num_tokens:
        chosen.append(step(model, cache, chosen[-1])[:, -1:].argmax(-1))
    return torch.cat(chosen, 1)


def test_two_hundred_greedy_tokens_equal_those_of_transformers(model: Transformer) -> None:
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=CONFIG.vocab_size,
            hidden_size=CONFIG.hidden_size,
            intermediate_size=CONFIG.intermediate_size,
            num_hidden_layers=CONFIG.num_hidden_layers,
            num_attention_heads=CONFIG.num_attention_heads,
            num_key_value_heads=CONFIG.num_key_value_heads,
            head_dim=CONFIG.head_dim,
            max_position_embeddings=CONFIG.max_position_embeddings,
            rms_norm_eps=CONFIG.rms_norm_eps,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": CONFIG.rope_theta,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    theirs.load_state_dict(model.state_dict())
    prompt_BT = random_tokens(2, 17, seed=2)
    expected = cast(Any, theirs).generate(
        prompt_BT, attention_mask=torch.ones_like(prompt_BT), do_sample=False, max_new_tokens=200, pad_token_id=0
    )
    ours = greedy(model, prompt_BT, 200)
    assert ours.shape == (2, 200)
    assert ours.tolist() == expected[:, 17:].tolist()
    # A model stuck on one token would make the comparison worthless.
    assert len(ours.unique()) > 10
