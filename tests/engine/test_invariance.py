"""Promise 2: tokens and log-probabilities are the same bits alone, in any batch, with and without cached prefixes, in any chunks, after
preemptions and with speculation. And promise 1: with the reference kernels they are those of a forward over the whole sequence.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from small_model import Answer, answers, mixed_requests, perturbed, small_engine, small_model  # pyright: ignore[reportMissingImports]

from herd.engine.engine import Engine
from herd.engine.sampler import logprobs
from herd.engine.stream import TokenRequest, Tokens
from herd.kernels import dispatch
from herd.model.transformer import Transformer

REQUESTS = mixed_requests(200)
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module", params=DTYPES, ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return small_model(request.param)


@pytest.fixture(scope="module")
def alone(model: Transformer) -> list[Answer]:
    """What each request gives by itself, with nothing taken from the cache."""
    engine = small_engine(model, max_sequences=1)
    return answers(engine, [replace(request, reuse_prefix=False) for request in REQUESTS])


def shuffled(engine: Engine, at_once: int, requests: list[TokenRequest] = REQUESTS) -> list[Answer]:
    """The answers in the order of the requests, though they were asked in another."""
    order = list(range(len(requests)))
    random.Random(at_once).shuffle(order)
    found = answers(engine, [requests[number] for number in order], at_once=at_once)
    return [answer for _, answer in sorted(zip(order, found, strict=True))]


@pytest.mark.parametrize("at_once", [8, 64])
def test_in_batches_in_random_order(model: Transformer, alone: list[Answer], at_once: int) -> None:
    engine = small_engine(model)
    assert shuffled(engine, at_once, [replace(request, reuse_prefix=False) for request in REQUESTS]) == alone
    assert engine.scheduler.pool.num_hit_tokens == 0


def test_with_cached_prefixes_cold_and_hot(model: Transformer, alone: list[Answer]) -> None:
    engine = small_engine(model)
    assert shuffled(engine, 16) == alone
    cold = engine.scheduler.pool.num_hit_tokens
    assert cold > 0
    assert shuffled(engine, 64) == alone
    assert engine.scheduler.pool.num_hit_tokens - cold > cold


@pytest.mark.parametrize("chunk", [16, 64, 512])
def test_in_chunks_of_any_size(model: Transformer, alone: list[Answer], chunk: int) -> None:
    assert shuffled(small_engine(model, token_budget=chunk, max_sequences=min(chunk, 64)), 32) == alone


def test_under_forced_preemption(model: Transformer, alone: list[Answer]) -> None:
    engine = small_engine(model, context=280, block_size=4, num_blocks=72)
    assert shuffled(engine, 64) == alone
    assert engine.scheduler.num_preemptions > 10


@pytest.mark.parametrize("num_draft", [1, 4])
def test_with_speculation(model: Transformer, alone: list[Answer], num_draft: int) -> None:
    engine = small_engine(model, num_draft=num_draft)
    assert shuffled(engine, 8) == alone
    assert engine.stepper.results.num_guessed > engine.stepper.results.num_guesses_accepted > 0


@pytest.mark.parametrize("sizes", [{"token_budget": 1, "max_sequences": 1}, {}, {"score_rows": 3}, {"num_blocks": 130}], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_that_nothing_is_told_of(model: Transformer, temperature: float, sizes: dict[str, int]) -> None:
    """The engine takes a shorter way with them: all their rows of a step are drawn at once, whatever else is in it."""
    chosen = {"temperature": temperature, "repetition_penalty": 1.0, "min_p": 0.02}
    told = mixed_requests(40, seed=6, logprobs=0, **chosen)
    expected = [[found.token_id for _, found in answer] for answer in answers(small_engine(model, max_sequences=1), told)]
    engine = small_engine(model, **sizes)
    plain = mixed_requests(40, seed=6, logprobs=None, **chosen)
    changes = {3: {"temperature": 0.0}, 5: {"logprobs": 1}}
    mixed = [replace(request, params=replace(request.params, **changes.get(number % 7, {}))) for number, request in enumerate(plain)]
    greedy = {number for number in range(40) if number % 7 == 3} if temperature else set[int]()
    streams = [engine.submit(request) for request in mixed]
    found = [[token_id for event in stream if isinstance(event, Tokens) for token_id in event.ids] for stream in streams]
    assert [answer for number, answer in enumerate(found) if number not in greedy] == [
        answer for number, answer in enumerate(expected) if number not in greedy
    ]


@pytest.mark.parametrize(
    ("at_once", "count", "sizes"),
    [
        (1, 30, {}),
        (8, 80, {"num_draft": 1}),
        (64, 100, {"num_draft": 3, "block_size": 5, "score_rows": 3}),
        (32, 200, {"token_budget": 256}),
        (64, 100, {"context": 280, "block_size": 4, "num_blocks": 72}),
    ],
    ids=["alone", "one guess", "small blocks", "all at once", "preempted"],
)
def test_with_a_draft_model(model: Transformer, alone: list[Answer], at_once: int, count: int, sizes: dict[str, int]) -> None:
    engine = small_engine(model, draft=perturbed(model, 0.1), **sizes)
    assert shuffled(engine, at_once, REQUESTS[:count]) == alone[:count]
    assert engine.stepper.results.num_guessed > engine.stepper.results.num_guesses_accepted > 0
    assert (engine.scheduler.num_preemptions > 0) is ("context" in sizes)


def test_with_blocks_of_another_size_and_rows_scored_in_parts(model: Transformer, alone: list[Answer]) -> None:
    assert shuffled(small_engine(model, block_size=5, score_rows=3), 64) == alone


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_with_any_number_of_threads(model: Transformer, alone: list[Answer], threads: int) -> None:
    before = dispatch.num_threads()
    try:
        dispatch.set_num_threads(threads)
        assert shuffled(small_engine(model), 32) == alone
    finally:
        dispatch.set_num_threads(before)


@pytest.fixture
def fixed_order(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(os.environ, "HERD_KERNELS", "reference")
    dispatch.reload()
    yield
    monkeypatch.undo()
    dispatch.reload()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.usefixtures("fixed_order")
def test_the_reference_kernels_score_as_one_forward_over_the_whole_sequence(dtype: torch.dtype, tied: bool) -> None:
    model = small_model(dtype, tied=tied)
    requests = mixed_requests(24, seed=8)
    for request, answer in zip(requests, answers(small_engine(model), requests, at_once=24), strict=True):
        ids = [*request.prompt, *(found.token_id for _, found in answer)]
        with torch.no_grad():
            scores = model(torch.tensor([ids]))[0].numpy()
        first = len(request.prompt) - 1
        assert [found for _, found in answer] == [logprobs(scores[first + n], found.token_id, 2) for n, (_, found) in enumerate(answer)]


def test_the_fast_kernels_score_as_the_model_to_their_precision(model: Transformer) -> None:
    bound = 2e-4 if model.dtype == torch.float32 else 0.1
    requests = mixed_requests(24, seed=9)
    for request, answer in zip(requests, answers(small_engine(model), requests, at_once=24), strict=True):
        ids = [*request.prompt, *(found.token_id for _, found in answer)]
        with torch.no_grad():
            scores = model(torch.tensor([ids]))[0].numpy()
        first = len(request.prompt) - 1
        for number, (_, found) in enumerate(answer):
            assert found.logprob == pytest.approx(logprobs(scores[first + number], found.token_id, 0).logprob, abs=bound)
