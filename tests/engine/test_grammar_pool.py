"""Masks in threads: the same bits as one after the other, whatever runs beside them, and each failure where it belongs."""

from __future__ import annotations

import random
import threading
from concurrent.futures import wait

import numpy as np
import pytest
from grammar_helpers import FULL, forcing_compiler, free_compiler, make_compiler, small_tokenizer

from herd.base.errors import FormatError
from herd.engine.grammar.pool import MaskPool
from herd.engine.grammar.spec import Grammar, GrammarLimits
from herd.engine.grammar.state import GrammarState, allowed_ids

TOKENIZER = small_tokenizer()
GRAMMARS = [
    Grammar.json_schema({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {}}}}),
    Grammar.json_object(),
    Grammar.regex(r"([a-z]{1,9} ?)*"),
    Grammar.tools([{"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}], style="python_list"),
]


def test_one_state_is_done_at_once_and_many_in_order() -> None:
    pool = MaskPool(num_threads=3)
    states = [free_compiler().compile(grammar).state() for grammar in GRAMMARS for _ in range(5)]
    [single] = pool.start(states[:1])
    assert single.done() and np.array_equal(single.result(), states[0].mask())
    rows = np.zeros((len(states), len(single.result())), np.uint32)
    futures = pool.start(states, list(rows))
    for state, future, row in zip(states, futures, rows, strict=True):
        assert np.array_equal(future.result(timeout=60), row) and np.array_equal(row, state.mask())
    assert pool.start([]) == []
    pool.close()


def test_a_failure_reaches_its_own_caller_alone() -> None:
    compiler = make_compiler(TOKENIZER, split_regex=None, limits=GrammarLimits(max_lexer_states=100))
    broken = compiler.compile(Grammar.regex("(.*a.{200}b)|(.*c.{199}d)")).state()
    with pytest.raises(FormatError):
        for _ in range(300):
            broken.mask()
            broken.accept(TOKENIZER.ranks[b"a"])
    good = [free_compiler().compile(Grammar.json_object()).state() for _ in range(4)]
    pool = MaskPool(num_threads=2)
    futures = pool.start([good[0], broken, *good[1:]])
    wait(futures, timeout=60)
    assert [future.exception() is not None for future in futures] == [False, True, False, False, False]
    assert isinstance(futures[1].exception(), FormatError)
    pool.close()


def run(seed: int, states: list[GrammarState], pool: MaskPool | None, steps: int) -> list[list[int]]:
    """Random answers, masks by the pool or one by one; the choices depend on the seed alone."""
    rng = random.Random(seed)
    texts: list[list[int]] = [[] for _ in states]
    for _ in range(steps):
        live = [index for index, state in enumerate(states) if not state.finished]
        if not live:
            break
        masks = (
            [states[index].mask() for index in live]
            if pool is None
            else [f.result(timeout=60) for f in pool.start([states[i] for i in live])]
        )
        for index, mask in zip(live, masks, strict=True):
            choices = allowed_ids(mask)
            token_id = int(choices[rng.randrange(len(choices))])
            assert states[index].accept(token_id)
            texts[index].append(token_id)
            if len(texts[index]) > 4 and rng.random() < 0.1:
                states[index].rollback(3)
                del texts[index][-3:]
    return texts


def make_states(seed: int) -> list[GrammarState]:
    """Several sequences of each grammar: those of one share its automaton."""
    compiler = (free_compiler, forcing_compiler)[seed % 2]()
    return [compiler.compile(grammar).state() for grammar in GRAMMARS for _ in range(4)]


def test_engines_side_by_side_write_what_they_write_alone() -> None:
    steps, engines = (300, 8) if FULL else (60, 4)
    alone = [run(seed, make_states(seed), None, steps) for seed in range(engines)]
    pool, together, failures = MaskPool(num_threads=4), [[] for _ in range(engines)], []

    def engine(seed: int) -> None:
        try:
            together[seed] = run(seed, make_states(seed), pool, steps)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=engine, args=(seed,)) for seed in range(engines)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and together == alone
    pool.close()


def test_compiling_goes_on_beside_masks() -> None:
    compiler, stop, failures = make_compiler(TOKENIZER), threading.Event(), []

    def compile_on() -> None:
        number = 0
        while not stop.is_set():
            try:
                compiler.compile(Grammar.json_schema({"properties": {f"p{number}": {"enum": [str(number), None]}}}))
            except BaseException as error:
                failures.append(error)
            number += 1

    thread = threading.Thread(target=compile_on)
    thread.start()
    states = [compiler.compile(grammar).state() for grammar in GRAMMARS for _ in range(4)]
    pool = MaskPool(num_threads=2)
    run(1, states, pool, 40)
    stop.set()
    thread.join()
    pool.close()
    assert not failures
