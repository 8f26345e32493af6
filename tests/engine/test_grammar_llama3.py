"""Grammars over Llama 3's own 128,256 tokens: masks against a search through all of them, calls that are read back."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from grammar_helpers import make_compiler, walk

from herd.engine.grammar.compiler import GrammarCompiler
from herd.engine.grammar.spec import STYLES, Grammar
from herd.engine.grammar.state import allowed_ids
from herd.text.reply import parse_reply
from herd.text.tokenizer import Tokenizer, load_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "units": {"enum": ["celsius", "kelvin"]},
    },
    "required": ["city", "days"],
}


@cache
def _loaded(path: Path) -> Tokenizer:
    return load_tokenizer(path)


@cache
def _compiler(path: Path) -> GrammarCompiler:
    return make_compiler(_loaded(path))


@pytest.fixture
def llama3(shared_data: Path) -> Tokenizer:
    return _loaded(shared_data / "reference" / "llama3" / "tokenizer.model")


@pytest.fixture
def over_llama3(shared_data: Path) -> GrammarCompiler:
    return _compiler(shared_data / "reference" / "llama3" / "tokenizer.model")


def test_a_mask_holds_every_token_that_goes_on_and_no_other(llama3: Tokenizer) -> None:
    compiled = make_compiler(llama3, split_regex=None).compile(Grammar.json_schema(SCHEMA))
    for written in ('{"ci', '{"city":"Pa', '{"city":"Paris","days":1', '{"city":"x","days":3,"units":"'):
        state = compiled.state()
        assert all(state.accept(token_id) for token_id in llama3.encode(written))
        rest = set(allowed_ids(state.mask()).tolist())
        sample = random.Random(1).sample(range(llama3.vocab_size), 3000) + sorted(rest)[:500]
        assert [token_id for token_id in sample if state.clone().accept(token_id) != (token_id in rest)] == []


def test_forced_text_is_what_the_tokenizer_would_write(llama3: Tokenizer, over_llama3: GrammarCompiler) -> None:
    state = over_llama3.compile(Grammar.tools([{"name": "get_weather", "parameters": SCHEMA}], mode="required", style="function")).state()
    ids: list[int] = []
    while len(forced := allowed_ids(state.mask()).tolist()) == 1:
        assert state.accept(forced[0])
        ids += forced
    text = llama3.decode(ids)
    assert '<function=get_weather>{"city"'.startswith(text) and len(text) > 20 and ids == llama3.encode(text)


@pytest.mark.parametrize("style", STYLES)
def test_calls_over_the_real_vocabulary_are_read_back(llama3: Tokenizer, over_llama3: GrammarCompiler, style: Any) -> None:
    compiled = over_llama3.compile(Grammar.tools([{"name": "get_weather", "parameters": SCHEMA}], mode="required", style=style))
    for seed in range(4):
        text = llama3.decode_bytes(walk(compiled, llama3, random.Random(seed), length=25)).decode()
        [call] = parse_reply(text).tool_calls
        assert call.name == "get_weather" and 1 <= call.arguments["days"] <= 14 and isinstance(call.arguments["city"], str)


def test_json_over_the_real_vocabulary_is_json(llama3: Tokenizer, over_llama3: GrammarCompiler) -> None:
    compiled = over_llama3.compile(Grammar.json_object(whitespace=2))
    for seed in range(4):
        assert isinstance(json.loads(llama3.decode_bytes(walk(compiled, llama3, random.Random(seed), length=40)).decode()), dict)
