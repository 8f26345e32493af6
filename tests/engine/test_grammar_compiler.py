"""The compiler: limits of size and time, hostile input, and a cache whose memory is bounded."""

from __future__ import annotations

import gc
import random
import threading
import time
from typing import Any

import pytest
from grammar_helpers import FULL, ended, feed, forcing_compiler, free_compiler, make_compiler, rss_mib, small_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import FormatError
from herd.engine.grammar.spec import Grammar, GrammarLimits
from herd.engine.grammar.state import allowed_ids

TOKENIZER = small_tokenizer()


def schema_of(number: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            f"key{number}": {"enum": ["alpha", f"beta{number}"]},
            "address": {"type": "object", "properties": {"zip": {"type": "string", "maxLength": 9}, "street": {"type": "string"}}},
        },
        "required": ["name", f"key{number}"],
    }


def drive(grammar: Grammar, seed: int = 0, steps: int = 40) -> None:
    """Compile and write a little; a FormatError is a good end, and nothing may take long."""
    compiler = (free_compiler, forcing_compiler)[seed % 2]()
    rng = random.Random(seed)
    try:
        state = compiler.compile(grammar).state()
        for _ in range(steps):
            choices = allowed_ids(state.mask())
            assert len(choices)
            if not state.accept(int(rng.choice(choices))) or state.finished:
                return
    except FormatError as error:
        assert error.hint and len(error.message) < 700


HOSTILE = {
    "counted twice": "(a{1000}){1000}",
    "counted three times": "(((.{100}){100}){100}){100}",
    "nested stars": "(a+)+b",
    "many stars": "(a|a)*" * 50 + "b",
    "exponential automaton": "(.*a.{200}b)|(.*c.{199}d)",
    "unicode classes": r"\p{L}{1,1000}\p{N}{1,1000}",
    "alternatives": "|".join(f"word{number}" for number in range(3000)),
    "a long text": "a" * 32_000,
    "deep groups": "(" * 3000 + "a" + ")" * 3000,
    "not utf-8": r"(?-u:\xff)",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_patterns_end_soon_one_way_or_another(name: str) -> None:
    began = time.process_time()
    for grammar in (
        Grammar.regex(HOSTILE[name]),
        Grammar.json_schema({"type": "string", "pattern": HOSTILE[name]}),
        Grammar.json_schema({"type": "string", "pattern": f"^b?{HOSTILE[name]}$", "maxLength": 100}),
        Grammar.lark("start: A\nA: /" + HOSTILE[name] + "/"),
    ):
        drive(grammar)
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    "text",
    [
        "start: start start | ",
        'start: s\ns: s s | "a" | ',
        "start: a0\n" + "\n".join(f"a{index}: a{index + 1} a{index + 1}" for index in range(60)) + '\na60: "x"',
        'start: (("a"{1000}){1000}){1000}',
        "start: A\nA: ~/(a|b)*a(a|b){20}/ & ~/(a|b)*b(a|b){21}/",
        "start: (A | B)*\nA: /.{1,50}/\nB: /.{1,49}x/",
        'start: a b c\na: "x"*\nb: "x"*\nc: "x"*',
    ],
    ids=range(7),
)
def test_hostile_grammars_end_soon_one_way_or_another(text: str) -> None:
    began = time.process_time()
    drive(Grammar.lark(text))
    assert time.process_time() - began < 20


PIECES = [
    *"()[]{}|*+?.^$\\/\"'~&-,:<>@%#\n ",
    "{1,50}",
    "a",
    "b",
    "start",
    ":",
    "A",
    "\\d",
    "\\p{L}",
    "(?i)",
    "(?:",
    "[^a]",
    "é",
    "{100}",
    "%ignore /x/",
    '"x"',
]


@settings(max_examples=1500 if FULL else 100, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=25),
    kind=st.sampled_from(["regex", "pattern", "lark", "rule"]),
    seed=st.integers(0, 9),
)
def test_no_text_makes_the_compiler_fail_in_another_way(pieces: list[str], kind: str, seed: int) -> None:
    text = "".join(pieces)
    try:
        grammar = {
            "regex": lambda: Grammar.regex(text),
            "pattern": lambda: Grammar.json_schema({"type": "string", "pattern": text}),
            "lark": lambda: Grammar.lark(text),
            "rule": lambda: Grammar.lark(f"start: {text}\nA: /[ab]+/\n"),
        }[kind]()
    except FormatError:
        return
    drive(grammar, seed, steps=8)


JSON = (
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SCHEMA_WORDS, "a"]), inner, max_size=4),
        max_leaves=12,
    )
    if (
        SCHEMA_WORDS := (
            *(
                "type",
                "enum",
                "const",
                "properties",
                "required",
                "items",
                "prefixItems",
                "additionalProperties",
                "anyOf",
                "allOf",
                "oneOf",
                "$ref",
            ),
            *(
                "minimum",
                "maximum",
                "exclusiveMinimum",
                "multipleOf",
                "minLength",
                "maxLength",
                "pattern",
                "format",
                "minItems",
                "maxItems",
            ),
            *("patternProperties", "propertyNames", "minProperties", "maxProperties", "$defs"),
        )
    )
    else st.none()
)


