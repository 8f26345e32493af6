"""OpenAI's own client against a real server: every route and field that its users rely on, whole and streamed, in threads and in loops."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable
from typing import Any

import httpx
import openai
import pytest
from live_server import LiveServer  # pyright: ignore[reportMissingImports]
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

MODEL = "cria"
RIVER: list[Any] = [{"role": "user", "content": "What is a river?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(live_server: LiveServer) -> Any:
    with OpenAI(base_url=live_server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": RIVER, "seed": 3, "max_completion_tokens": 24, **fields})


class Joined:
    """The chunks of a stream, put together by answer."""

    def __init__(self, chunks: Iterable[Any]) -> None:
        self.text: dict[int, str] = {}
        self.calls: dict[int, list[dict[str, str]]] = {}
        self.logprobs: dict[int, list[Any]] = {}
        self.reasons: dict[int, str] = {}
        self.usage: Any = None
        self.deltas: list[Any] = []
        for chunk in chunks:
            self.usage = chunk.usage or self.usage
            for choice in chunk.choices:
                self._add(choice)

    def _add(self, choice: Any) -> None:
        index, delta = choice.index, choice.delta
        self.deltas.append(delta)
        self.text[index] = self.text.get(index, "") + (delta.content or "")
        if choice.logprobs is not None:
            self.logprobs.setdefault(index, []).extend(choice.logprobs.content)
        if choice.finish_reason is not None:
            self.reasons[index] = choice.finish_reason
        for piece in delta.tool_calls or ():
            calls = self.calls.setdefault(index, [])
            if piece.id is not None:
                assert piece.index == len(calls) and piece.type == "function"
                calls.append({"name": piece.function.name, "arguments": ""})
            calls[piece.index]["arguments"] += piece.function.arguments


def calls_of(message: Any) -> list[dict[str, str]]:
    return [{"name": call.function.name, "arguments": call.function.arguments} for call in message.tool_calls or ()]


# Chat


def test_an_answer_has_what_clients_read(client: OpenAI) -> None:
    answer = ask(client, max_completion_tokens=60)
    choice = answer.choices[0]
    assert (answer.object, answer.model, choice.index, choice.finish_reason) == ("chat.completion", MODEL, 0, "stop")
    assert choice.message.role == "assistant" and choice.message.content and choice.message.tool_calls is None
    assert answer.id.startswith("chatcmpl-") and answer.system_fingerprint.startswith("herd-")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.completion_tokens > 1


@pytest.mark.parametrize(
    "fields",
    [{}, {"n": 3}, {"stop": ["the", "."]}, {"temperature": 0}, {"logprobs": True, "top_logprobs": 3}, {"max_completion_tokens": 1}],
)
def test_what_is_streamed_is_the_whole_answer(client: OpenAI, fields: Any) -> None:
    whole = ask(client, **fields)
    joined = Joined(ask(client, **fields, stream=True, stream_options={"include_usage": True}))
    for choice in whole.choices:
        assert joined.text[choice.index] == choice.message.content
        assert joined.reasons[choice.index] == choice.finish_reason
        if choice.logprobs is not None:
            assert joined.logprobs[choice.index] == choice.logprobs.content
    assert len(whole.choices) == fields.get("n", 1)
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(joined.usage, name) == getattr(whole.usage, name)


def test_a_stream_without_usage_has_none(client: OpenAI) -> None:
    assert Joined(ask(client, stream=True)).usage is None
    deltas = Joined(ask(client, stream=True)).deltas
    assert deltas[0].role == "assistant"


def test_a_seed_gives_the_same_answer_and_another_seed_another(client: OpenAI) -> None:
    first, again, other = (ask(client, temperature=2.0, top_p=1, seed=seed).choices[0].message.content for seed in (7, 7, 8))
    assert first == again != other


def test_the_answers_of_n_differ_and_usage_counts_the_prompt_once(client: OpenAI) -> None:
    answer = ask(client, n=4, temperature=1.2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert answer.usage.prompt_tokens == ask(client).usage.prompt_tokens


def test_a_stop_text_ends_the_answer_and_is_not_in_it(client: OpenAI) -> None:
    choice = ask(client, temperature=0, stop=" water").choices[0]
    assert choice.finish_reason == "stop" and " water" not in choice.message.content
    assert choice.stop_reason == " water"


def test_log_probabilities_name_the_tokens_of_the_answer(client: OpenAI) -> None:
    choice = ask(client, temperature=0, logprobs=True, top_logprobs=2).choices[0]
    data = b"".join(bytes(found.bytes) for found in choice.logprobs.content if not found.token.startswith("<|"))
    assert data.decode() == choice.message.content
    for found in choice.logprobs.content:
        assert found.logprob == max(top.logprob for top in found.top_logprobs) <= 0
        assert len(found.top_logprobs) == 2


def test_bias_and_bans_bend_the_choice_of_tokens(client: OpenAI, live_server: LiveServer) -> None:
    token = httpx.post(live_server.url + "/tokenize", json={"prompt": " llama", "add_special_tokens": False}).json()["tokens"][0]
    forced = ask(client, logit_bias={str(token): 100}, max_completion_tokens=3, logprobs=True).choices[0]
    assert len({found.token for found in forced.logprobs.content}) == 1
    usual = ask(client, temperature=0).choices[0].message.content
    banned = ask(client, temperature=0, extra_body={"banned_token_ids": [token], "top_k": 5, "min_p": 0.0, "repetition_penalty": 1.0})
    assert banned.choices[0].message.content == usual


def test_fields_that_steer_openais_own_service_are_taken(client: OpenAI) -> None:
    answer = ask(client, metadata={"a": "b"}, store=False, user="u", service_tier="auto", max_completion_tokens=None, max_tokens=4)
    assert answer.usage.completion_tokens == 4


def test_conversations_may_hold_parts_and_every_role(client: OpenAI) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Weather in "}, {"type": "text", "text": "Lima?"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Lima", "days": 1}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": '{"celsius": 24}'},
    ]
    assert ask(client, messages=messages, tools=[WEATHER], tool_choice="auto", max_completion_tokens=8).choices[0].finish_reason
    assert ask(client, messages=[*messages, {"role": "assistant", "content": "24."}, {"role": "user", "content": "Thanks."}]).choices


# Tools


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_required_call_fits_its_schema_and_streams_in_pieces(client: OpenAI, choice: Any) -> None:
    fields = {"tools": [WEATHER, CLOCK], "tool_choice": choice, "max_completion_tokens": 200, "parallel_tool_calls": False}
    whole = ask(client, **fields).choices[0]
    assert whole.finish_reason == "tool_calls" and whole.message.content is None
    (call,) = calls_of(whole.message)
    assert call["name"] in ("get_weather", "get_time")
    arguments = json.loads(call["arguments"])
    if isinstance(choice, dict):
        assert call["name"] == "get_weather" and isinstance(arguments["days"], int) and len(arguments["city"]) <= 12
    joined = Joined(ask(client, **fields, stream=True))
    assert joined.calls[0] == [call] and joined.reasons[0] == "tool_calls" and joined.text[0] == ""
    pieces = [piece for delta in joined.deltas for piece in delta.tool_calls or ()]
    assert pieces[0].function.name == call["name"] and pieces[0].function.arguments == "" and pieces[0].id.startswith("call_")
    assert all(piece.id is None and piece.function.name is None for piece in pieces[1:])
    assert len(pieces) > 3 or call["arguments"] == "{}"


def test_several_calls_stream_one_after_another(client: OpenAI) -> None:
    fields = {"tools": [WEATHER, CLOCK], "tool_choice": "required", "max_completion_tokens": 300, "n": 8, "temperature": 1.5}
    whole = ask(client, **fields)
    joined = Joined(ask(client, **fields, stream=True))
    assert {choice.index: calls_of(choice.message) for choice in whole.choices} == joined.calls
    assert max(map(len, joined.calls.values())) > 1
    assert {len(calls_of(choice.message)) for choice in ask(client, **fields, parallel_tool_calls=False).choices} == {1}


@pytest.mark.parametrize("limit", [6, 18, 25, 30, 36])
def test_a_call_that_is_cut_is_told_the_same_whole_and_streamed(client: OpenAI, limit: int) -> None:
    fields = {"tools": [WEATHER], "tool_choice": "required", "max_completion_tokens": limit}
    whole = ask(client, **fields).choices[0]
    joined = Joined(ask(client, **fields, stream=True))
    assert whole.finish_reason == joined.reasons[0] == "length"
    assert joined.calls.get(0, []) == calls_of(whole.message)
    assert joined.text[0] == (whole.message.content or "")


def test_tool_choice_none_and_auto_give_text_or_calls(client: OpenAI) -> None:
    none = ask(client, tools=[WEATHER], tool_choice="none").choices[0].message
    assert none.content == ask(client).choices[0].message.content and none.tool_calls is None
    auto = ask(client, tools=[WEATHER], tool_choice="auto").choices[0].message
    assert auto.content or auto.tool_calls
    assert Joined(ask(client, tools=[WEATHER], stream=True)).text[0] == (auto.content or "")


@pytest.mark.parametrize("seed", range(3))
def test_code_for_the_interpreter_is_a_call_whole_and_streamed(client: OpenAI, seed: int) -> None:
    fields = {"tool_choice": "required", "seed": seed, "extra_body": {"builtin_tools": ["code_interpreter"]}, "max_completion_tokens": 60}
    whole = ask(client, **fields).choices[0]
    (call,) = calls_of(whole.message)
    assert call["name"] == "code_interpreter" and json.loads(call["arguments"])["code"]
    assert Joined(ask(client, **fields, stream=True)).calls[0] == [call]


# Schemas


class Animal(BaseModel):
    """What the answer has to be."""

    name: str
    legs: int
    tags: list[str]


def test_a_pydantic_model_comes_back_filled(client: OpenAI) -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=RIVER, response_format=Animal, seed=1, max_completion_tokens=400)
    assert isinstance(answer.choices[0].message.parsed, Animal)


def test_a_pydantic_model_comes_back_filled_from_a_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=RIVER, response_format=Animal, seed=1, max_completion_tokens=400) as stream:
        kinds = {event.type for event in stream}
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Animal)
    assert {"chunk", "content.delta", "content.done"} <= kinds


def test_a_tool_made_of_a_pydantic_model_is_parsed(client: OpenAI) -> None:
    tool: Any = openai.pydantic_function_tool(Animal)
    with client.chat.completions.stream(
        model=MODEL, messages=RIVER, tools=[tool], tool_choice="required", parallel_tool_calls=False, seed=1, max_completion_tokens=400
    ) as stream:
        kinds = {event.type for event in stream}
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Animal)
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds


def test_json_object_and_text_formats(client: OpenAI) -> None:
    answer = ask(client, response_format={"type": "json_object"}, max_completion_tokens=400, temperature=0.2)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    assert ask(client, response_format={"type": "text"}).choices[0].message.content == ask(client).choices[0].message.content
    choice = ask(client, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}).choices[0]
    assert choice.message.content in ("yes", "no")


# Completions


def go_on(client: OpenAI, **fields: Any) -> Any:
    return client.completions.create(**{"model": MODEL, "prompt": "Once upon a time", "seed": 3, "max_tokens": 8, **fields})


def test_every_kind_of_prompt_is_the_same_prompt(client: OpenAI, live_server: LiveServer) -> None:
    ids = httpx.post(live_server.url + "/tokenize", json={"prompt": "Once upon a time"}).json()["tokens"]
    text = go_on(client).choices[0].text
    assert go_on(client, prompt=ids).choices[0].text == text
    for several in (["Once upon a time", "The herd"], [ids, ids[:2]]):
        answer = go_on(client, prompt=several, temperature=0)
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert answer.choices[0].text == go_on(client, temperature=0).choices[0].text
    assert answer.usage.prompt_tokens == len(ids) + 2


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_log_probabilities_scores_the_prompt(client: OpenAI, max_tokens: int, stream: bool) -> None:
    answer = go_on(client, echo=True, logprobs=2, max_tokens=max_tokens, temperature=0, stream=stream)
    if stream:
        chunks = [chunk.choices[0] for chunk in answer if chunk.choices]
        text = "".join(choice.text for choice in chunks)
        found = [choice.logprobs for choice in chunks if choice.logprobs is not None]
        tokens, values, offsets, tops = (
            [value for one in found for value in getattr(one, name)] for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs")
        )
    else:
        (choice,) = answer.choices
        text, found = choice.text, choice.logprobs
        tokens, values, offsets, tops = found.tokens, found.token_logprobs, found.text_offset, found.top_logprobs
        assert answer.usage.completion_tokens == max_tokens
    assert text.startswith("Once upon a time") and (max_tokens > 0) == (text != "Once upon a time")
    assert values[0] is None and tops[0] is None and all(value <= 0 for value in values[1:])
    assert len(tokens) == len(values) == len(offsets) == len(tops)
    assert "".join(tokens[1:]) == text and offsets[1] == 0 and offsets == sorted(offsets)
    for token, place in zip(tokens[1:], offsets[1:], strict=True):
        assert text[place:].startswith(token)
    for value, top in zip(values[len(values) - max_tokens :], tops[len(tops) - max_tokens :], strict=True):
        assert value == max(top.values())


def test_the_best_of_several_is_the_likeliest(client: OpenAI) -> None:
    best = go_on(client, best_of=4, n=1, temperature=1.2, logprobs=0, seed=5)
    every = go_on(client, n=4, temperature=1.2, logprobs=0, seed=5)

    def mean(choice: Any) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    assert best.choices[0].text == max(every.choices, key=mean).text
    assert best.usage.completion_tokens == every.usage.completion_tokens
    assert (
        go_on(client, best_of=2, n=2, temperature=1.2, seed=5).choices[1].text
        == go_on(client, n=2, temperature=1.2, seed=5).choices[1].text
    )


def test_several_prompts_stream_side_by_side(client: OpenAI) -> None:
    fields: dict[str, Any] = {"prompt": ["Once upon a time", "The herd", "A river"], "n": 2, "temperature": 1.0, "logprobs": 1}
    whole = go_on(client, **fields)
    texts: dict[int, str] = {}
    values: dict[int, list[float]] = {}
    usage = None
    for chunk in go_on(client, **fields, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.logprobs is not None:
                values.setdefault(choice.index, []).extend(choice.logprobs.token_logprobs)
    assert texts == {choice.index: choice.text for choice in whole.choices} and len(texts) == 6
    assert values == {choice.index: choice.logprobs.token_logprobs for choice in whole.choices}
    assert usage is not None and usage.completion_tokens == whole.usage.completion_tokens


# Embeddings


def test_embeddings_are_unit_vectors_in_the_order_given(client: OpenAI, live_server: LiveServer) -> None:
    texts = ["The herd grazes.", "A river runs to the sea.", "The herd grazes."]
    made = client.embeddings.create(model=MODEL, input=texts)
    rows = [one.embedding for one in made.data]
    assert [one.index for one in made.data] == [0, 1, 2] and rows[0] == rows[2] != rows[1]
    assert all(abs(math.hypot(*row) - 1) < 1e-5 for row in rows)
    plain = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    assert [one.embedding for one in plain.data] == rows
    ids = httpx.post(live_server.url + "/tokenize", json={"prompt": texts[0]}).json()["tokens"]
    assert client.embeddings.create(model=MODEL, input=ids).data[0].embedding == rows[0]
    assert client.embeddings.create(model=MODEL, input=[ids]).usage.prompt_tokens == len(ids)
    assert made.usage.prompt_tokens == made.usage.total_tokens > 2 * len(ids)


def test_the_first_dimensions_are_made_unit_length_again(client: OpenAI) -> None:
    whole = client.embeddings.create(model=MODEL, input="The herd").data[0].embedding
    short = client.embeddings.create(model=MODEL, input="The herd", dimensions=16).data[0].embedding
    assert len(short) == 16 and abs(math.hypot(*short) - 1) < 1e-5
    scale = math.hypot(*whole[:16])
    assert all(abs(one - other / scale) < 1e-5 for one, other in zip(short, whole, strict=False))
    for fields in ({"dimensions": len(whole) + 1}, {"input": ""}, {"input": []}, {"input": "word " * 5000}):
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(**{"model": MODEL, "input": "x", **fields})


def test_embeddings_are_those_of_the_model_itself(client: OpenAI) -> None:
    import herd

    own = herd.LLM(MODEL, device="cpu").embed(["The herd grazes."])[0]
    told = client.embeddings.create(model=MODEL, input="The herd grazes.").data[0].embedding
    assert all(abs(float(one) - other) < 1e-5 for one, other in zip(own, told, strict=True))


# Models, loops, errors


def test_models_are_listed_and_told(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "herd"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4o")
    assert "'cria'" in str(caught.value)


def test_the_client_of_event_loops_asks_many_at_once(client: OpenAI, live_server: LiveServer) -> None:
    async def go() -> tuple[list[str], str]:
        async with AsyncOpenAI(base_url=live_server.url + "/v1", api_key="none", max_retries=0) as loop_client:
            create: Any = loop_client.chat.completions.create
            fields = {"model": MODEL, "messages": RIVER, "max_completion_tokens": 16}
            answers = await asyncio.gather(*(create(**fields, seed=seed) for seed in range(8)))
            pieces = [chunk.choices[0].delta.content or "" async for chunk in await create(**fields, seed=0, stream=True)]
            assert (await loop_client.completions.create(model=MODEL, prompt="A", max_tokens=2)).choices[0].text
            assert [model.id async for model in loop_client.models.list()] == [MODEL]
        return [answer.choices[0].message.content for answer in answers], "".join(pieces)

    answers, streamed = asyncio.run(go())
    assert answers[0] == streamed
    assert answers == [ask(client, seed=seed, max_completion_tokens=16).choices[0].message.content for seed in range(8)]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"extra_body": {"tempratur": 1}}, "tempratur"),
        ({"tools": [], "tool_choice": "required"}, None),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_is_the_clients_bad_request_error(client: OpenAI, fields: Any, param: str | None, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields, stream=stream)
    assert caught.value.type == "invalid_request_error" and (param is None or caught.value.param == param)
    assert caught.value.request_id and "Traceback" not in str(caught.value)


def test_a_model_that_is_not_there_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        ask(client, model="gpt-4o")
    with pytest.raises(openai.BadRequestError) as caught:
        go_on(client, prompt="word " * 5000)
    assert caught.value.code == "context_length_exceeded"


def test_log_probabilities_are_finite_where_tokens_cannot_come(client: OpenAI) -> None:
    answer = ask(client, logprobs=True, top_logprobs=20, extra_body={"structured_outputs": {"choice": ["yes"]}})
    assert all(math.isfinite(top.logprob) for found in answer.choices[0].logprobs.content for top in found.top_logprobs)
