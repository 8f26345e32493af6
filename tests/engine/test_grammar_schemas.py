"""Five hundred random schemas: whatever a random walk through the masks writes is JSON, and the schema accepts it."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from grammar_helpers import FULL, forcing_compiler, free_compiler, small_tokenizer, walk
from grammar_schemas import random_schema

from herd.base.errors import FormatError
from herd.engine.grammar.spec import Grammar

NUM_SCHEMAS = 500 if FULL else 60
WALKS = 4 if FULL else 2


def check(schema: Any, seed: int, whitespace: int = 0) -> None:
    compiler = (free_compiler, forcing_compiler)[seed % 2]()
    tokenizer = small_tokenizer()
    try:
        compiled = compiler.compile(Grammar.json_schema(schema, whitespace=whitespace))
    except FormatError as error:
        assert "no value satisfies" in error.message, (error.message, schema)
        return
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for step in range(WALKS):
        rng = random.Random(seed * 1000 + step)
        text = tokenizer.decode_bytes(walk(compiled, tokenizer, rng, length=rng.choice([5, 30, 80]))).decode()
        problem = next(validator.iter_errors(json.loads(text)), None)
        assert problem is None, (schema, text, problem)


@pytest.mark.parametrize("block", range(NUM_SCHEMAS // 20))
def test_what_is_written_validates(block: int) -> None:
    for seed in range(block * 20, block * 20 + 20):
        check(random_schema(seed), seed, whitespace=(0, 0, 1, 3)[seed % 4])