@settings(max_examples=1500 if FULL else 150, deadline=None)
@given(schema=st.dictionaries(st.sampled_from(SCHEMA_WORDS), JSON, max_size=4), seed=st.integers(0, 9))
def test_no_schema_makes_the_compiler_fail_in_another_way(schema: dict[str, Any], seed: int) -> None:
    try:
        grammar = Grammar.json_schema(schema)
    except FormatError:
        return
    drive(grammar, seed, steps=8)


def test_a_compiled_grammar_is_kept_and_the_oldest_goes() -> None:
    compiler = make_compiler(TOKENIZER, limits=GrammarLimits(cache_entries=3))
    compiled = [compiler.compile(Grammar.choice([f"text {number}"])) for number in range(3)]
    assert compiler.compile(Grammar.choice(["text 0"])) is compiled[0] and compiler.cache_info.hits == 1
    compiler.compile(Grammar.choice(["text 3"]))
    assert compiler.compile(Grammar.choice(["text 0"])) is compiled[0] and compiler.compile(Grammar.choice(["text 1"])) is not compiled[1]
    assert compiler.cache_info.entries == 3 and compiler.cache_info.misses == 5
    state = compiled[1].state()
    assert feed(state, "text 1") == 6 and ended(state)


def test_the_cache_is_bounded_by_size_too() -> None:
    compiler = make_compiler(TOKENIZER, limits=GrammarLimits(cache_bytes=300_000))
    for number in range(30):
        compiler.compile(Grammar.json_schema(schema_of(number)))
        assert compiler.cache_info.size_bytes <= 300_000
    assert 0 < compiler.cache_info.entries < 30


def test_ten_thousand_schemas_leave_the_memory_bounded() -> None:
    """Ten thousand distinct schemas, each compiled and used once, or a twentieth of them where time is short."""
    compiler = make_compiler(TOKENIZER)
    for number in range(100):
        compiler.compile(Grammar.json_schema(schema_of(number))).state().mask()
    gc.collect()
    settled = rss_mib()
    for number in range(100, 10_000 if FULL else 500):
        compiler.compile(Grammar.json_schema(schema_of(number))).state().mask()
    gc.collect()
    info = compiler.cache_info
    assert info.entries == compiler.limits.cache_entries and info.size_bytes <= compiler.limits.cache_bytes
    assert rss_mib() - settled < 40
    compiler.close()


def test_grammars_made_to_grow_leave_the_memory_bounded() -> None:
    """Each fills its automaton over and over; four are kept, of about 12 MiB each."""
    compiler = make_compiler(TOKENIZER, split_regex=None, limits=GrammarLimits(cache_entries=4))
    gc.collect()
    settled = rss_mib()
    for number in range(40 if FULL else 12):
        state = compiler.compile(Grammar.regex(f"(.*a.{{200}}b{number})|(.*c.{{199}}d)")).state()
        for step in range(500):
            state.mask()
            assert state.accept(TOKENIZER.ranks[b"ac"[step % 2 : step % 2 + 1]])
    del state
    gc.collect()
    assert rss_mib() - settled < 80
    compiler.close()


def test_a_caller_waits_no_longer_than_the_limit() -> None:
    compiler = make_compiler(TOKENIZER, limits=GrammarLimits(compile_s=1e-6))
    with pytest.raises(FormatError, match="not compiled within") as caught:
        compiler.compile(Grammar.json_schema({"enum": [f"value {number}" for number in range(3000)]}))
    assert caught.value.hint
    assert compiler.start(Grammar.choice(["a"])).result(timeout=60).state().accept(TOKENIZER.ranks[b"a"])


def test_one_grammar_asked_for_by_many_threads_is_compiled_once() -> None:
    compiler = make_compiler(TOKENIZER)
    grammar = Grammar.json_schema({"enum": [f"value {number}" for number in range(2000)]})
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(compiler.compile(grammar))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len({id(compiled) for compiled in found}) == 1 and compiler.cache_info.misses == 1


def test_a_wrong_grammar_is_not_kept_and_the_next_one_compiles() -> None:
    compiler = make_compiler(TOKENIZER)
    for _ in range(3):
        with pytest.raises(FormatError):
            compiler.compile(Grammar.regex("("))
    assert compiler.cache_info.entries == 0 and compiler.cache_info.misses == 3
    assert compiler.compile(Grammar.regex("a")).state().accept(TOKENIZER.ranks[b"a"])


def test_a_vocabulary_without_all_bytes_is_refused() -> None:
    token_bytes = [bytes([byte]) for byte in range(255)] + [b"<end>"]
    from herd.engine.grammar.compiler import GrammarCompiler

    for changes, said in [
        ({}, "255 of the 256"),
        ({"stop_ids": []}, "end ids"),
        ({"stop_ids": [256]}, "end ids"),
        ({"vocab_size": 3}, "3 outputs"),
    ]:
        options: dict[str, Any] = {"special_ids": [255], "stop_ids": [255]} | changes
        with pytest.raises(FormatError, match=said) as caught:
            GrammarCompiler(token_bytes, **options)
        assert caught.value.hint
