"""Any order of requests, groups, cancellations, failures and steps that hypothesis finds, with every invariant checked in between."""

from __future__ import annotations

from random import Random

from fake_engine import VOCAB, FakeEngine
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

PROMPTS = st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=11)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.integers(0, 2),
        "tenant": st.sampled_from("ab"),
        "salt": st.sampled_from([b"", b"x"]),
        "reuse_prefix": st.booleans(),
    },
)


class SchedulerMachine(RuleBasedStateMachine):
    """Contexts of 12 tokens, so that every pool of 12 slots takes every request."""

    @initialize(
        block_size=st.integers(1, 4),
        num_more=st.integers(0, 12),
        max_sequences=st.integers(1, 5),
        alignment=st.integers(1, 5),
        spare=st.integers(0, 8),
        reserve=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def make(self, block_size: int, num_more: int, max_sequences: int, alignment: int, spare: int, reserve: float) -> None:
        self.engine = FakeEngine(
            num_blocks=1 + -(-12 // block_size) + num_more,
            block_size=block_size,
            token_budget=max_sequences - 1 + alignment + spare,
            max_sequences=max_sequences,
            max_context=12,
            chunk_alignment=alignment,
            reserve=reserve,
            rng=Random(0),
        )
        self.running_step = None

    @precondition(lambda self: len(self.engine.live) < 12)
    @rule(prompt=PROMPTS, max_new_tokens=st.integers(1, 8), n=st.sampled_from([1, 1, 2, 3]), fields=FIELDS)
    def ask(self, prompt: list[int], max_new_tokens: int, n: int, fields: dict[str, object]) -> None:
        self.engine.submit(prompt, max_new_tokens, n=n, **fields)  # type: ignore[arg-type]

    @precondition(lambda self: self.engine.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.engine.cancel(data.draw(st.sampled_from(list(self.engine.live.values()))))

    @precondition(lambda self: self.running_step is None)
    @rule(seed=st.integers(0, 2**20), times=st.integers(1, 4))
    def steps(self, seed: int, times: int) -> None:
        self.engine.rng = Random(seed)
        for _ in range(times):
            self.engine.step()

    @precondition(lambda self: self.running_step is None)
    @rule(seed=st.integers(0, 2**20))
    def begin_a_step(self, seed: int) -> None:
        self.engine.rng = Random(seed)
        step = self.engine.begin()
        self.running_step = step if step.items else None

    @precondition(lambda self: self.running_step is not None)
    @rule(fails=st.booleans())
    def end_the_step(self, fails: bool) -> None:
        assert self.running_step is not None
        if fails:
            self.engine.scheduler.abandon()
        else:
            self.engine.finish(self.running_step)
        self.running_step = None

    @precondition(lambda self: self.running_step is None)
    @rule()
    def new_weights(self) -> None:
        self.engine.scheduler.abandon(forget=True)

    @rule(by=st.floats(-1e9, 1e9))
    def clock_jumps(self, by: float) -> None:
        self.engine.now += by

    @rule(rate=st.sampled_from([0.0, 0.1]))
    def errors_may_end_sequences(self, rate: float) -> None:
        self.engine.stop_rate = rate

    @invariant()
    def every_invariant_holds(self) -> None:
        self.engine.scheduler.check()

    def teardown(self) -> None:
        """Whatever happened, everything ends, and nothing is held."""
        if not hasattr(self, "engine"):
            return
        if self.running_step is not None:
            self.engine.finish(self.running_step)
        self.engine.run(2000)
        assert self.engine.pool.num_free == self.engine.pool.num_usable


SchedulerMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestScheduler = SchedulerMachine.TestCase
