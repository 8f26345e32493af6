"""`herd.AsyncLLM`: the answers of `LLM`, many at once, and nothing that runs on when no one waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import herd
from herd.base.errors import ContextOverflowError, FormatError
from herd.engine.engine import EngineError
from herd.engine.grammar.spec import Grammar
from herd.inference.async_llm import AsyncLLM
from herd.inference.llm import LLM
from herd.inference.params import SamplingParams
from herd.inference.port import Finished
from herd.text.messages import Message

DRAWN = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=10, seed=7)
LONG = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True)
HELLO = [Message.user("Hello!")]


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[AsyncLLM]:
    async with AsyncLLM(folder, device="cpu") as llm:
        yield llm


async def until_free(llm: AsyncLLM) -> None:
    """Wait until no block is held, which has to come long before 400 tokens would be written."""
    steps = llm.engine.stepper.num_steps
    ends = time.monotonic() + 30
    while llm.engine.scheduler.pool.num_references or llm.engine.scheduler.sequences:
        assert time.monotonic() < ends, "blocks are still held"
        await asyncio.sleep(0.001)
    assert llm.engine.stepper.num_steps - steps < 100


async def started(llm: AsyncLLM) -> None:
    while not llm.engine.scheduler.pool.num_references:
        await asyncio.sleep(0.001)


def test_answers_vectors_and_scores_are_those_of_the_synchronous_twin(tiny_folder: Path, tiny_llm: LLM) -> None:
    async def ask() -> None:
        async with opened(tiny_folder) as llm:
            one, many, several, answer, vectors, scores = await asyncio.gather(
                llm.generate("The wind", DRAWN),
                llm.generate(["The wind", "The sun"], DRAWN),
                llm.generate(["The wind"], DRAWN, n=2),
                llm.chat(HELLO, DRAWN),
                llm.embed(["The wind", "The sun " * 60]),
                llm.score("The wind", [" is cold", " rises"]),
            )
            assert one.token_ids == many[0].token_ids == tiny_llm.generate("The wind", DRAWN).token_ids
            assert [o.token_ids for o in several[0]] == [o.token_ids for o in tiny_llm.generate(["The wind"], DRAWN, n=2)[0]]
            assert answer.text == tiny_llm.chat(HELLO, DRAWN).text
            assert np.array_equal(vectors, tiny_llm.embed(["The wind", "The sun " * 60]))
            assert scores == tiny_llm.score("The wind", [" is cold", " rises"])
            await until_free(llm)

    asyncio.run(ask())


def test_events_stream_and_end_with_finished(tiny_folder: Path, tiny_llm: LLM) -> None:
    async def ask() -> None:
        async with opened(tiny_folder) as llm:
            events = [event async for event in llm.stream(HELLO, DRAWN)]
            assert isinstance(events[-1], Finished) and len(events) > 3
            assert events[-1].token_ids == tiny_llm.chat(HELLO, DRAWN).token_ids

    asyncio.run(ask())


WORK: dict[str, Callable[[AsyncLLM], Awaitable[object]]] = {
    "generate": lambda llm: llm.generate(["The wind", "The sun"], LONG, n=2),
    "chat": lambda llm: llm.chat(HELLO, LONG),
    "stream": lambda llm: _last(llm),
    "embed": lambda llm: llm.embed(["herd " * 90] * 500),
    "score": lambda llm: llm.score("herd " * 80, [f" {number}" for number in range(500)]),
}


async def _last(llm: AsyncLLM) -> object:
    return [event async for event in llm.stream(HELLO, LONG)][-1]


@pytest.mark.parametrize("kind", WORK)
def test_cancelling_the_task_cancels_its_requests(tiny_folder: Path, kind: str) -> None:
    async def ask() -> None:
        async with opened(tiny_folder) as llm:
            task = asyncio.ensure_future(WORK[kind](llm))
            await started(llm)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until_free(llm)
            assert (await llm.generate("The wind", DRAWN)).token_ids

    asyncio.run(ask())


def test_leaving_the_loop_over_a_stream_cancels_it(tiny_folder: Path) -> None:
    async def ask() -> None:
        async with opened(tiny_folder) as llm:
            async for _ in llm.stream(HELLO, LONG):
                break
            await until_free(llm)
            events = llm.stream(HELLO, LONG)
            await anext(events)
            await events.aclose()
            await until_free(llm)

    asyncio.run(ask())


def test_cancelling_while_a_grammar_is_compiled_leaves_nothing_running(tiny_folder: Path) -> None:
    async def ask() -> None:
        async with opened(tiny_folder) as llm:
            grammar = Grammar.regex("[a-z ]{390,400}")
            task = asyncio.ensure_future(llm.generate("The wind", replace(LONG, ignore_eos=False), grammar=grammar))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(1.0)
            await until_free(llm)

    asyncio.run(ask())


def test_what_cannot_be_answered_is_refused_and_takes_the_others_of_its_call_with_it(tiny_folder: Path) -> None:
    async def ask() -> None:
        async with opened(tiny_folder) as llm:
            with pytest.raises(ContextOverflowError):
                await llm.generate(["The wind", "herd " * 2000], LONG)
            await until_free(llm)
            with pytest.raises(FormatError):
                await llm.chat([{"role": "nobody", "content": "x"}])

    asyncio.run(ask())


def test_it_serves_one_loop_after_another_until_it_is_closed(tiny_folder: Path) -> None:
    llm = herd.AsyncLLM(tiny_folder, device="cpu")
    first, second = (asyncio.run(llm.generate("The wind", DRAWN)) for _ in range(2))
    assert first.token_ids == second.token_ids
    asyncio.run(llm.close())
    with pytest.raises(EngineError):
        asyncio.run(llm.generate("The wind", DRAWN))
