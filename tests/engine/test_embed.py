"""Vectors of prompts: those of Hugging Face, the same bits in any batch and any chunks, and over the wire."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import CONFIG, CONTEXT, VOCAB, mixed_requests, small_engine, small_model  # pyright: ignore[reportMissingImports]
from transformers import LlamaConfig, LlamaModel

from herd.base.errors import UsageError
from herd.engine.engine import Engine
from herd.engine.params import TokenParams
from herd.engine.pooling import POOLINGS, Pooler, Pooling
from herd.engine.stream import Embedded, TokenRequest, Tokens
from herd.engine.torch_runner import TorchRunner
from herd.engine.wire import event_from_list, event_to_list, request_from_dict, request_to_dict
from herd.model.transformer import Transformer

ONE = TokenParams(max_tokens=1)
PROMPTS = [request.prompt for request in mixed_requests(24, seed=3)]


class Subclass(Transformer):
    """Run as it is, by torch."""


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return small_model(request.param)


def vectors(engine: Engine, prompts: list[tuple[int, ...]], pooling: Pooling) -> list[tuple[float, ...]]:
    """All at once, among requests that generate."""
    others = [engine.submit(request) for request in mixed_requests(6, seed=4)]
    streams = [engine.submit(TokenRequest(prompt=prompt, params=ONE, embed=pooling)) for prompt in prompts]
    found = [event.vector for stream in streams for event in stream if isinstance(event, Embedded)]
    for stream in others:
        assert list(stream)
    assert engine.scheduler.pool.num_references == 0
    return found


def theirs(model: Transformer) -> LlamaModel:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=CONFIG.hidden_size,
        intermediate_size=CONFIG.intermediate_size,
        num_hidden_layers=CONFIG.num_hidden_layers,
        num_attention_heads=CONFIG.num_attention_heads,
        num_key_value_heads=CONFIG.num_key_value_heads,
        head_dim=CONFIG.head_dim,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=CONFIG.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": CONFIG.rope_theta},
        attn_implementation="eager",
    )
    made = LlamaModel(config).eval()
    made.load_state_dict({name.removeprefix("model."): value for name, value in model.model.state_dict(prefix="model.").items()})
    return made


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("by_torch", [False, True], ids=["kernels", "torch"])
def test_vectors_are_hugging_faces(pooling: Pooling, by_torch: bool) -> None:
    model = small_model()
    if by_torch:
        model.__class__ = Subclass
    engine = small_engine(model, score_rows=5, token_budget=64)
    assert isinstance(engine.stepper.runner, TorchRunner) is by_torch
    for prompt, found in zip(PROMPTS, vectors(engine, PROMPTS, pooling), strict=True):
        with torch.no_grad():
            states = theirs(model)(torch.tensor([prompt])).last_hidden_state[0].double()
        wanted = states.mean(dim=0) if pooling == "mean" else states[-1]
        np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vector_is_the_same_bits_alone_in_a_batch_and_in_any_chunks(model: Transformer, pooling: Pooling) -> None:
    engine = small_engine(model, max_sequences=1)
    alone = [vectors(engine, [prompt], pooling)[0] for prompt in PROMPTS]
    for changes in ({}, {"token_budget": 16, "max_sequences": 8}, {"token_budget": 512, "score_rows": 3}):
        order = list(range(len(PROMPTS)))
        random.Random(1).shuffle(order)
        found = vectors(small_engine(model, **changes), [PROMPTS[number] for number in order], pooling)
        assert [vector for _, vector in sorted(zip(order, found, strict=True))] == alone


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_prompt_that_is_read_again_after_a_preemption_gives_the_same_vector(model: Transformer, pooling: Pooling) -> None:
    wanted = vectors(small_engine(model), PROMPTS, pooling)
    engine = small_engine(model, context=280, block_size=4, num_blocks=72, token_budget=32, max_sequences=16)
    assert vectors(engine, PROMPTS, pooling) == wanted


def test_a_mean_takes_nothing_from_the_cache_and_the_last_state_may() -> None:
    engine = small_engine(small_model())
    prompt = tuple(range(200))
    for pooling, hits in (("mean", False), ("last", True)):
        request = TokenRequest(prompt=prompt, params=ONE, embed=pooling)
        first, second = ([event for event in engine.submit(request) if isinstance(event, Embedded)] for _ in range(2))
        assert first == second
        assert (engine.scheduler.pool.num_hit_tokens > 0) is hits


def test_no_token_is_told() -> None:
    engine = small_engine(small_model(), num_draft=4)
    events = list(engine.submit(TokenRequest(prompt=(1, 2, 3), params=replace(ONE, max_tokens=50), embed="last")))
    assert [event.finish for event in events if isinstance(event, Tokens) and not event.ids] == ["stop"]
    assert len(events) == 3 and isinstance(events[1], Embedded) and len(events[1].vector) == CONFIG.hidden_size


def test_what_an_embedding_cannot_be_asked_is_refused() -> None:
    with pytest.raises(UsageError, match="no continuations"):
        TokenRequest(prompt=(1,), params=ONE, n=2, embed="mean")
    with pytest.raises(UsageError, match="no continuations"):
        TokenRequest(prompt=(1,), params=replace(ONE, prompt_logprobs=1), embed="mean")


def test_a_request_and_its_vector_go_over_the_wire_unchanged() -> None:
    request = TokenRequest(prompt=(1, 2), params=ONE, embed="mean", salt=b"\x01")
    assert request_from_dict(json.loads(json.dumps(request_to_dict(request)))) == request
    event = Embedded(vector=tuple(np.float32([0.1, -3.4e38, 1e-45]).tolist()))
    assert event_from_list(json.loads(json.dumps(event_to_list(event)))) == event


def test_a_mean_does_not_depend_on_where_the_states_are_cut() -> None:
    states = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    whole, cut = Pooler("mean"), Pooler("mean")
    whole.add(0, states)
    for first, end in ((0, 10), (0, 7), (7, 8), (8, 40)):
        cut.add(first, states[first:end])
    assert whole.vector().tobytes() == cut.vector().tobytes()
