"""Of the prompts in work the one is read whose tenant was served least, counting what this very step gives."""

from __future__ import annotations

import heapq

from fake_engine import FakeEngine

from herd.engine.fairness import standing
from herd.engine.planning import _first
from herd.engine.request import Account, Sequence


def test_a_tenant_that_this_step_served_already_stands_behind() -> None:
    one, other = Account(), Account(served=5)
    prompts = [
        Sequence(id=turn, prompt=(1,), max_new_tokens=1, turn=turn, account=account) for turn, account in enumerate((one, one, other))
    ]
    works = [(*standing(sequence), sequence) for sequence in prompts]
    heapq.heapify(works)
    assert _first(works) is prompts[0]
    heapq.heappop(works)
    one.served += 8
    assert _first(works) is prompts[2]


def test_a_prompt_in_work_goes_on_before_a_new_one_of_its_tenant() -> None:
    engine = FakeEngine(token_budget=9, max_sequences=2, chunk_alignment=8)
    first, second = engine.submit([1] * 20), engine.submit([2] * 8)
    order = [item.sequence for _ in range(4) for item in engine.step().items if item.first_position < len(item.sequence.prompt)]
    assert order == [*first * 3, *second]
