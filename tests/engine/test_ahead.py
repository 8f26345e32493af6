"""The next step launched before the last one's ids are read: the same tokens, every block in order, and no read before the launch.

The runner here is the CPU's, which draws where it runs as a GPU's does; tests/kernels/interpreted has the GPU's own, interpreted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pytest
from fake_engine import VOCAB as FAKE_VOCAB  # pyright: ignore[reportMissingImports]
from fake_engine import FakeEngine  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray
from small_model import VOCAB, mixed_requests, small_engine, small_model  # pyright: ignore[reportMissingImports]

from herd.base.errors import CheckpointError
from herd.engine import build
from herd.engine.batch import RaggedBatch, RowReader
from herd.engine.draw import RowNumbers
from herd.engine.engine import Engine
from herd.engine.params import TokenParams
from herd.engine.request import Sequence
from herd.engine.runner import CpuRunner
from herd.engine.sampler import best_ids, draw_in_numpy
from herd.engine.scheduler import Step
from herd.engine.stream import TokenRequest, Tokens
from herd.model.transformer import Transformer

LOG: list[str] = []


@dataclass
class Kept:
    ids: list[int]

    def read(self) -> list[int]:
        LOG.append("read")
        return self.ids


class AheadRunner(CpuRunner):
    """Draws by itself, in numpy, and takes what it drew into the next step."""

    runs_ahead = True

    def run(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        self.last = super().run(batch)
        LOG.append("run")
        return self.last

    def run_ahead(self, batch: RaggedBatch, drawn: Kept, rows: list[int]) -> None:
        tokens = np.array([max(0, drawn.ids[row]) for row in rows], dtype=np.int32)
        self.last = super().run(replace(batch, tokens_T=tokens))
        LOG.append("ahead")

    def draw_later(self, numbers: RowNumbers) -> Kept:
        scores = RowReader(self.last).take(len(numbers.uniforms))
        ids = best_ids(scores)
        for row, (heat, k, p, least, number) in enumerate(zip(*numbers, strict=True)):
            if heat and ids[row] >= 0:
                ids[row] = draw_in_numpy(scores[row], TokenParams(max_tokens=1, temperature=heat, top_k=k, top_p=p, min_p=least), number)
        return Kept(ids)

    def draw_there(self, numbers: RowNumbers) -> list[int]:
        return self.draw_later(numbers).ids


@pytest.fixture(scope="module")
def model() -> Transformer:
    return small_model()


@pytest.fixture(autouse=True)
def runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CpuRunner", AheadRunner)
    LOG.clear()


def engine_of(model: Transformer, *, ahead: bool, **changes: object) -> Engine:
    made = small_engine(model, **changes)  # pyright: ignore[reportArgumentType]
    assert isinstance(made.stepper.runner, AheadRunner)
    made.stepper.runner.runs_ahead = ahead
    return made


def plain(count: int, **changes: object) -> list[TokenRequest]:
    """Requests whose tokens are drawn from the scores as they are."""
    silent = {"logprobs": None, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": ()}
    return mixed_requests(count, seed=8, **{**silent, **changes})


def written(engine: Engine, requests: list[TokenRequest], *, at_once: int) -> list[list[tuple[int, tuple[int, ...], str | None]]]:
    """The events of every request, one continuation after the other."""
    found = []
    for first in range(0, len(requests), at_once):
        streams = [engine.submit(request) for request in requests[first : first + at_once]]
        told = [[(event.index, event.ids, event.finish) for event in stream if isinstance(event, Tokens)] for stream in streams]
        found += [sorted(events, key=lambda event: event[0]) for events in told]
    engine.scheduler.check()
    assert engine.scheduler.pool.num_references == 0
    return found


def test_the_next_step_is_launched_before_the_last_is_read(model: Transformer) -> None:
    engine = engine_of(model, ahead=True)
    written(engine, plain(1, max_tokens=6, temperature=0.0), at_once=1)
    assert LOG.count("ahead") == 4, "of six tokens the first comes with the prompt, the second by a step of its own"
    assert LOG[-10:] == ["run", "ahead", "read", "ahead", "read", "ahead", "read", "ahead", "read", "read"]
    assert (engine.stepper.ahead.num_taken, engine.stepper.ahead.num_lost) == (4, 0)


@pytest.mark.parametrize(
    "changes",
    [{"max_sequences": 8}, {"context": 280, "block_size": 4, "num_blocks": 72, "max_sequences": 8}],
    ids=["room", "preemptions"],
)
def test_tokens_are_those_without(model: Transformer, changes: dict[str, object]) -> None:
    """Of different lengths, with ends that no one could foresee, alone and while others come and go."""
    requests = plain(24, temperature=0.0) + plain(24)
    stops = frozenset(range(0, VOCAB, 9))
    requests = [replace(one, params=replace(one.params, stop_ids=stops if n % 2 else frozenset())) for n, one in enumerate(requests)]
    requests += [replace(requests[0], n=3), replace(requests[-1], n=2)]
    expected = written(engine_of(model, ahead=False, **changes), requests, at_once=10)
    engine = engine_of(model, ahead=True, **changes)
    assert written(engine, requests, at_once=10) == expected
    assert written(engine, requests, at_once=1) == expected
    assert engine.stepper.ahead.num_taken > 50
    assert engine.stepper.ahead.num_lost > 0


def test_a_cancelled_request_is_left_out_of_what_is_under_way(model: Transformer) -> None:
    requests = plain(3, max_tokens=40, temperature=0.0)
    expected = written(engine_of(model, ahead=False), requests[:2], at_once=1)
    engine = engine_of(model, ahead=True)
    streams = [engine.submit(request) for request in requests]
    events = iter(streams[2])
    for _ in range(5):
        next(events)
    streams[2].cancel()
    found = [[(event.index, event.ids, event.finish) for event in stream if isinstance(event, Tokens)] for stream in streams[:2]]
    assert found == expected
    assert engine.stepper.ahead.num_taken > 20
    assert engine.scheduler.pool.num_references == 0


def test_noise_fails_its_own_request_alone(model: Transformer) -> None:
    """Its row is under way with a token that stands for nothing."""
    requests = plain(2, max_tokens=12, temperature=0.0)
    expected = written(engine_of(model, ahead=False), requests, at_once=2)
    engine = engine_of(model, ahead=True)
    runner = engine.stepper.runner
    assert isinstance(runner, AheadRunner)
    draw, calls = runner.draw_later, list[int]()

    def noisy(numbers: RowNumbers) -> Kept:
        kept = draw(numbers)
        calls.append(len(kept.ids))
        return Kept([-1, *kept.ids[1:]]) if len(calls) == 4 else kept

    runner.draw_later = noisy  # pyright: ignore[reportAttributeAccessIssue]
    first, second = (engine.submit(request) for request in requests)
    with pytest.raises(CheckpointError, match="not finite"):
        list(first)
    assert [(event.index, event.ids, event.finish) for event in second if isinstance(event, Tokens)] == expected[1]


class LookingAhead(FakeEngine):
    """Asks for blocks a step before their time, at random; every read and write of the cache is checked."""

    num_ahead = 0

    def finish(self, step: Step) -> list[Sequence]:
        assert self.rng is not None
        if self.rng.random() < 0.7:
            going = self.scheduler.look_ahead()
            self.num_ahead += len(going)
            for item in going:
                block = item.sequence.blocks[item.first_position // self.pool.block_size]
                assert self.pool.refs[block] == 1 and self.pool.digests[block] is None
        return super().finish(step)

    def _proposal(self, sequence: Sequence) -> list[int]:
        return []


@pytest.mark.parametrize("seed", range(4))
def test_blocks_asked_for_early_are_lost_by_no_one(seed: int) -> None:
    rng = Random(seed)
    engine = LookingAhead(num_blocks=rng.choice((9, 14, 33)), block_size=rng.choice((1, 2, 4)), max_context=16, rng=rng)
    for _ in range(150):
        if rng.random() < 0.12:
            prompt = [rng.randrange(1, 1 + FAKE_VOCAB) for _ in range(rng.randint(1, 6))]
            most = max(1, min(10, engine.pool.num_usable * engine.pool.block_size - len(prompt)))
            engine.submit(prompt, min(most, 16 - len(prompt)), n=rng.choice((1, 1, 2)))
        if engine.live and rng.random() < 0.05:
            engine.cancel(rng.choice(list(engine.live.values())))
        engine.step()
        engine.scheduler.check()
    engine.run()
    assert engine.num_ahead > 0 and engine.pool.num_references == 0
