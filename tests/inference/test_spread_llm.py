"""`herd.LLM` over several processes: the answers of one, grammars too, in threads and in an event loop; and the command line's flags."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from herd.base.errors import ConfigError, UsageError
from herd.engine.grammar.spec import Grammar
from herd.engine.params import TokenParams
from herd.engine.stream import TokenRequest, Tokens
from herd.inference.aio import AsyncModel, ThreadedEngine
from herd.inference.llm import LLM
from herd.inference.params import SamplingParams
from herd.inference.port import ChatRequest, Finished
from herd.text.messages import Message

DRAWN = SamplingParams(temperature=1.0, top_p=0.95, max_tokens=16, seed=7)
HELLO = [Message.user("Hello!")]


@pytest.fixture(scope="module")
def spread(tiny_folder: Path) -> Iterator[LLM]:
    llm = LLM(tiny_folder, tp=2)
    yield llm
    llm.close()


def test_the_answers_are_those_of_one_process(spread: LLM, tiny_llm: LLM) -> None:
    assert spread.chat(HELLO, DRAWN).token_ids == tiny_llm.chat(HELLO, DRAWN).token_ids
    prompts = ["The herd", "A cria", "The wind"]
    expected = [output.token_ids for output in tiny_llm.generate(prompts, DRAWN)]
    assert [output.token_ids for output in spread.generate(prompts, DRAWN)] == expected
    assert spread.config == tiny_llm.config and spread.context == tiny_llm.context


def test_a_grammar_holds(spread: LLM) -> None:
    assert spread.chat(HELLO, DRAWN, grammar=Grammar.choice(["yes", "no"])).text in ("yes", "no")


def test_embeddings_beside_answers_of_the_last_stage(tiny_folder: Path, tiny_llm: LLM) -> None:
    texts = ["The herd grazes.", "A cria.", "El rebaño está en la montaña." * 12]
    staged = LLM(tiny_folder, pp=2)
    assert np.array_equal(staged.embed(texts), tiny_llm.embed(texts))
    engine = staged.inference.engine
    prompts = [tuple(staged.tokenizer.encode(text, bos=True)) for text in texts]
    plain = TokenParams(max_tokens=1)
    requests = [TokenRequest(prompt=prompt, params=plain, embed=kind) for prompt in prompts for kind in ("mean", "last")]
    asked = [TokenRequest(prompt=prompt, params=TokenParams(max_tokens=12, prompt_logprobs=0)) for prompt in prompts]
    streams = [engine.submit(request) for pair in zip(requests, asked * 2, strict=True) for request in pair]
    assert all(isinstance(list(stream)[-1], Tokens) for stream in streams)
    staged.close()


def test_embeddings_of_parts(spread: LLM, tiny_llm: LLM) -> None:
    texts = ["The herd grazes.", "A cria."]
    np.testing.assert_allclose(spread.embed(texts), tiny_llm.embed(texts), atol=1e-5)


def test_letting_go_of_a_stream_cancels_it(spread: LLM) -> None:
    stream = spread.stream(HELLO, SamplingParams(max_tokens=400, temperature=1.0))
    next(stream)
    del stream
    until = time.monotonic() + 60
    while spread.inference.engine.scheduler.sequences and time.monotonic() < until:
        time.sleep(0.01)
    assert not spread.inference.engine.scheduler.sequences


def test_an_event_loop_takes_it_as_any_engine(spread: LLM, tiny_llm: LLM) -> None:
    async def answer() -> tuple[int, ...]:
        model = AsyncModel(ThreadedEngine(spread.inference.engine), spread.tokenizer)
        stream = await model.chat(ChatRequest(messages=tuple(HELLO), params=DRAWN))
        last = [part.event async for parts in stream for part in parts][-1]
        assert isinstance(last, Finished)
        return last.token_ids

    assert asyncio.run(answer()) == tiny_llm.chat(HELLO, DRAWN).token_ids


def test_guesses_of_prompt_lookup_change_no_token(tiny_folder: Path, tiny_llm: LLM) -> None:
    staged = LLM(tiny_folder, pp=2, draft="ngram")
    repeated = "a cria and a herd, " * 8
    params = SamplingParams(temperature=0.0, max_tokens=48)
    assert staged.generate(repeated, params).token_ids == tiny_llm.generate(repeated, params).token_ids
    assert staged.inference.engine.stepper.results.num_guessed > 0
    staged.close()


def test_a_draft_model_by_its_path(tiny_folder: Path, tiny_llm: LLM) -> None:
    staged = LLM(tiny_folder, pp=2, draft=tiny_folder)
    assert staged.chat(HELLO, DRAWN).token_ids == tiny_llm.chat(HELLO, DRAWN).token_ids
    stepper = staged.inference.engine.stepper
    assert stepper.results.num_guesses_accepted == stepper.results.num_guessed > 0
    staged.close()


def test_weights_that_are_elsewhere_are_told(spread: LLM) -> None:
    with pytest.raises(UsageError, match="spread over several processes"):
        _ = spread.model


def test_what_cannot_be_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(UsageError, match="processes on the CPU, not on cuda"):
        LLM(tiny_folder, tp=2, device="cuda")
    with pytest.raises(ConfigError, match="tp 4 does not divide num_key_value_heads 2"):
        LLM(tiny_folder, tp=4)


def test_the_command_line_takes_both(tiny_folder: Path) -> None:
    words = ["--model", str(tiny_folder), "--max-tokens", "8", "--temperature", "0", "Hello"]

    def answer(*flags: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "herd", "run", *flags, *words]
        return subprocess.run(program, capture_output=True, text=True, env=dict(os.environ), timeout=120)

    several, one = answer("--tp", "2", "--pp", "2"), answer()
    assert (several.returncode, several.stderr) == (0, "")
    assert several.stdout == one.stdout
    assert answer("--tp", "3").returncode == 1
