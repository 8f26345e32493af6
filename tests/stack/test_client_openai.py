"""OpenAI's own client against a real server: chat whole and streamed, tools, schemas."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from client_server import LiveServer  # pyright: ignore[reportMissingImports]
from openai import OpenAI
from openai_client import CLOCK, MODEL, RIVER, WEATHER, Joined, ask, calls_of  # pyright: ignore[reportMissingImports]
from pydantic import BaseModel, Field

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
    whole = ask(client, temperature=0).choices[0].message.content
    word = " " + whole.split()[3]
    choice = ask(client, temperature=0, stop=word).choices[0]
    assert choice.finish_reason == "stop" and choice.stop_reason == word
    assert choice.message.content == whole[: whole.index(word)]


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
    # A model that would end after one call must go on.
    more = {"min_tokens": 100}
    fields = {
        "tools": [WEATHER, CLOCK],
        "tool_choice": "required",
        "max_completion_tokens": 300,
        "n": 8,
        "temperature": 1.5,
        "extra_body": more,
    }
    whole = ask(client, **fields)
    joined = Joined(ask(client, **fields, stream=True))
    assert {choice.index: calls_of(choice.message) for choice in whole.choices} == joined.calls
    assert max(map(len, joined.calls.values())) > 1
    assert {len(calls_of(choice.message)) for choice in ask(client, **fields, parallel_tool_calls=False).choices} == {1}


@pytest.mark.parametrize("share", [0.15, 0.4, 0.6, 0.75, 0.9])
def test_a_call_that_is_cut_is_told_the_same_whole_and_streamed(client: OpenAI, share: float) -> None:
    fields: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "max_completion_tokens": 200}
    fields["max_completion_tokens"] = int(share * ask(client, **fields).usage.completion_tokens)
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

    name: str = Field(max_length=40)
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
        (call,) = list(stream.get_final_completion().choices[0].message.tool_calls or [])
    assert isinstance(call.function.parsed_arguments, Animal)
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds


def test_json_object_and_text_formats(client: OpenAI) -> None:
    answer = ask(client, response_format={"type": "json_object"}, max_completion_tokens=400, temperature=0.2)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    assert ask(client, response_format={"type": "text"}).choices[0].message.content == ask(client).choices[0].message.content
    choice = ask(client, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}).choices[0]
    assert choice.message.content in ("yes", "no")
