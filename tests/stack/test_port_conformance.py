"""One suite for every `Inference`: a model in this process, and the same model on a server, for threads and for event loops.

The local one is the oracle: the remote has to say the same, event for event as far as the wire carries it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_server import ThreadServer, model_folder, open_server  # noqa: F401  # pyright: ignore[reportMissingImports]

from herd.base.errors import ContextOverflowError, FormatError, HerdError, UsageError
from herd.engine.grammar.spec import Grammar
from herd.inference.async_llm import AsyncLLM
from herd.inference.llm import LLM
from herd.inference.params import SamplingParams
from herd.inference.port import AsyncInference, ChatRequest, CompletionRequest, Event, Finished, Inference, TokensDone
from herd.inference.providers import ProviderConfig, RemoteModelConfig
from herd.inference.remote import AsyncRemoteModel, RemoteModel
from herd.text.messages import Message, ToolCall, ToolDefinition
from herd.text.reply import CallDelta, CallDone, TextDelta

Ask = Callable[[ChatRequest | CompletionRequest], list[Event]]
HELLO = (Message.user("Hello"),)
WEATHER = ToolDefinition(
    name="get_weather",
    description="The weather of a city.",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
)


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "top_p": 1.0, "max_tokens": 24, "seed": 7, **fields})


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    made = LLM(model_folder(), device="cpu")
    yield made
    made.close()


def provider(server: ThreadServer) -> ProviderConfig:
    return ProviderConfig(name="tiny", base_url=server.url + "/v1", models=(RemoteModelConfig(id="tiny"),), dialect="herd")


@pytest.fixture(params=["local", "remote", "async remote"])
def ask(request: pytest.FixtureRequest, llm: LLM, server: ThreadServer) -> Iterator[Ask]:
    """Asks one of the implementations, and gives all events."""
    if request.param == "local":
        yield lambda asked: list(over(llm.inference, asked))
    elif request.param == "remote":
        with RemoteModel(provider(server), "tiny") as model:
            yield lambda asked: list(over(model, asked))
    else:
        yield lambda asked: asyncio.run(gathered(server, asked))


def over(model: Inference, asked: ChatRequest | CompletionRequest) -> Iterator[Event]:
    assert isinstance(model, Inference)
    return model.chat(asked) if isinstance(asked, ChatRequest) else model.complete(asked)


async def gathered(server: ThreadServer, asked: ChatRequest | CompletionRequest) -> list[Event]:
    model = AsyncRemoteModel(provider(server), "tiny")
    assert isinstance(model, AsyncInference)
    try:
        stream = await (model.chat(asked) if isinstance(asked, ChatRequest) else model.complete(asked))
        return [part.event async for parts in stream for part in parts]
    finally:
        await model.close()


def last(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished) and not any(isinstance(event, Finished) for event in events[:-1])
    return events[-1]


def shown(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


@pytest.mark.parametrize(
    "asked",
    [
        ChatRequest(messages=HELLO, params=params()),
        ChatRequest(messages=(Message.system("Be brief."), *HELLO, Message.assistant("Hm?"), Message.user("Go on")), params=params(seed=3)),
        ChatRequest(messages=HELLO, params=params(temperature=0.0)),
        ChatRequest(messages=HELLO, params=params(top_k=5, min_p=0.01, repetition_penalty=1.2, presence_penalty=0.5)),
        ChatRequest(messages=HELLO, params=params(logit_bias={65: 20.0}, banned_token_ids=(66,), typical_p=0.9)),
        CompletionRequest(prompt="The herd", params=params()),
        CompletionRequest(prompt=(65, 66, 67), params=params(min_tokens=5)),
    ],
    ids=["chat", "conversation", "greedy", "narrow", "bias", "text", "ids"],
)
def test_the_same_seed_and_parameters_give_the_local_answer(ask: Ask, llm: LLM, asked: ChatRequest | CompletionRequest) -> None:
    expected, found = last(list(over(llm.inference, asked))), ask(asked)
    told = last(found)
    assert (told.text, told.reason, told.usage) == (expected.text, expected.reason, expected.usage)
    assert shown(found) == told.text == told.message.text != ""
    assert told.message.role == "assistant" and told.message.ends_turn


@pytest.mark.parametrize("include", [False, True])
def test_stop_texts_end_the_answer_and_are_named(ask: Ask, llm: LLM, include: bool) -> None:
    whole = last(list(over(llm.inference, ChatRequest(messages=HELLO, params=params())))).text
    stop = whole[5:8]
    told = last(ask(ChatRequest(messages=HELLO, params=params(stop=(stop,), include_stop=include))))
    assert (told.reason, told.stop_reason) == ("stop", stop)
    assert told.text == whole[: whole.index(stop) + (len(stop) if include else 0)]


def test_a_stop_id_ends_the_answer_and_is_named(ask: Ask, llm: LLM) -> None:
    stop_id = last(list(over(llm.inference, ChatRequest(messages=HELLO, params=params())))).token_ids[4]
    told = last(ask(ChatRequest(messages=HELLO, params=params(stop_token_ids=(stop_id,)))))
    assert (told.reason, told.stop_reason) == ("stop", stop_id) and told.usage.completion_tokens <= 5


def test_log_probabilities_come_with_their_texts_and_are_the_local_ones(ask: Ask, llm: LLM) -> None:
    asked = ChatRequest(messages=HELLO, params=params(logprobs=2, max_tokens=6))
    expected, events = last(list(over(llm.inference, asked))), ask(asked)
    told = last(events)
    assert [one.data for one in told.logprobs] == [one.data for one in expected.logprobs]
    assert [one.logprob for one in told.logprobs] == pytest.approx([one.logprob for one in expected.logprobs], abs=1e-4)
    assert all(len(one.top) == 2 for one in told.logprobs)
    assert [one for event in events if isinstance(event, TokensDone) for one in event.logprobs] == list(told.logprobs)


@pytest.mark.parametrize("parallel", [False, True])
def test_required_calls_come_whole_and_fit_their_schema(ask: Ask, llm: LLM, parallel: bool) -> None:
    asked = ChatRequest(
        messages=HELLO, tools=(WEATHER,), tool_choice="required", parallel_tool_calls=parallel, params=params(max_tokens=400, seed=2)
    )
    expected, events = last(list(over(llm.inference, asked))), ask(asked)
    told = last(events)
    assert told.reason == expected.reason == "tool_calls" and not told.message.ends_turn
    calls = [event.call for event in events if isinstance(event, CallDone)]
    assert [(call.name, call.arguments) for call in calls] == [(call.name, call.arguments) for call in expected.message.tool_calls]
    assert list(told.message.tool_calls) == calls and len(calls) >= 1
    assert all(set(call.arguments) == {"city", "days"} for call in calls)
    # What is told of a call while it is written is told before it is done.
    assert isinstance(next(event for event in events if isinstance(event, CallDelta | CallDone)), CallDelta)


def test_a_named_tool_is_called_and_its_result_is_read(ask: Ask) -> None:
    other = ToolDefinition(name="get_time")
    asked = ChatRequest(messages=HELLO, tools=(WEATHER, other), tool_name="get_time", params=params(max_tokens=200))
    told = last(ask(asked))
    assert {call.name for call in told.message.tool_calls} == {"get_time"}
    called = Message.assistant("", [ToolCall(name="get_time", arguments={})], ends_turn=False)
    again = last(ask(ChatRequest(messages=(*HELLO, called, Message.tool("noon", name="get_time")), params=params())))
    assert again.reason in ("stop", "length") and again.text


def test_tools_that_may_not_be_called_are_not(ask: Ask, llm: LLM) -> None:
    asked = ChatRequest(messages=HELLO, tools=(WEATHER,), tool_choice="none", params=params())
    told = last(ask(asked))
    assert told.message.tool_calls == () and told.text == last(list(over(llm.inference, asked))).text


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json_schema({"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"]}),
        Grammar.json_object(max_string=8),
        Grammar.choice(["yes", "no"]),
        Grammar.regex("[ab]{3}c"),
    ],
    ids=lambda grammar: grammar.kind,
)
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_answers_follow_their_grammar(ask: Ask, llm: LLM, grammar: Grammar, kind: str) -> None:
    if grammar.kind == "json_object":
        grammar = Grammar.json_object()
    asked = (
        ChatRequest(messages=HELLO, grammar=grammar, params=params(max_tokens=60))
        if kind == "chat"
        else CompletionRequest(prompt="Say", grammar=grammar, params=params(max_tokens=60))
    )
    expected, told = last(list(over(llm.inference, asked))), last(ask(asked))
    assert (told.text, told.reason) == (expected.text, expected.reason)


def test_a_prompt_over_the_context_is_refused_before_anything_is_answered(ask: Ask) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        ask(CompletionRequest(prompt="a b c d " * 20_000, params=params()))
    assert "nothing was cut" in str(caught.value.hint)


def test_a_conversation_that_cannot_be_is_refused(ask: Ask) -> None:
    with pytest.raises((FormatError, UsageError), match="stands after the first message"):
        ask(ChatRequest(messages=(Message.user("a"), Message.system("b")), params=params()))


def test_several_answers_come_side_by_side_over_the_async_port(llm: LLM, server: ThreadServer) -> None:
    asked = ChatRequest(messages=HELLO, n=3, params=params())

    async def texts(model: AsyncInference) -> dict[int, str]:
        stream = await model.chat(asked)
        return {part.index: part.event.text async for parts in stream for part in parts if isinstance(part.event, Finished)}

    async def both() -> tuple[dict[int, str], dict[int, str]]:
        remote = AsyncRemoteModel(provider(server), "tiny")
        try:
            async with AsyncLLM(model_folder(), device="cpu") as local:
                return await texts(local.inference), await texts(remote)
        finally:
            await remote.close()

    expected, found = asyncio.run(both())
    assert found == expected and set(found) == {0, 1, 2} and len(set(found.values())) > 1


def test_closing_a_remote_stream_ends_the_request_on_the_server(server: ThreadServer) -> None:
    asked = ChatRequest(messages=HELLO, params=params(max_tokens=8000, temperature=0.0))
    with RemoteModel(provider(server), "tiny") as model:
        events = model.chat(asked)
        next(events)
        events.close()  # type: ignore[attr-defined]

    async def leave() -> None:
        asynchronous = AsyncRemoteModel(provider(server), "tiny")
        stream = await asynchronous.chat(asked)
        async for _ in stream:
            stream.close()
        await asynchronous.close()

    asyncio.run(leave())
    waiter = threading.Event()
    for _ in range(200):
        if server.idle():
            break
        waiter.wait(0.05)
    assert server.idle()


def test_vectors_are_those_of_the_model(llm: LLM, server: ThreadServer) -> None:
    texts = ["The herd grazes.", "A river."]
    with RemoteModel(provider(server), "tiny") as model:
        told = model.embed(texts)
    assert told.num_tokens > 0 and len(told.vectors) == 2
    for row, vector in zip(llm.embed(texts), told.vectors, strict=True):
        assert list(vector) == pytest.approx([float(value) for value in row], abs=1e-5)


def test_what_a_dialect_has_no_word_for_is_refused_by_name(server: ThreadServer) -> None:
    plain = ProviderConfig(name="plain", base_url=server.url + "/v1", models=(RemoteModelConfig(id="tiny"),))
    with RemoteModel(plain, "tiny") as model:
        for fields, name in (({"top_k": 5}, "top_k"), ({"min_p": 0.1}, "min_p"), ({"prompt_logprobs": 1}, "prompt_logprobs")):
            with pytest.raises(UsageError, match=f"'plain' cannot be asked for {name}"):
                model.chat(ChatRequest(messages=HELLO, params=params(**fields)))
        with pytest.raises(HerdError, match="a grammar of kind regex"):
            model.chat(ChatRequest(messages=HELLO, grammar=Grammar.regex("a+"), params=params()))
