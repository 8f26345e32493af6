"""Answers that follow a JSON schema, over the whole server: a random model at temperature 1 writes nothing that does not fit."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from live_server import FULL, ThreadServer, open_server, tokenizer  # noqa: F401  # pyright: ignore[reportMissingImports]

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
from grammar_schemas import random_schema  # pyright: ignore[reportMissingImports]

ENDS = {'"': 14.0, "}": 10.0, "]": 10.0, ",": 6.0, **dict.fromkeys("0123456789", 4.0)}


def biases() -> dict[str, float]:
    """What brings a text to its end is likelier: the model has no idea, and would write strings of thousands of characters."""
    ranks = tokenizer().ranks
    return {str(ranks[text.encode()]): bias for text, bias in ENDS.items()}


def ask(server: ThreadServer, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    schema = random_schema(seed)
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Go on"}],
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": seed,
        "max_tokens": 8000,
        "logit_bias": biases(),
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    }
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=body, timeout=300)
    assert answer.status_code == 200, (seed, answer.text[:500])
    return schema, answer.json()["choices"][0]


def test_every_answer_parses_and_fits_its_schema(server: ThreadServer) -> None:
    count = 500 if FULL else 100
    with ThreadPoolExecutor(8) as pool:
        for seed, (schema, choice) in enumerate(pool.map(lambda seed: ask(server, seed), range(count))):
            assert choice["finish_reason"] == "stop", seed
            value = json.loads(choice["message"]["content"])
            jsonschema.Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize("stream", [False, True])
def test_a_choice_and_a_regex(server: ThreadServer, stream: bool) -> None:
    with server.client() as client:
        for structured, fits in (({"choice": ["red", "green"]}, {"red", "green"}), ({"regex": "[ab]{3}"}, None)):
            body = {"model": "tiny", "prompt": "a", "max_tokens": 50, "stream": stream, "structured_outputs": structured}
            text = client.post("/v1/completions", json=body).text
            events = [line[6:] for line in text.split("\n") if line.startswith("data: {")] if stream else [text]
            said = "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])
            assert said in fits if fits else (len(said) == 3 and set(said) <= {"a", "b"})
