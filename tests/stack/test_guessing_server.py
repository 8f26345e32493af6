"""`herd serve --draft`: what guesses changes no answer, and the counters tell that guesses came true."""

from __future__ import annotations

import tempfile
from pathlib import Path

import httpx
import pytest
from client_server import LiveServer  # pyright: ignore[reportMissingImports]

from herd.inference.llm import LLM
from herd.inference.params import SamplingParams


@pytest.mark.parametrize("draft", ["ngram", "itself"])
def test_a_server_that_guesses_answers_as_one_that_does_not(draft: str, tiny_folder: Path) -> None:
    prompt = "the herd the herd the herd the herd"
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    with tempfile.TemporaryDirectory(prefix="herd-draft-") as home:
        model = str(tiny_folder)
        server = LiveServer("--draft", "ngram" if draft == "ngram" else model, "--name", "guess", model=model, home=Path(home))
        try:
            body = {"prompt": prompt, "temperature": 0, "max_tokens": 40, "ignore_eos": True, "return_token_ids": True}
            answer = httpx.post(server.url + "/v1/completions", json=body, timeout=60)
            counted = accepted(server.url)
        finally:
            code = server.stop()
    assert code == 0 and answer.status_code == 200, answer.text
    assert tuple(answer.json()["choices"][0]["token_ids"]) == LLM(tiny_folder, device="cpu").generate(prompt, params).token_ids
    assert counted > 0


def accepted(url: str) -> float:
    """Guesses that came true, once the engine has told: it does four times a second."""
    for _ in range(50):
        lines = httpx.get(url + "/metrics", timeout=10).text.splitlines()
        found = next(line for line in lines if line.startswith("herd_spec_decode_num_accepted_tokens_total"))
        if float(found.rsplit(" ", 1)[1]):
            break
    return float(found.rsplit(" ", 1)[1])
