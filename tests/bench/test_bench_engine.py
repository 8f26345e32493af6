"""Measuring an engine: every token is counted, a prefix that is shared is found, and what does not fit is refused before it runs."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from herd.base.errors import ContextOverflowError
from herd.bench.engine import Subject, measure_latency, read_bytes_per_token, run_load
from herd.bench.rates import matmul_rate, read_rate
from herd.bench.workload import make_items
from herd.checkpoint.load import load_model
from herd.engine.build import build_engine
from herd.engine.memory import EngineConfig


@pytest.fixture(scope="module")
def subject(tiny_folder: Path) -> Generator[Subject, None, None]:
    model = load_model(tiny_folder)
    engine = build_engine(model, EngineConfig(context=128, max_sequences=8, token_budget=64, num_blocks=200), threaded=True)
    yield Subject(engine=engine, config=model.config, dtype=model.dtype, device=model.device, num_text_ids=200)
    engine.close()


def test_every_token_is_counted(subject: Subject) -> None:
    items = make_items(12, num_prompt=20, num_answer=9, mix="uniform", seed=3)
    found = run_load(subject.engine, items, vocab_size=200, mix="uniform", reuse=False)
    assert found.num_requests == 12 and found.num_failed == 0 and found.cached_tokens == 0
    assert found.answer_tokens == sum(item.num_answer for item in items) and found.prompt_tokens == sum(item.num_prompt for item in items)
    assert found.first_token is not None and found.whole is not None and 0 < found.first_token.p50 <= found.whole.most <= found.seconds
    data = found.to_dict()
    assert data["output_tokens_per_s"] == pytest.approx(found.answer_tokens / found.seconds, rel=1e-3)


def test_a_shared_beginning_is_found_in_the_cache(subject: Subject) -> None:
    items = make_items(6, num_prompt=100, num_answer=2, mix="shared")
    found = run_load(subject.engine, items, vocab_size=200, mix="shared", reuse=True, concurrency=1)
    assert found.cached_tokens == 5 * (90 // 16 * 16)


def test_requests_are_in_flight_as_they_were_asked_to_be(subject: Subject) -> None:
    items = make_items(6, num_prompt=4, num_answer=3, rate=200.0)
    found = run_load(subject.engine, items, vocab_size=200, mix="fixed", reuse=False, concurrency=2)
    assert found.seconds >= items[-1].at_s and found.answer_tokens == 18


def test_a_request_over_the_context_is_refused_before_any_runs(subject: Subject) -> None:
    steps = subject.engine.stepper.num_steps
    with pytest.raises(ContextOverflowError, match="100 \\+ 29 tokens, the context is 128"):
        run_load(subject.engine, make_items(1, num_prompt=100, num_answer=29), vocab_size=200, mix="fixed", reuse=False)
    assert subject.engine.stepper.num_steps == steps


def test_latency_is_told_against_what_the_machine_can(subject: Subject) -> None:
    found = measure_latency(subject, batch=2, num_prompt=16, num_answer=8, repeats=2)
    assert found.output_tokens_per_s == pytest.approx(2 / found.between_tokens.p50)
    assert 0 < found.read_share < 1 and 0 < found.matmul_share < 1
    assert set(found.to_dict()) >= {"ttft_s", "itl_s", "decode_share_of_read_rate", "prefill_share_of_matmul_rate"}


def test_bytes_of_a_token_are_the_weights_and_the_cache(subject: Subject) -> None:
    config = subject.config
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    size = read_bytes_per_token(config, torch.bfloat16, 10, 2)
    assert size == (config.num_parameters - embedding) * 2 + config.kv_bytes_per_token(2) * 10


def test_rates_are_of_this_machine() -> None:
    assert 1e8 < read_rate(2**24) < 1e13
    assert 1e8 < matmul_rate(torch.float32, torch.device("cpu")) < 1e15
