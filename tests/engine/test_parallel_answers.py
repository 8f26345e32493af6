"""A model over several processes answers as in one: the same tokens, and the same bits alone and in any batch.

With stages alone every number is the same as in one process. With parts a sum is made of the parts' sums, so that float32 rounds at other
places: log-probabilities move by less than 2e-5 here, about as much as between two kernels.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from parallel_helpers import SIZES, checkpoint, parallel_engine, token_ids  # pyright: ignore[reportMissingImports]
from small_model import VOCAB, Answer, answers, mixed_requests, perturbed, small_model  # pyright: ignore[reportMissingImports]

from herd.checkpoint.load import load_model
from herd.engine.build import build_engine
from herd.engine.draft_model import DraftModel
from herd.engine.parallel.engine import ParallelEngine
from herd.engine.params import TokenParams
from herd.engine.sampler import TokenLogprobs
from herd.engine.stream import PromptLogprobs, TokenRequest, Tokens

REQUESTS = mixed_requests(30)
BOUND = 2e-5
LAYOUTS = [(2, 1), (1, 2), (2, 2)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("parallel") / "model")


@pytest.fixture(scope="module")
def in_one(path: Path) -> list[Answer]:
    return answers(build_engine(load_model(path), SIZES), REQUESTS, at_once=30)


@pytest.fixture(scope="module", params=LAYOUTS, ids=["tp2", "pp2", "tp2-pp2"])
def layout(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


@pytest.fixture(scope="module")
def engine(path: Path, layout: tuple[int, int]) -> Iterator[ParallelEngine]:
    tp, pp = layout
    engine = parallel_engine(path, tp=tp, pp=pp)
    yield engine
    engine.close()


def test_the_answers_are_those_of_one_process(engine: ParallelEngine, layout: tuple[int, int], in_one: list[Answer]) -> None:
    found = answers(engine, REQUESTS, at_once=30)
    assert token_ids(found) == token_ids(in_one)
    for answer, expected in zip(found, in_one, strict=True):
        for (_, one), (_, other) in zip(answer, expected, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=BOUND)
    if layout[0] == 1:
        assert found == in_one


def test_a_request_gives_the_same_bits_alone_and_in_any_batch(engine: ParallelEngine) -> None:
    alone = answers(engine, [replace(request, reuse_prefix=False) for request in REQUESTS[:12]], at_once=1)
    order = list(range(30))
    random.Random(3).shuffle(order)
    together = dict(zip(order, answers(engine, [REQUESTS[number] for number in order], at_once=30), strict=True))
    assert [together[number] for number in range(12)] == alone


def test_everything_an_engine_does_passes_through(engine: ParallelEngine) -> None:
    """Several continuations, cancellation of one and of all, log-probabilities of a prompt over several chunks of rows, refusals."""
    params = TokenParams(max_tokens=12, temperature=1.5, seed=4)
    prompt = tuple(number % VOCAB for number in range(200))
    streams = [engine.submit(TokenRequest(prompt=prompt, params=params, n=3)) for _ in range(2)]
    streams[1].cancel()
    events = list(streams[0])
    assert {event.index for event in events if isinstance(event, Tokens)} == {0, 1, 2}
    assert all(event.finish in (None, "cancelled", "length") for event in streams[1] if isinstance(event, Tokens))
    scored = engine.submit(TokenRequest(prompt=prompt, params=replace(params, prompt_logprobs=0, max_tokens=1)))
    found: list[TokenLogprobs] = [one for event in scored if isinstance(event, PromptLogprobs) for one in event.logprobs]
    assert [one.token_id for one in found] == list(prompt[1:])
    assert engine.scheduler.pool.num_references == 0
    assert engine.broken is None


def test_drafts_are_shared_with_every_rank(path: Path) -> None:
    requests = mixed_requests(10, temperature=0.0, repetition_penalty=1.0, max_tokens=60)
    expected = answers(build_engine(load_model(path), SIZES), requests, at_once=10)
    engine = parallel_engine(path, pp=2, num_draft=3)
    assert answers(engine, requests, at_once=10) == expected
    assert engine.stepper.results.num_guessed > engine.stepper.results.num_guesses_accepted > 0
    engine.close()


def test_a_draft_model_changes_no_bit_and_saves_steps(engine: ParallelEngine, layout: tuple[int, int], path: Path) -> None:
    """It lies whole on rank 0, and is often of one mind with the model; the others verify what it guesses."""
    requests = mixed_requests(8, seed=9, max_tokens=24)
    before = engine.stepper.num_steps
    expected = answers(engine, requests, at_once=8)
    plain_steps = engine.stepper.num_steps - before
    drafted = parallel_engine(path, tp=layout[0], pp=layout[1], draft=perturbed(load_model(path), 0.02), num_draft=3)
    assert answers(drafted, requests, at_once=8) == expected
    assert drafted.stepper.results.num_guessed > drafted.stepper.results.num_guesses_accepted > drafted.stepper.results.num_guessed // 4
    assert drafted.stepper.num_steps < plain_steps
    assert isinstance(drafted.stepper.guesser, DraftModel)
    assert drafted.stepper.guesser.pool.num_references == drafted.scheduler.pool.num_references == 0
    assert drafted.plans[0].draft_bytes > 0 and not any(plan.draft_bytes for plan in drafted.plans[1:])
    drafted.close()


def test_preemption_takes_the_same_way_on_every_rank(path: Path) -> None:
    params = TokenParams(max_tokens=40, temperature=0.7, logprobs=0)
    requests = [TokenRequest(prompt=(*range(number, number + 16),), params=replace(params, seed=number)) for number in range(16)]
    expected = answers(build_engine(load_model(path), SIZES), requests, at_once=16)
    engine = parallel_engine(path, pp=2, context=280, block_size=4, num_blocks=72, token_budget=64)
    assert answers(engine, requests, at_once=16) == expected
    assert engine.scheduler.num_preemptions > 3
    engine.close()


def test_four_parts_sum_in_one_order_whatever_the_batch(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "model", num_key_value_heads=4, num_hidden_layers=2, tie_word_embeddings=True)
    expected = answers(build_engine(load_model(path), SIZES), REQUESTS[:8], at_once=8)
    engine = parallel_engine(path, tp=4)
    together = answers(engine, REQUESTS[:8], at_once=8)
    assert token_ids(together) == token_ids(expected)
    assert answers(engine, [replace(request, reuse_prefix=False) for request in REQUESTS[:4]], at_once=1) == together[:4]
    engine.close()


def test_a_model_in_memory_in_bfloat16() -> None:
    model = small_model()
    engine = parallel_engine(model, tp=2, dtype="bfloat16")
    together = answers(engine, REQUESTS[:8], at_once=8)
    assert answers(engine, [replace(request, reuse_prefix=False) for request in REQUESTS[:4]], at_once=1) == together[:4]
    engine.close()
