"""A sequence's place in its grammar: masks, ends, taking back, drafts, copies, forced text, bounded white space."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from grammar_helpers import accepts, ended, feed, forcing_compiler, free_compiler, make_compiler, rss_mib, small_tokenizer, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import FormatError
from herd.engine.grammar.compiler import GrammarCompiler
from herd.engine.grammar.spec import Grammar, GrammarLimits
from herd.engine.grammar.state import GrammarState, allowed_ids

TOKENIZER = small_tokenizer()
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"enum": ["red", "reddish", "blue"]}, "maxItems": 3},
        "n": {"type": "number"},
    },
    "required": ["name", "n"],
}


def byte(text: str) -> int:
    return TOKENIZER.ranks[text.encode()]


def fresh(grammar: Grammar, compiler: GrammarCompiler | None = None) -> GrammarState:
    return (compiler or free_compiler()).compile(grammar).state()


def test_a_mask_is_exactly_the_ids_that_are_accepted() -> None:
    rng = random.Random(3)
    for grammar in (Grammar.json_schema(SCHEMA), Grammar.regex("(ab|a[0-9]{2,4})+"), Grammar.choice(["red", "reddish"])):
        state = fresh(grammar)
        for _ in range(12):
            allowed = set(allowed_ids(state.mask()).tolist())
            taken = {token_id for token_id in range(TOKENIZER.vocab_size) if state.clone().accept(token_id)}
            assert taken == allowed
            text = sorted(allowed - TOKENIZER.stop_ids)
            if not text:
                break
            assert state.accept(rng.choice(text))


def test_the_mask_is_the_set_of_tokens_whose_bytes_go_on() -> None:
    state = fresh(Grammar.choice(["red", "reddish", "blue"]))
    assert feed(state, "red") == 3
    expected = {token_id for token, token_id in TOKENIZER.ranks.items() if token and b"dish".startswith(token)} | TOKENIZER.stop_ids
    assert set(allowed_ids(state.mask()).tolist()) == expected


def test_end_ids_are_allowed_exactly_where_the_grammar_accepts() -> None:
    state = fresh(Grammar.choice(["red", "reddish"]))
    for token_id in (byte("r"), byte("e")):
        assert not state.is_accepting and not any(state.accept(stop) for stop in TOKENIZER.stop_ids)
        assert state.accept(token_id)
    assert state.accept(byte("d")) and state.is_accepting and not ended(state) and not state.finished
    done = state.clone()
    assert done.accept(TOKENIZER.eom_id) and done.finished and done.is_accepting and ended(done)
    assert not done.accept(byte("d")) and not done.accept(TOKENIZER.eot_id)
    assert set(allowed_ids(done.mask()).tolist()) == TOKENIZER.stop_ids
    assert feed(state, "dish") == 4 and ended(state) and set(allowed_ids(state.mask()).tolist()) == TOKENIZER.stop_ids


def test_ids_that_are_no_text_are_never_allowed() -> None:
    specials = set(TOKENIZER.special_tokens.values()) - TOKENIZER.stop_ids
    state = fresh(Grammar.regex("(?s:.*)"))
    assert not specials & set(allowed_ids(state.mask()).tolist())
    assert not any(state.accept(token_id) for token_id in (*specials, -1, TOKENIZER.vocab_size, 10**9))
    assert state.num_tokens == 0


def test_every_place_of_a_walk_is_found_again_by_taking_back() -> None:
    compiled = free_compiler().compile(Grammar.json_schema(SCHEMA))
    for seed in range(5):
        ids = [*walk(compiled, TOKENIZER, random.Random(seed), length=25), TOKENIZER.eot_id]
        state, masks = compiled.state(), []
        for token_id in ids:
            masks.append(state.mask())
            assert state.accept(token_id)
        assert state.finished and state.num_tokens == len(ids)
        rng = random.Random(seed)
        place = len(ids)
        while place:
            back = rng.randint(1, min(4, place))
            state.rollback(back)
            place -= back
            assert state.num_tokens == place and not state.finished and np.array_equal(state.mask(), masks[place])
            if rng.random() < 0.4:
                assert state.accept(ids[place])
                place += 1


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6)), max_size=30), forcing=st.booleans())
def test_any_order_of_taking_and_taking_back_equals_the_plain_way(steps: list[tuple[int, int]], forcing: bool) -> None:
    compiled = (forcing_compiler if forcing else free_compiler)().compile(Grammar.json_schema(SCHEMA, whitespace=1))
    state, ids = compiled.state(), list[int]()
    for kind, number in steps:
        if kind == 0 and ids:
            back = number % (len(ids) + 1)
            state.rollback(back)
            del ids[len(ids) - back :]
        elif kind == 1:
            state = state.clone()
        elif not state.finished:
            choices = allowed_ids(state.mask())
            ids.append(int(choices[number % len(choices)]))
            assert state.accept(ids[-1])
    plain = compiled.state()
    assert all(plain.accept(token_id) for token_id in ids)
    assert plain.finished == state.finished and plain.is_accepting == state.is_accepting and np.array_equal(plain.mask(), state.mask())


def test_more_than_was_taken_cannot_be_taken_back() -> None:
    state = fresh(Grammar.regex("a+"))
    assert state.accept(byte("a"))
    for number in (2, -1):
        with pytest.raises(FormatError, match="take back"):
            state.rollback(number)
    state.rollback(0)
    state.rollback(1)
    assert state.num_tokens == 0


def test_copies_go_their_own_ways() -> None:
    first = fresh(Grammar.choice(["ax", "by"]))
    second = first.clone()
    assert first.accept(byte("a")) and second.accept(byte("b"))
    assert first.accept(byte("x")) and not second.accept(byte("x")) and second.accept(byte("y"))
    assert ended(first) and ended(second)


def test_a_refused_id_changes_nothing() -> None:
    state = fresh(Grammar.json_schema(SCHEMA))
    before = state.mask()
    assert not state.accept(byte("x")) and state.num_tokens == 0 and np.array_equal(state.mask(), before)
    assert state.accept(byte("{"))


def test_masks_can_be_written_into_rows() -> None:
    rows = np.zeros((2, (TOKENIZER.vocab_size + 31) // 32), np.uint32)
    state = fresh(Grammar.choice(["a", "b"]))
    assert state.mask(rows[1]).base is not None and not rows[0].any() and allowed_ids(rows[1]).tolist() == sorted([byte("a"), byte("b")])


def test_a_model_with_more_rows_than_tokens_has_a_longer_mask() -> None:
    compiler = make_compiler(TOKENIZER, vocab_size=TOKENIZER.vocab_size + 100)
    state = fresh(Grammar.regex("(?s:.*)"), compiler)
    assert state.mask().shape == ((TOKENIZER.vocab_size + 131) // 32,)
    assert allowed_ids(state.mask()).max() < TOKENIZER.vocab_size


def test_forced_text_comes_in_the_tokenizers_own_pieces() -> None:
    grammar = Grammar.json_schema({"type": "object", "properties": {"parameters": {"const": "get_weather"}}, "required": ["parameters"]})
    state = fresh(grammar, forcing_compiler())
    text = '{"parameters":"get_weather"}'
    ids: list[int] = []
    while not ended(state):
        (forced,) = allowed_ids(state.mask()).tolist()
        assert state.accept(forced)
        ids.append(forced)
    assert TOKENIZER.decode(ids) == text and ids == TOKENIZER.encode(text)
    free = fresh(grammar)
    assert len(allowed_ids(free.mask())) > 1 and feed(free, text) == len(text) and ended(free)


def test_white_space_is_bounded_where_anything_else_can_follow() -> None:
    compiler = make_compiler(TOKENIZER, split_regex=None, limits=GrammarLimits(max_space_run=10))
    state = fresh(Grammar.json_schema({"type": "string"}), compiler)
    assert feed(state, '"' + " " * 40) == 11
    spaces = {token_id for token, token_id in TOKENIZER.ranks.items() if token[:1].isspace()}
    assert not spaces & set(allowed_ids(state.mask()).tolist())
    state.rollback(1)
    assert state.accept(byte(" ")) and not state.accept(byte(" ")) and state.accept(byte("a")) and state.accept(byte(" "))
    only = fresh(Grammar.regex(" {20}a"), compiler)
    assert feed(only, " " * 20 + "a") == 21 and ended(only)
    ignoring = Grammar.lark('start: "a" "b"\n%ignore /[ \\n]+/')
    assert accepts(ignoring, "a" + " " * 10 + "b", compiler) and not accepts(ignoring, "a" + " " * 11 + "b", compiler)


def test_digits_and_brackets_do_not_go_on_for_ever() -> None:
    for start, more in (("", "1"), ("0.", "1"), ("1e", "9"), ("-", "7"), ("", "["), ("", '{"":')):
        state = fresh(Grammar.json_schema(True))
        assert feed(state, start + more * 200) < 40 * len(more)


def test_a_grammar_that_grows_too_complex_ends_the_request_and_not_the_process() -> None:
    compiler = make_compiler(TOKENIZER, split_regex=None, limits=GrammarLimits(max_lexer_states=100))
    state = fresh(Grammar.regex("(.*a.{200}b)|(.*c.{199}d)"), compiler)
    with pytest.raises(FormatError, match="too complex after") as caught:
        for _ in range(300):
            state.mask()
            state.accept(byte("a"))
    assert caught.value.hint and len(caught.value.message) < 400
    with pytest.raises(FormatError):
        state.mask()
    assert fresh(Grammar.choice(["a"]), compiler).accept(byte("a"))


def test_a_full_automaton_begins_anew_and_the_answer_goes_on() -> None:
    schema = {"type": "array", "items": {"type": "string", "maxLength": 400}}
    small = make_compiler(TOKENIZER, split_regex=None, limits=GrammarLimits(max_lexer_states=700)).compile(Grammar.json_schema(schema))
    large = free_compiler().compile(Grammar.json_schema(schema))
    first, second, plain = small.state(), small.state(), large.state()
    text = json.dumps(["x" * 300, "é" * 150, "abc" * 100], ensure_ascii=False, separators=(",", ":"))
    for value in text.encode():
        token_id = TOKENIZER.ranks[bytes([value])]
        mask = plain.mask()
        assert np.array_equal(first.mask(), mask) and np.array_equal(second.clone().mask(), mask)
        assert all(state.accept(token_id) for state in (first, second, plain))
    assert small.matcher()[1] > 0, "the automaton was never full, so this test tells nothing"
    first.rollback(100)
    plain.rollback(100)
    assert np.array_equal(first.mask(), plain.mask()) and ended(second)


def test_a_long_answer_stays_within_a_small_memory() -> None:
    compiled = free_compiler().compile(Grammar.json_schema({"type": "array", "items": {"type": "string"}}))
    state = compiled.state()
    item = [TOKENIZER.ranks[bytes([value])] for value in json.dumps("item é", ensure_ascii=False).encode() + b","]
    assert state.accept(byte("["))
    before = rss_mib()
    for _ in range(400):
        for token_id in item:
            state.mask()
            assert state.accept(token_id)
    assert rss_mib() - before < 20
    state.rollback(400 * len(item))
    assert state.num_tokens == 1 and state.accept(byte("]")) and ended(state)
