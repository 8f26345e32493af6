"""What the grammar tests share: a small tokenizer, a compiler over it, and random walks through masks that come to an end."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from herd.engine.grammar.compiler import CompiledGrammar, GrammarCompiler
from herd.engine.grammar.spec import Grammar, GrammarLimits
from herd.engine.grammar.state import GrammarState, allowed_ids
from herd.text.bpe_train import train_bpe
from herd.text.tokenizer import Tokenizer

MAX_CLOSING = 20_000
FULL = os.environ.get("HERD_TEST_FULL") == "1"
"""Run the large sets whole."""

TEXT = """{"name": "get_weather", "parameters": {"city": "Genève", "days": 3, "units": null, "list": [1, 2.5, -3e10, true, false]}}
<function=get_weather>{"query": "the herd"}</function> [get_weather(city='Paris', days=12), now()] brave_search.call(query="llamas")
for index in range(10):\n    print("value", index ** 2)\nimport numpy as np\ntype function string number object array \\n \\" \\u00e9 \\\\
A cria is a young llama. Ein kleines Lama läuft über die Wiese. Où est le troupeau? ลามะอยู่บนภูเขา झुंड पहाड़ पर है 数学 0123456789 2024-05-17
"""


@cache
def small_tokenizer() -> Tokenizer:
    return train_bpe([TEXT] * 8, 512, min_frequency=2)


def make_compiler(tokenizer: Tokenizer, **changes: Any) -> GrammarCompiler:
    options: dict[str, Any] = {
        "special_ids": tokenizer.special_tokens.values(),
        "stop_ids": tokenizer.stop_ids,
        "python_tag_id": tokenizer.python_tag_id,
        "split_regex": tokenizer.split_regex,
    }
    token_bytes = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
    limits: GrammarLimits = changes.pop("limits", GrammarLimits())
    if limits.compile_s == GrammarLimits().compile_s:  # a busy machine is not what these tests are about
        limits = replace(limits, compile_s=300.0)
    return GrammarCompiler(token_bytes, **(options | changes), limits=limits)


@cache
def free_compiler() -> GrammarCompiler:
    """Nothing is forced: every spelling in tokens is open."""
    return make_compiler(small_tokenizer(), split_regex=None)


@cache
def forcing_compiler() -> GrammarCompiler:
    """Text without alternative comes in the tokenizer's own pieces."""
    return make_compiler(small_tokenizer())


@cache
def _closers(tokenizer: Tokenizer) -> list[int]:
    """Ids that tend to bring a text to its end, the best first."""
    spellings = [*"\"}])'>", "</function>", ":", ",", " ", *"0123456789", *"abcdefghijklmnopqrstuvwxyz", *"TFNZ-+.@/"]
    return [tokenizer.ranks[text.encode()] for text in spellings if text.encode() in tokenizer.ranks]


def walk(compiled: CompiledGrammar, tokenizer: Tokenizer, rng: random.Random, *, length: int = 60, start: Sequence[int] = ()) -> list[int]:
    """Random ids that the grammar takes, at random for `length` steps and straight to the end then. The end id is not among them.

    `start` is how they begin, as far as the grammar goes along with it.
    """
    state = compiled.state()
    ids: list[int] = []
    for token_id in start:
        if not state.accept(token_id):
            break
        ids.append(token_id)
    for step in range(length + MAX_CLOSING):
        mask = state.mask()
        choices = allowed_ids(mask)
        assert len(choices), "a mask is empty"
        stops = [int(token_id) for token_id in choices if int(token_id) in tokenizer.stop_ids]
        assert bool(stops) == state.is_accepting, "an end id is allowed exactly where the grammar accepts"
        if stops and (step >= length or len(stops) == len(choices) or rng.random() < 0.1):
            assert state.accept(rng.choice(stops)) and state.finished
            return ids
        if step >= length and step % 8 == 0:
            ids += _needed_text(state, tokenizer)
            choices = allowed_ids(state.mask())
        quotes = tokenizer.decode(ids[-3:])
        token_id = _choose(choices, step >= length, tokenizer, rng)
        if quotes == '"""' and tokenizer.ranks[b"'"] in choices:
            token_id = tokenizer.ranks[b"'"]
        assert state.accept(token_id), "a mask allows what is then refused"
        ids.append(token_id)
    raise AssertionError(f"no end after {len(ids)} tokens: {tokenizer.decode(ids)[-300:]!r}")


def _needed_text(state: GrammarState, tokenizer: Tokenizer) -> list[int]:
    """What a pattern may be waiting for before its string can close."""
    for text in ("abc", "b", r"say \"hi\"", r"hi\"", r"\\d", "d"):
        ids = [tokenizer.ranks[bytes([byte])] for byte in text.encode()]
        trial = state.clone()
        if trial.accept(tokenizer.ranks[b'"']):
            return []
        if all(trial.accept(token_id) for token_id in ids) and trial.clone().accept(tokenizer.ranks[b'"']):
            return [token_id for token_id in ids if state.accept(token_id)]
    return []


def _choose(choices: Any, closing: bool, tokenizer: Tokenizer, rng: random.Random) -> int:
    text = [int(token_id) for token_id in choices if int(token_id) not in tokenizer.stop_ids]
    if closing or rng.random() < 0.25:
        known = set(text)
        closers = [token_id for token_id in _closers(tokenizer) if token_id in known]
        if closers:
            return closers[0] if closing else rng.choice(closers[:6])
    return rng.choice(text)


def written(grammar: Grammar, seed: int, *, length: int = 60, compiler: GrammarCompiler | None = None) -> str:
    """The text of one random walk."""
    tokenizer = small_tokenizer()
    compiled = (compiler or free_compiler()).compile(grammar)
    return tokenizer.decode_bytes(walk(compiled, tokenizer, random.Random(seed), length=length)).decode()


def ended(state: GrammarState) -> bool:
    """Whether nothing but an end id can follow."""
    return set(allowed_ids(state.mask()).tolist()) <= small_tokenizer().stop_ids


def feed(state: GrammarState, text: str | bytes) -> int:
    """How many bytes of a text the grammar takes, one byte a token."""
    data = text.encode() if isinstance(text, str) else text
    for index, byte in enumerate(data):
        if not state.accept(small_tokenizer().ranks[bytes([byte])]):
            return index
    return len(data)


def accepts(grammar: Grammar, text: str, compiler: GrammarCompiler | None = None) -> bool:
    """Whether a text is whole and right."""
    state = (compiler or free_compiler()).compile(grammar).state()
    return feed(state, text) == len(text.encode()) and state.is_accepting


def rss_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
