"""A model of quantised matrices in the engine: C runs it, in one call with the bits of its ops, close to the transformer itself, and the
promise holds: an answer is the same alone, in any batch, in any chunks, with prefixes and guesses, with any number of threads.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from small_model import Answer, answers, mixed_requests, small_engine, small_model  # pyright: ignore[reportMissingImports]

from herd.engine.engine import Engine
from herd.engine.packed.weights import runs_in_c
from herd.engine.runner import CpuRunner
from herd.engine.stream import TokenRequest
from herd.engine.torch_runner import TorchRunner
from herd.kernels import dispatch
from herd.model.block import Block
from herd.model.transformer import Transformer
from quant_models import Kind, named, quantise_model  # pyright: ignore[reportMissingImports]

pytestmark = pytest.mark.skipif(dispatch.choice().library is None, reason="the C kernels do not run here")

KINDS = [
    (Kind(bits=4, group=16), torch.bfloat16),
    (Kind(bits=4, group=16, zeros=True, columns=True), torch.float32),
    (Kind(bits=8), torch.bfloat16),
    (Kind(bits=8, activation="int8"), torch.float32),
    (Kind(bits=8, floats=True, activation="fp8", bound=1200.0), torch.bfloat16),
    (Kind(bits=8, floats=True, group=16), torch.float32),
]
REQUESTS = mixed_requests(48)


@pytest.fixture(scope="module", params=KINDS, ids=lambda found: f"{named(found[0])}-{found[1]}")
def model(request: pytest.FixtureRequest) -> Transformer:
    kind, dtype = request.param
    return quantise_model(small_model(dtype), kind, head=True)


@pytest.fixture(scope="module")
def alone(model: Transformer) -> list[Answer]:
    engine = small_engine(model, max_sequences=1)
    return answers(engine, [replace(request, reuse_prefix=False) for request in REQUESTS])


def shuffled(engine: Engine, at_once: int, requests: list[TokenRequest] = REQUESTS) -> list[Answer]:
    order = list(range(len(requests)))
    random.Random(at_once).shuffle(order)
    found = answers(engine, [requests[number] for number in order], at_once=at_once)
    return [answer for _, answer in sorted(zip(order, found, strict=True))]


def test_c_runs_it(model: Transformer) -> None:
    engine = small_engine(model)
    assert isinstance(engine.stepper.runner, CpuRunner) and engine.stepper.runner._forward is not None
    head = engine.stepper.runner._weights.head
    assert head.quant is not None and head.size_bytes < head.num_outputs * (head.num_inputs + 16)


@pytest.mark.parametrize("sizes", [{}, {"token_budget": 16, "max_sequences": 16}, {"block_size": 5, "score_rows": 3}], ids=str)
def test_in_batches_and_chunks(model: Transformer, alone: list[Answer], sizes: dict[str, int]) -> None:
    assert shuffled(small_engine(model, **sizes), 32) == alone  # pyright: ignore[reportArgumentType]


def test_with_cached_prefixes_preemption_and_guesses(model: Transformer, alone: list[Answer]) -> None:
    engine = small_engine(model, context=280, block_size=4, num_blocks=72, num_draft=3)
    assert shuffled(engine, 48) == alone
    assert shuffled(engine, 16) == alone
    assert engine.scheduler.num_preemptions > 0 and engine.scheduler.pool.num_hit_tokens > 0


@pytest.mark.parametrize("threads", [1, 3])
def test_with_any_number_of_threads(model: Transformer, alone: list[Answer], threads: int) -> None:
    before = dispatch.num_threads()
    try:
        dispatch.set_num_threads(threads)
        assert shuffled(small_engine(model), 32) == alone
    finally:
        dispatch.set_num_threads(before)


def test_one_call_has_the_bits_of_the_ops(model: Transformer, alone: list[Answer]) -> None:
    engine = small_engine(model)
    assert isinstance(engine.stepper.runner, CpuRunner)
    engine.stepper.runner._forward = None
    assert shuffled(engine, 16, REQUESTS[:16]) == alone[:16]


def test_it_is_close_to_the_transformer(model: Transformer) -> None:
    """Greedy tokens part at near ties, so the log-probability of a first token is compared."""
    near = 0.2 if model.dtype == torch.bfloat16 else 0.06
    request = [replace(one, params=replace(one.params, temperature=0.0, repetition_penalty=1.0, max_tokens=1)) for one in REQUESTS[:8]]
    for one, answer in zip(request, answers(small_engine(model), request), strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([one.prompt]))[0, -1].log_softmax(-1)
        found = answer[0][1]
        assert abs(float(expected[found.token_id]) - found.logprob) < near
        assert float(expected.max() - expected[found.token_id]) < near


def test_what_c_has_no_kernel_for_is_run_by_the_transformer() -> None:
    mixed = quantise_model(small_model(torch.bfloat16), Kind(bits=8))
    assert runs_in_c(mixed)
    other = quantise_model(small_model(torch.bfloat16), Kind(bits=4, group=16))
    one, another = mixed.model.layers[0], other.model.layers[0]
    assert isinstance(one, Block) and isinstance(another, Block)
    one.self_attn.q_proj = another.self_attn.q_proj
    assert not runs_in_c(mixed)
    assert isinstance(small_engine(mixed).stepper.runner, TorchRunner)
