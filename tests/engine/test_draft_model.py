"""A draft model: guesses that come true where the two models agree, a cache that is kept, dropped and given back, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_model import CONFIG, VOCAB, answers, mixed_requests, perturbed, small_engine, small_model  # pyright: ignore[reportMissingImports]

from herd.base.errors import ConfigError, DoesNotFitError
from herd.engine.build import build_engine, plan_for
from herd.engine.draft_model import DraftModel
from herd.engine.engine import Engine
from herd.engine.memory import EngineConfig
from herd.engine.params import TokenParams
from herd.engine.stream import TokenRequest, Tokens
from herd.model.init import initialise
from herd.model.transformer import Transformer

REQUESTS = mixed_requests(40, seed=6)
LONG = TokenParams(max_tokens=64, temperature=0.9, seed=3, logprobs=0)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return small_model()


def drafter(engine: Engine) -> DraftModel:
    assert isinstance(engine.stepper.guesser, DraftModel)
    return engine.stepper.guesser


def other_model(**changes: object) -> Transformer:
    with torch.device("meta"):
        made = Transformer(replace(CONFIG, num_hidden_layers=1, **changes))  # pyright: ignore[reportArgumentType]
    return initialise(made, seed=3, dtype=torch.float32).eval()


def all_free(engine: Engine) -> bool:
    pool = drafter(engine).pool
    pool.check([])
    return pool.num_references == 0 and engine.scheduler.pool.num_references == 0


def test_a_draft_of_one_mind_is_always_right_at_any_temperature(model: Transformer) -> None:
    engine = small_engine(model, draft=model, num_draft=4)
    plain = small_engine(model)
    requests = [replace(request, params=replace(request.params, max_tokens=24)) for request in REQUESTS]
    assert answers(engine, requests, at_once=8) == answers(plain, requests, at_once=8)
    stepper = engine.stepper
    assert stepper.results.num_guesses_accepted == stepper.results.num_guessed > 0
    assert stepper.num_steps < plain.stepper.num_steps / 2
    assert all_free(engine)


def test_a_guess_that_ends_the_answer_counts_as_come_true(model: Transformer) -> None:
    request = TokenRequest(prompt=(1, 2), params=replace(LONG, temperature=0.0))
    free = [token_id for event in small_engine(model).submit(request) if isinstance(event, Tokens) for token_id in event.ids]
    last = next(token_id for token_id in free[7:] if free.index(token_id) >= 7)
    engine = small_engine(model, draft=model, num_draft=4)
    stopped = replace(request, params=replace(request.params, stop_ids=frozenset({last})))
    events = [event for event in engine.submit(stopped) if isinstance(event, Tokens)]
    assert [token_id for event in events for token_id in event.ids] == free[: free.index(last) + 1] and events[-1].finish == "stop"
    assert engine.stepper.results.num_guesses_accepted == engine.stepper.results.num_guessed > 0


def test_a_draft_that_is_never_right_is_asked_less_and_less(model: Transformer) -> None:
    engine = small_engine(model, draft=other_model(), num_draft=4)
    request = TokenRequest(prompt=(1, 2, 3), params=replace(LONG, max_tokens=600, temperature=0.0))
    plain = answers(small_engine(model), [request])
    assert answers(engine, [request]) == plain
    assert 0 < engine.stepper.results.num_guessed < 200
    assert all_free(engine)


def test_a_long_prompt_is_caught_up_with_in_chunks_while_others_are_guessed_for(model: Transformer) -> None:
    engine = small_engine(model, draft=model, num_draft=2, token_budget=48, max_sequences=4)
    requests = [
        TokenRequest(prompt=tuple(n % VOCAB for n in range(7 * i, 7 * i + size)), params=LONG) for i, size in enumerate((3, 500, 9))
    ]
    assert answers(engine, requests, at_once=3) == answers(small_engine(model), requests)
    assert engine.stepper.results.num_guesses_accepted == engine.stepper.results.num_guessed > 60
    assert all_free(engine)


def test_beginnings_in_common_are_read_once_by_the_draft_too(model: Transformer) -> None:
    engine = small_engine(model, draft=model, token_budget=512)
    prompt = tuple(n % VOCAB for n in range(400))
    for _ in range(2):
        before = engine.scheduler.pool.num_hit_tokens, drafter(engine).num_steps
        answers(engine, [TokenRequest(prompt=prompt, params=replace(LONG, max_tokens=8), n=3)])
    pool = drafter(engine).pool
    named = [digest for digest in pool.digests if digest is not None]
    assert len(named) == len(set(named)) == 400 // pool.block_size and drafter(engine).num_steps > before[1]
    assert set(named) <= set(engine.scheduler.pool.digests)


def test_where_the_drafts_blocks_run_short_some_go_without_guesses(model: Transformer) -> None:
    engine = small_engine(model, draft=model, context=280, block_size=4, num_blocks=72, max_sequences=16)
    prompt = tuple(range(200))
    # Followers share the prompt's blocks in the engine's own cache; of the draft's each holds what it writes.
    requests = [TokenRequest(prompt=prompt, params=replace(LONG, max_tokens=40), n=8), *REQUESTS[:8]]
    streams = [engine.submit(request) for request in requests]
    found = [[(e.index, e.ids) for e in stream if isinstance(e, Tokens)] for stream in streams]
    plain = small_engine(model)
    for request, parts in zip(requests, found, strict=True):
        for index in range(request.n):
            wanted = [e.ids for e in plain.submit(request) if isinstance(e, Tokens) and e.index == index]
            assert sum((ids for at, ids in parts if at == index), ()) == sum(wanted, ())
    assert all_free(engine)


def test_a_cancelled_request_gives_the_drafts_blocks_back(model: Transformer) -> None:
    engine = small_engine(model, draft=model)
    stream = engine.submit(TokenRequest(prompt=(1, 2, 3), params=replace(LONG, max_tokens=500)))
    events = iter(stream)
    for _ in range(6):
        next(events)
    assert drafter(engine).pool.num_references > 0
    stream.cancel()
    answers(engine, [REQUESTS[0]])
    assert all_free(engine)


def test_a_draft_whose_scores_are_no_numbers_costs_nothing_but_its_guesses(model: Transformer) -> None:
    broken = other_model()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    engine = small_engine(model, draft=broken)
    assert answers(engine, REQUESTS, at_once=8) == answers(small_engine(model), REQUESTS, at_once=8)
    assert engine.stepper.results.num_guessed == 0 and all_free(engine)


def test_a_draft_of_a_shorter_context_stops_where_it_ends(model: Transformer) -> None:
    engine = small_engine(model, draft=other_model(max_position_embeddings=64))
    request = TokenRequest(prompt=tuple(range(50)), params=LONG)
    assert answers(engine, [request]) == answers(small_engine(model), [request])
    assert all_free(engine)


def test_a_draft_of_another_vocabulary_is_refused(model: Transformer) -> None:
    with pytest.raises(ConfigError, match="the draft model has 300 token ids, the model 320"):
        small_engine(model, draft=other_model(vocab_size=300))
    # Rows that no token stands for make no difference.
    build_engine(model, EngineConfig(num_blocks=100, context=100), draft=other_model(vocab_size=330), vocab_size=310).close()


def test_what_a_draft_takes_is_planned_and_counts_against_the_limit(model: Transformer) -> None:
    draft = other_model()
    sizes = EngineConfig(context=256, token_budget=64)
    plain, both = plan_for(model, sizes), plan_for(model, sizes, draft)
    per_block = draft.config.kv_bytes_per_token(4) * sizes.block_size
    assert both.draft_bytes > both.num_blocks * per_block + 4 * draft.config.num_parameters
    assert both.total_bytes == plain.total_bytes + both.draft_bytes and both.num_blocks == plain.num_blocks
    limited = replace(sizes, memory_bytes=both.total_bytes - 10 * per_block)
    # A block of the model, of two layers, and one of the draft, of one.
    less = plan_for(model, limited, draft)
    assert less.num_blocks < both.num_blocks and less.total_bytes <= both.total_bytes - 10 * per_block
    with pytest.raises(DoesNotFitError):
        plan_for(model, replace(sizes, memory_bytes=both.total_bytes - (both.num_blocks - 5) * 3 * per_block), draft)


def test_more_agreement_means_fewer_steps(model: Transformer) -> None:
    steps = []
    for noise in (0.0, 0.05, 0.4):
        engine = small_engine(model, draft=perturbed(model, noise), num_draft=4)
        answers(engine, [replace(request, params=LONG) for request in REQUESTS[:8]], at_once=8)
        steps.append(engine.stepper.num_steps)
    assert steps[0] < steps[1] < steps[2]
