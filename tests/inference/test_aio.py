"""The asynchronous port over an engine on a thread: many answers at once in one loop, each as it would be alone; leaving one ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import TypeVar

import pytest

from herd.base.errors import ContextOverflowError, TokenizerError
from herd.checkpoint.load import load_model
from herd.engine.build import build_engine
from herd.engine.engine import Engine, EngineError
from herd.engine.memory import EngineConfig
from herd.inference.aio import LONG_PROMPT, AsyncModel, Stream, ThreadedEngine
from herd.inference.llm import LLM
from herd.inference.params import SamplingParams
from herd.inference.port import ChatRequest, CompletionRequest, Event, Finished, PromptRead
from herd.text.messages import Message
from herd.text.reply import TextDelta
from herd.text.tokenizer import Tokenizer

_Result = TypeVar("_Result")


@pytest.fixture
def engine(tiny_folder: Path, tiny_tokenizer: Tokenizer) -> Generator[Engine, None, None]:
    made = build_engine(
        load_model(tiny_folder), EngineConfig(context=512, max_sequences=16), vocab_size=tiny_tokenizer.vocab_size, threaded=True
    )
    yield made
    made.close()


def run(engine: Engine, tokenizer: Tokenizer, work: Callable[[AsyncModel], Awaitable[_Result]]) -> _Result:
    async def main() -> _Result:
        return await work(AsyncModel(ThreadedEngine(engine), tokenizer))

    return asyncio.run(main())


def params(seed: int, **fields: int | None) -> SamplingParams:
    return SamplingParams(temperature=1.0, seed=seed, **{"max_tokens": 12, **fields})  # type: ignore[arg-type]


async def events(stream: Stream) -> list[Event]:
    return [part.event async for parts in stream for part in parts]


def idle(engine: Engine) -> bool:
    return engine.scheduler.num_running == engine.scheduler.num_waiting == 0


def test_many_at_once_are_what_each_is_alone(engine: Engine, tiny_tokenizer: Tokenizer, tiny_llm: LLM) -> None:
    async def work(model: AsyncModel) -> list[list[Event]]:
        async def one(seed: int) -> list[Event]:
            return await events(await model.chat(ChatRequest(messages=(Message.user(f"Number {seed}"),), params=params(seed))))

        return await asyncio.gather(*map(one, range(40)))

    for seed, told in enumerate(run(engine, tiny_tokenizer, work)):
        last = told[-1]
        alone = tiny_llm.chat([Message.user(f"Number {seed}")], params(seed))
        assert isinstance(last, Finished) and last.token_ids == alone.token_ids
        assert "".join(event.text for event in told if isinstance(event, TextDelta)) == last.text == alone.text
    assert idle(engine)


def test_leaving_a_stream_early_ends_its_work(engine: Engine, tiny_tokenizer: Tokenizer) -> None:
    async def work(model: AsyncModel) -> None:
        stream = await model.complete(CompletionRequest(prompt="Hello", params=params(1, max_tokens=400)))
        async for _ in stream:
            break
        stream.close()
        assert [part async for part in stream] == []
        for _ in range(200):
            if idle(engine):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the request still runs")

    run(engine, tiny_tokenizer, work)


def test_a_stop_text_ends_one_of_several_and_not_the_others(engine: Engine, tiny_tokenizer: Tokenizer) -> None:
    free = CompletionRequest(prompt="Hello", n=3, params=params(4, max_tokens=40))

    async def answers(model: AsyncModel, request: CompletionRequest) -> dict[int, Finished]:
        stream = await model.complete(request)
        return {part.index: part.event async for parts in stream for part in parts if isinstance(part.event, Finished)}

    async def work(model: AsyncModel) -> None:
        whole = await answers(model, free)
        stop = whole[1].text[10:13]
        stopped = await answers(
            model, CompletionRequest(prompt="Hello", n=3, params=SamplingParams(temperature=1.0, seed=4, max_tokens=40, stop=(stop,)))
        )
        assert stopped[1].reason == "stop" and stopped[1].stop_reason == stop and stop not in stopped[1].text
        for index, answer in stopped.items():
            assert whole[index].text.startswith(answer.text)

    run(engine, tiny_tokenizer, work)
    assert idle(engine)


def test_a_prompts_log_probabilities_come_once_before_the_answer(engine: Engine, tiny_tokenizer: Tokenizer) -> None:
    async def work(model: AsyncModel) -> list[list[Event]]:
        prompts = ("The herd grazes", (tiny_tokenizer.bos_id,))
        asked = [CompletionRequest(prompt=prompt, params=params(1, prompt_logprobs=0, logprobs=1)) for prompt in prompts]
        return [await events(await model.complete(request)) for request in asked]

    for told in run(engine, tiny_tokenizer, work):
        read = [event for event in told if isinstance(event, PromptRead)]
        assert len(read) == 1 and told[0] is read[0]
        assert read[0].logprobs[0] is None and all(found is not None for found in read[0].logprobs[1:])
        assert len(read[0].token_ids) == len(read[0].logprobs)


def test_what_cannot_be_answered_is_raised_before_anything_streams(engine: Engine, tiny_tokenizer: Tokenizer) -> None:
    async def work(model: AsyncModel) -> None:
        for prompt, error in (
            ((5,) * 600, ContextOverflowError),
            ((10**6,), TokenizerError),
            ("wort " * LONG_PROMPT, ContextOverflowError),
        ):
            with pytest.raises(error):
                await model.complete(CompletionRequest(prompt=prompt))

    run(engine, tiny_tokenizer, work)


def test_an_engine_that_goes_down_is_told_to_those_who_wait(engine: Engine, tiny_tokenizer: Tokenizer) -> None:
    async def work(model: AsyncModel) -> None:
        stream = await model.complete(CompletionRequest(prompt="Hello", params=params(1, max_tokens=400)))
        engine._closed = True  # as if it went down by itself, in the middle of the answer
        engine._wake.set()
        with pytest.raises(EngineError, match="the engine was closed"):
            await events(stream)

    run(engine, tiny_tokenizer, work)
