"""The engine as its callers see it: streams, ends, refusals, cancellation, failures; no request waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_model import CONTEXT, VOCAB, answers, mixed_requests, small_engine, small_model  # pyright: ignore[reportMissingImports]

from herd.base.errors import CheckpointError, ContextOverflowError, DoesNotFitError, TokenizerError, UsageError
from herd.engine.batch import RaggedBatch
from herd.engine.engine import Engine, EngineError
from herd.engine.params import TokenParams
from herd.engine.sampler import logprobs
from herd.engine.stream import Admitted, PromptLogprobs, TokenEvent, TokenRequest, Tokens
from herd.model.transformer import Transformer

GREEDY = TokenParams(max_tokens=8, temperature=0.0)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return small_model()


@pytest.fixture(params=[False, True], ids=["driven", "threaded"])
def engine(model: Transformer, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = small_engine(model, threaded=request.param)
    yield engine
    engine.close()


def ids(events: list[TokenEvent], index: int = 0) -> list[int]:
    return [token_id for event in events if isinstance(event, Tokens) and event.index == index for token_id in event.ids]


def free_blocks(engine: Engine) -> bool:
    return engine.scheduler.pool.num_references == 0


def test_greedy_tokens_are_those_of_the_model(model: Transformer, engine: Engine) -> None:
    tokens = [5, 6, 7]
    found = ids(list(engine.submit(TokenRequest(prompt=tuple(tokens), params=GREEDY))))
    with torch.no_grad():
        for _ in range(8):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert found == tokens[3:]


def test_a_stop_id_ends_and_is_told(engine: Engine) -> None:
    free = ids(list(engine.submit(TokenRequest(prompt=(1, 2), params=GREEDY))))
    stopped = replace(GREEDY, stop_ids=frozenset({free[3]}))
    events = list(engine.submit(TokenRequest(prompt=(1, 2), params=stopped)))
    assert ids(events) == free[: free.index(free[3]) + 1]
    assert isinstance(events[-1], Tokens) and events[-1].finish == "stop"


def test_the_limit_of_tokens_ends_with_length(engine: Engine) -> None:
    events = list(engine.submit(TokenRequest(prompt=(1, 2), params=GREEDY)))
    assert isinstance(events[0], Admitted) and isinstance(events[-1], Tokens)
    assert len(ids(events)) == 8 and events[-1].finish == "length"


def test_a_prompt_may_fill_the_context_but_for_one_token(engine: Engine) -> None:
    prompt = tuple(number % VOCAB for number in range(CONTEXT - 1))
    assert len(ids(list(engine.submit(TokenRequest(prompt=prompt, params=GREEDY))))) == 1
    with pytest.raises(ContextOverflowError, match=r"640 tokens and the context is 640"):
        engine.submit(TokenRequest(prompt=(*prompt, 1), params=GREEDY))


def test_continuations_of_one_prompt_differ_and_the_first_is_that_of_the_prompt_alone(engine: Engine) -> None:
    params = TokenParams(max_tokens=12, temperature=1.5, seed=4)
    events = list(engine.submit(TokenRequest(prompt=(9, 8, 7), params=params, n=4)))
    texts = [tuple(ids(events, index)) for index in range(4)]
    assert len(set(texts)) == 4 and all(len(text) == 12 for text in texts)
    assert list(texts[0]) == ids(list(engine.submit(TokenRequest(prompt=(9, 8, 7), params=params))))
    assert free_blocks(engine)


def test_prompt_log_probabilities_are_the_models(model: Transformer) -> None:
    engine = small_engine(model, token_budget=16, max_sequences=4, score_rows=5)
    prompt = tuple((7 * number) % VOCAB for number in range(50))
    events = list(engine.submit(TokenRequest(prompt=prompt, params=replace(GREEDY, prompt_logprobs=2))))
    found = [
        (event.first + place, one) for event in events if isinstance(event, PromptLogprobs) for place, one in enumerate(event.logprobs)
    ]
    assert [place for place, _ in found] == list(range(1, 50))
    with torch.no_grad():
        scores = model(torch.tensor([prompt]))[0].numpy()
    for place, one in found:
        wanted = logprobs(scores[place - 1], prompt[place], 2)
        assert one.token_id == prompt[place] and one.logprob == pytest.approx(wanted.logprob, abs=1e-4)
    assert len(ids(events)) == 8
    engine.close()


def test_cancelling_frees_every_block(engine: Engine) -> None:
    stream = engine.submit(TokenRequest(prompt=(3, 4), params=replace(GREEDY, max_tokens=400)))
    for event in stream:
        if isinstance(event, Tokens):
            break
    stream.cancel()
    rest = list(engine.submit(TokenRequest(prompt=(1,), params=GREEDY)))
    assert ids(rest) and free_blocks(engine)


def test_leaving_a_stream_cancels_it(engine: Engine) -> None:
    stream = iter(engine.submit(TokenRequest(prompt=(3, 4), params=replace(GREEDY, max_tokens=400))))
    next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert ids(list(engine.submit(TokenRequest(prompt=(1,), params=GREEDY)))) and free_blocks(engine)


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (TokenRequest(prompt=(), params=GREEDY), TokenizerError, "prompt is empty"),
        (TokenRequest(prompt=(VOCAB,), params=GREEDY), TokenizerError, f"{VOCAB}.*0 to {VOCAB - 1}"),
        (TokenRequest(prompt=(1,), params=replace(GREEDY, stop_ids=frozenset({-1}))), TokenizerError, "stop_ids"),
        (TokenRequest(prompt=(1,), params=replace(GREEDY, logit_bias=((9999, 1.0),))), TokenizerError, "logit_bias"),
        (TokenRequest(prompt=(1,), params=replace(GREEDY, banned_ids=(VOCAB,))), TokenizerError, "banned_ids"),
    ],
)
def test_what_the_model_cannot_run_is_refused_at_once(engine: Engine, request_: TokenRequest, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        engine.submit(request_)
    assert caught.value.hint  # pyright: ignore[reportAttributeAccessIssue]


def test_an_engine_without_room_for_one_context_is_refused_with_the_figures(model: Transformer) -> None:
    with pytest.raises(DoesNotFitError, match=r"one sequence of 640 tokens needs .* of weights, .* of cache\), the limit is"):
        small_engine(model, num_blocks=None, memory_bytes=400 * 2**20 + 300_000)


def test_requests_from_many_threads_all_end_with_their_own_tokens(engine: Engine) -> None:
    wanted = {number: ids(list(engine.submit(TokenRequest(prompt=(number,), params=GREEDY)))) for number in range(20)}
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        found[number] = ids(list(engine.submit(TokenRequest(prompt=(number,), params=GREEDY))))

    threads = [threading.Thread(target=ask, args=(number,)) for number in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


class BrokenRunner:
    """Fails, or gives scores that are no numbers, after some steps."""

    def __init__(self, engine: Engine, after: int, *, nan: bool, kind: type[BaseException] = MemoryError) -> None:
        self._kind = kind
        self._runner, self._left, self._nan = engine.stepper.runner, after, nan
        self.block_size, self.num_blocks, self.vocab_size = self._runner.block_size, self._runner.num_blocks, self._runner.vocab_size

    def run(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        self._left -= 1
        if self._left < 0 and not self._nan:
            raise self._kind("no room")
        for first, scores in self._runner.run(batch):
            yield first, scores * np.float32("nan") if self._left < 0 else scores


def test_a_runner_that_fails_on_the_engines_thread_tells_everyone_and_refuses_what_comes_after(model: Transformer) -> None:
    engine = small_engine(model, threaded=True)
    engine.stepper.runner = BrokenRunner(engine, 3, nan=False)
    streams = [engine.submit(TokenRequest(prompt=(number,), params=replace(GREEDY, max_tokens=50))) for number in range(3)]
    for stream in streams:
        with pytest.raises(EngineError, match="MemoryError: no room"):
            list(stream)
    with pytest.raises(EngineError, match="MemoryError"):
        engine.submit(TokenRequest(prompt=(1,), params=GREEDY))
    engine.close()


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt])
def test_who_drives_a_step_gets_its_error_the_others_are_told_and_the_engine_lives_on(
    model: Transformer, kind: type[BaseException]
) -> None:
    engine = small_engine(model)
    working = engine.stepper.runner
    engine.stepper.runner = BrokenRunner(engine, 3, nan=False, kind=kind)
    first, second = (engine.submit(TokenRequest(prompt=(number,), params=replace(GREEDY, max_tokens=50))) for number in range(2))
    with pytest.raises(kind, match="no room"):
        list(first)
    with pytest.raises(EngineError, match=f"{kind.__name__}: no room"):
        list(second)
    engine.stepper.runner = working
    assert len(ids(list(engine.submit(TokenRequest(prompt=(1,), params=GREEDY))))) == 8 and free_blocks(engine)


def test_scores_that_are_no_numbers_end_their_request_alone(engine: Engine) -> None:
    working = engine.stepper.runner
    engine.stepper.runner = BrokenRunner(engine, 2, nan=True)
    with pytest.raises(CheckpointError, match="not finite"):
        list(engine.submit(TokenRequest(prompt=(1,), params=GREEDY)))
    engine.stepper.runner = working
    assert len(ids(list(engine.submit(TokenRequest(prompt=(1,), params=GREEDY))))) == 8 and free_blocks(engine)


@pytest.mark.parametrize("threaded", [False, True])
def test_a_closed_engine_ends_its_streams_and_takes_no_more(model: Transformer, threaded: bool) -> None:
    engine = small_engine(model, threaded=threaded)
    events = iter(engine.submit(TokenRequest(prompt=(1,), params=replace(GREEDY, max_tokens=600))))
    next(events)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        list(events)
    with pytest.raises(EngineError, match="closed"):
        engine.submit(TokenRequest(prompt=(1,), params=GREEDY))


def test_nothing_runs_until_someone_waits_where_the_engine_has_no_thread(model: Transformer) -> None:
    engine = small_engine(model)
    streams = [engine.submit(TokenRequest(prompt=(number,), params=GREEDY)) for number in range(3)]
    assert engine.stepper.num_steps == 0
    assert len(ids(list(streams[2]))) == 8
    steps = engine.stepper.num_steps
    assert len(ids(list(streams[0]))) == len(ids(list(streams[1]))) == 8 and engine.stepper.num_steps == steps


@pytest.mark.parametrize(
    "change",
    [{"temperature": float("nan")}, {"top_p": 0.0}, {"min_p": 1.5}, {"max_tokens": 0}, {"repetition_penalty": 0.0}, {"logprobs": 500}],
)
def test_parameters_out_of_range_are_refused_by_name(change: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        replace(GREEDY, **change)


def test_prompt_log_probabilities_from_a_place_on_share_what_stands_before(model: Transformer) -> None:
    engine = small_engine(model)
    prompt = tuple((7 * number) % VOCAB for number in range(100))

    def told(first: int) -> list[PromptLogprobs]:
        params = replace(GREEDY, prompt_logprobs=2, prompt_logprobs_from=first)
        return [event for event in engine.submit(TokenRequest(prompt=prompt, params=params)) if isinstance(event, PromptLogprobs)]

    (whole_first, *whole), hits = told(1), engine.scheduler.pool.num_hit_tokens
    (part,) = told(71)
    every = [*whole_first.logprobs, *(one for event in whole for one in event.logprobs)]
    assert (part.first, list(part.logprobs)) == (71, every[70:])
    assert engine.scheduler.pool.num_hit_tokens - hits == 64
    engine.close()


def test_prompt_log_probabilities_are_told_once_though_a_preempted_prompt_is_read_again(model: Transformer) -> None:
    engine = small_engine(model, context=280, block_size=4, num_blocks=72, token_budget=32, max_sequences=16)
    prompts = [tuple((number + 7 * place) % VOCAB for place in range(100 + number)) for number in range(8)]
    params = replace(GREEDY, max_tokens=60, prompt_logprobs=0)
    streams = [engine.submit(TokenRequest(prompt=prompt, params=params)) for prompt in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        found = [event for event in stream if isinstance(event, PromptLogprobs)]
        told = [event.first + place for event in found for place in range(len(event.logprobs))]
        assert told == list(range(1, len(prompt)))
    assert engine.scheduler.num_preemptions > 0
    engine.close()


def test_a_draw_that_fails_ends_its_own_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with one sequence's scores or grammar, the others go on and the engine lives."""
    from herd.engine import results

    draw = results.sample

    def failing(row: Any, params: Any, *rest: Any, **named: Any) -> int:
        if params.seed == 666:
            raise IndexError("no such place")
        return draw(row, params, *rest, **named)

    monkeypatch.setattr(results, "sample", failing)
    engine = small_engine(small_model())
    good = [replace(request, params=replace(request.params, temperature=0.7)) for request in mixed_requests(3)]
    bad = replace(good[0], params=replace(good[0].params, seed=666))
    alone = answers(engine, good)
    streams = [engine.submit(request) for request in (good[0], bad, *good[1:])]
    with pytest.raises(IndexError):
        list(streams[1])
    told = [
        [(event.index, found) for event in stream if isinstance(event, Tokens) for found in event.logprobs]
        for stream in (streams[0], *streams[2:])
    ]
    assert told == alone and engine.broken is None
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_usable
