"""A random model of some ten thousand weights, requests of every kind for it, and a driver that runs them through an engine."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from herd.engine.build import build_engine
from herd.engine.engine import Engine
from herd.engine.memory import EngineConfig
from herd.engine.params import TokenParams
from herd.engine.sampler import TokenLogprobs
from herd.engine.stream import TokenRequest, Tokens
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.transformer import Transformer

VOCAB = 320
CONTEXT = 640
CONFIG = ModelConfig(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=112,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=CONTEXT,
    initializer_range=0.15,
)


def small_model(dtype: torch.dtype = torch.float32, *, tied: bool = False) -> Transformer:
    """Its weights depend on nothing but dtype and tying."""
    with torch.device("meta"):
        model = Transformer(replace(CONFIG, tie_word_embeddings=tied))
    return initialise(model, seed=11, dtype=dtype).eval()


def mixed_requests(count: int, *, seed: int = 5, **changes: object) -> list[TokenRequest]:
    """Prompts of 1 to some 300 tokens, many with a beginning in common, some that repeat themselves; greedy and sampled, with penalties."""
    rng = random.Random(seed)
    shared = [rng.randrange(VOCAB) for _ in range(80)]
    requests = []
    for number in range(count):
        prompt = shared[: rng.choice((0, 0, 16, 33, 80))] + [rng.randrange(VOCAB) for _ in range(rng.choice((1, 3, 20, 150)))]
        if number % 5 == 0:
            prompt = (prompt[:12] * 6)[:60]
        params = TokenParams(
            max_tokens=rng.choice((4, 12, 24)),
            temperature=rng.choice((0.0, 0.7, 1.3)),
            top_p=rng.choice((1.0, 0.9)),
            top_k=rng.choice((0, 40)),
            repetition_penalty=rng.choice((1.0, 1.0, 1.1)),
            seed=number,
            logprobs=2,
        )
        requests.append(TokenRequest(prompt=tuple(prompt), params=replace(params, **changes)))  # pyright: ignore[reportArgumentType]
    return requests


Answer = list[tuple[int, TokenLogprobs]]


def answers(engine: Engine, requests: Sequence[TokenRequest], *, at_once: int = 1) -> list[Answer]:
    """Every request's tokens with their log-probabilities, `at_once` of them in flight."""
    results: list[Answer] = []
    for first in range(0, len(requests), at_once):
        streams = [engine.submit(request) for request in requests[first : first + at_once]]
        for stream in streams:
            events = [event for event in stream if isinstance(event, Tokens)]
            results.append([(event.index, found) for event in events for found in event.logprobs])
    return results


def small_engine(model: Transformer, *, threaded: bool = False, draft: Transformer | None = None, **changes: object) -> Engine:
    """An engine of sizes that suit the model."""
    config = EngineConfig(context=CONTEXT, token_budget=64, max_sequences=64, num_blocks=4000)
    return build_engine(model, replace(config, **changes), threaded=threaded, draft=draft)  # pyright: ignore[reportArgumentType]


def perturbed(model: Transformer, noise: float) -> Transformer:
    """A model that is often of one mind with another: its weights and a share of noise."""
    made = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in made.parameters():
            weight += noise * weight.std() * torch.randn(weight.shape, generator=generator).to(weight.dtype)
    return made
