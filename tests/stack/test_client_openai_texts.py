"""OpenAI's own client against a real server: completions, embeddings, models, event loops, and its exception classes."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import httpx
import openai
import pytest
from client_server import LiveServer  # pyright: ignore[reportMissingImports]
from openai import AsyncOpenAI, OpenAI
from openai_client import MODEL, RIVER, ask  # pyright: ignore[reportMissingImports]

# Completions

TOO_LONG = "A river is water that flows over the land. " * 2000
"""More tokens than the context of the bundled model, of 8,192 at most."""


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
    for fields in (
        {"dimensions": len(whole) + 1},
        {"input": ""},
        {"input": []},
        {"input": TOO_LONG},
    ):
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
        ({"messages": [{"role": "user", "content": TOO_LONG}]}, None),
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
        go_on(client, prompt=TOO_LONG)
    assert caught.value.code == "context_length_exceeded"


def test_log_probabilities_are_finite_where_tokens_cannot_come(client: OpenAI) -> None:
    answer = ask(client, logprobs=True, top_logprobs=20, extra_body={"structured_outputs": {"choice": ["yes"]}})
    assert all(math.isfinite(top.logprob) for found in answer.choices[0].logprobs.content for top in found.top_logprobs)
