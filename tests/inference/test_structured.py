"""Answers that follow a grammar, from a random model that would never write them by itself, at temperature 1."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from herd.base.errors import FormatError, UsageError
from herd.checkpoint.load import load_model
from herd.engine.build import build_engine
from herd.engine.engine import Engine
from herd.engine.grammar.spec import Grammar
from herd.engine.memory import EngineConfig
from herd.engine.params import TokenParams
from herd.engine.stream import TokenRequest, Tokens
from herd.inference.llm import LLM
from herd.inference.local import LocalModel
from herd.inference.params import SamplingParams
from herd.inference.port import CompletionRequest, Finished
from herd.inference.prepare import grammar_compiler
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.text.messages import Message, ToolDefinition
from herd.text.tokenizer import Tokenizer
from tiny_model import tiny_config  # pyright: ignore[reportMissingImports]

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
WEATHER = ToolDefinition.from_dict(
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]},
        },
    }
)
HELLO = [Message.user("Hello")]


@pytest.fixture(scope="module")
def roomy_llm(tiny_tokenizer: Tokenizer) -> LLM:
    """With room for tools in the prompt, which this tokenizer writes in a thousand tokens."""
    config = replace(tiny_config(tiny_tokenizer.vocab_size), max_position_embeddings=4096)
    with torch.device("meta"):
        model = Transformer(config)
    return LLM(initialise(model, seed=3, dtype=torch.float32).eval(), tokenizer=tiny_tokenizer)


def drawn(seed: int, **fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "top_p": 1.0, "seed": seed, "max_tokens": 300, **fields})


@pytest.mark.parametrize("seed", range(5))
def test_every_answer_is_json_of_the_schema(tiny_llm: LLM, seed: int) -> None:
    output = tiny_llm.chat(HELLO, drawn(seed), grammar=Grammar.json_schema(PERSON))
    assert output.finish_reason == "stop"
    jsonschema.validate(json.loads(output.text), PERSON)


def test_patterns_choices_and_grammars_are_followed(tiny_llm: LLM) -> None:
    def answer(grammar: Grammar) -> str:
        return tiny_llm.generate("Say:", drawn(3), grammar=grammar).text

    assert re.fullmatch(r"[a-c]{4}-\d\d", answer(Grammar.regex(r"[a-c]{4}-[0-9]{2}")))
    assert answer(Grammar.choice(["grazes", "sleeps"])) in ("grazes", "sleeps")
    assert re.fullmatch(r"(ha)+!", answer(Grammar.lark('start: "ha"+ "!"')))
    assert isinstance(json.loads(tiny_llm.generate("Say:", drawn(4, max_tokens=400), grammar=Grammar.json_object(max_string=5)).text), dict)


def test_a_tool_that_is_required_is_called_with_arguments_that_fit(roomy_llm: LLM) -> None:
    for seed in range(5):
        output = roomy_llm.chat(HELLO, drawn(seed), tools=[WEATHER], tool_choice="required")
        assert output.finish_reason == "tool_calls" and output.tool_calls
        for call in output.tool_calls:
            assert call.name == "get_weather" and set(call.arguments) == {"city"} and isinstance(call.arguments["city"], str)


def test_a_tool_that_must_not_be_called_is_not_told_of(tiny_llm: LLM) -> None:
    without = tiny_llm.chat(HELLO, drawn(1, max_tokens=20))
    output = tiny_llm.chat(HELLO, drawn(1, max_tokens=20), tools=[WEATHER], tool_choice="none")
    assert output.token_ids == without.token_ids and output.usage == without.usage


def test_a_named_tool_is_the_one_that_is_called(roomy_llm: LLM) -> None:
    other = replace(WEATHER, name="get_time")
    output = roomy_llm.chat(HELLO, drawn(2), tools=[WEATHER, other], tool_name="get_time")
    assert {call.name for call in output.tool_calls} == {"get_time"}
    with pytest.raises(FormatError, match="there is no tool 'get_tine'") as caught:
        roomy_llm.chat(HELLO, tools=[WEATHER, other], tool_name="get_tine")
    assert caught.value.hint == "did you mean 'get_time'?"


def test_what_contradicts_itself_is_refused_by_name(tiny_llm: LLM) -> None:
    with pytest.raises(UsageError, match="cannot both follow a grammar and call tools"):
        tiny_llm.chat(HELLO, tools=[WEATHER], grammar=Grammar.json_object())
    with pytest.raises(UsageError, match="there are no tools"):
        tiny_llm.chat(HELLO, tool_choice="required")
    with pytest.raises(UsageError, match="ignore_eos goes on after the end"):
        tiny_llm.generate("Say:", SamplingParams(ignore_eos=True), grammar=Grammar.json_object())


def test_a_bad_grammar_is_refused_and_the_engine_lives_on(tiny_llm: LLM) -> None:
    for grammar in (Grammar.regex("(a"), Grammar.lark("start: missing"), Grammar.json_schema({"type": "elephant"})):
        with pytest.raises(FormatError) as caught:
            tiny_llm.generate("Say:", drawn(1), grammar=grammar)
        assert caught.value.hint
    assert tiny_llm.generate("Say:", drawn(1), grammar=Grammar.choice(["yes"])).text == "yes"


def test_an_answer_is_the_same_alone_and_among_others(tiny_llm: LLM) -> None:
    grammar = Grammar.json_schema(PERSON)
    prompts = [f"Person {number}:" for number in range(5)]
    alone = [tiny_llm.generate(prompt, drawn(7), grammar=grammar).token_ids for prompt in prompts]
    assert [output.token_ids for output in tiny_llm.generate(prompts, drawn(7), grammar=grammar)] == alone


@pytest.fixture(scope="module")
def engine(tiny_folder: Path, tiny_tokenizer: Tokenizer) -> Generator[Engine, None, None]:
    size = tiny_tokenizer.vocab_size
    config = EngineConfig(context=512, num_draft=4)
    made = build_engine(load_model(tiny_folder), config, vocab_size=size, grammars=partial(grammar_compiler, tiny_tokenizer, size))
    yield made
    made.close()


def test_drafts_change_nothing_under_a_grammar(engine: Engine, tiny_llm: LLM, tiny_tokenizer: Tokenizer) -> None:
    guessing = LocalModel(engine, tiny_tokenizer)
    grammar = Grammar.regex(r"(ab ){20,30}x")
    for seed in range(3):
        request = CompletionRequest(prompt="ab ab ab ab", grammar=grammar, params=drawn(seed))
        last = list(guessing.complete(request))[-1]
        assert isinstance(last, Finished)
        assert last.token_ids == tiny_llm.generate("ab ab ab ab", drawn(seed), grammar=grammar).token_ids
    assert engine.stepper.results.num_guesses_accepted > 0


def test_several_answers_follow_it_each_in_its_own_way(tiny_llm: LLM) -> None:
    request = CompletionRequest(prompt="Say:", grammar=Grammar.json_schema(PERSON), n=4, params=drawn(5))
    parts = list(tiny_llm.inference.complete_parts(request))
    answers = {part.index: part.event for part in parts if isinstance(part.event, Finished)}
    assert sorted(answers) == [0, 1, 2, 3] and len({answer.text for answer in answers.values()}) > 1
    for answer in answers.values():
        jsonschema.validate(json.loads(answer.text), PERSON)


def test_bans_and_min_tokens_give_way_where_a_grammar_leaves_nothing_else(tiny_llm: LLM, tiny_tokenizer: Tokenizer) -> None:
    banned = tuple(token_id for token_id in range(tiny_tokenizer.vocab_size) if b"y" in tiny_tokenizer.token_bytes(token_id))
    assert tiny_llm.generate("Say:", drawn(1, banned_token_ids=banned), grammar=Grammar.choice(["y"])).text == "y"
    assert tiny_llm.generate("Say:", drawn(1, min_tokens=50), grammar=Grammar.choice(["no"])).text == "no"


def test_one_of_several_answers_can_be_ended_and_the_others_go_on(engine: Engine) -> None:
    params = TokenParams(max_tokens=30, temperature=1.0, seed=3)
    stream = engine.submit(TokenRequest(prompt=(1, 2, 3), params=params, n=3))
    counts, ends = {0: 0, 1: 0, 2: 0}, dict[int, str]()
    for event in stream:
        if isinstance(event, Tokens):
            counts[event.index] += len(event.ids)
            if event.finish is not None:
                ends[event.index] = event.finish
            if counts[1] == 5 and event.index == 1 and event.ids:
                stream.cancel(1)
    assert ends == {0: "length", 1: "cancelled", 2: "length"} and counts[0] == counts[2] == 30 and counts[1] < 12
    assert engine.scheduler.num_running == engine.scheduler.num_waiting == 0
