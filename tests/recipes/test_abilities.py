"""What a model can do: the recipe decides what is asked, answers are counted as they are, and a table puts models side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from herd.checkpoint.load import load_model
from herd.inference.llm import LLM
from herd.inference.output import Output
from herd.model.transformer import Transformer
from herd.recipes.abilities import Abilities, abilities_table, measure_abilities
from herd.recipes.config import RecipeConfig
from herd.recipes.pipeline import RunResult
from herd.recipes.prepare import prepare_heldout
from herd.recipes.tool_drills import HeldBackCall, held_back_calls
from herd.text.messages import Message, ToolCall
from herd.text.tokenizer import Tokenizer, load_tokenizer
from herd.train.config import SourceConfig


@pytest.fixture(scope="module")
def model(finished: RunResult) -> Transformer:
    return load_model(finished.model)


@pytest.fixture(scope="module")
def tokenizer(finished: RunResult) -> Tokenizer:
    return load_tokenizer(finished.model)


def with_sources(config: RecipeConfig, *paths: str) -> RecipeConfig:
    more = tuple(SourceConfig(name=path.partition(":")[2], path=path) for path in paths)
    return replace(config, pretrain=replace(config.pretrain, sources=(*config.pretrain.sources, *more)))


def test_only_what_the_recipe_taught_is_asked(quick: RecipeConfig, model: Transformer, tokenizer: Tokenizer) -> None:
    plain = measure_abilities(model, tokenizer, replace(quick, sample_prompts=()), {})
    assert plain == Abilities()
    assert abilities_table({"tiny": plain}) == []


def test_a_tiny_model_finds_nothing_and_calls_nothing(quick: RecipeConfig, model: Transformer, tokenizer: Tokenizer) -> None:
    config = with_sources(quick, "own:needles", "own:tool-drills")
    heldout = prepare_heldout(config, None, tokenizer)
    found = measure_abilities(model, tokenizer, config, heldout, num_needles=2, num_calls=2)
    assert found.needles == {config.final_model.max_position_embeddings: 0.0} and found.num_needles == 2
    assert (found.num_calls, found.tools_right, found.calls_right) == (2, 0, 0)
    assert set(found.bits_per_byte) == set(heldout) and all(0 < bits < 20 for bits in found.bits_per_byte.values())
    assert found.num_turns == len(config.sample_prompts) > 0


Answer = Callable[[HeldBackCall], list[ToolCall]]


@pytest.mark.parametrize(
    ("answer", "named", "right"),
    [
        (lambda wanted: [ToolCall(name=wanted.name, arguments=wanted.arguments)], 6, 6),
        (lambda wanted: [ToolCall(name=wanted.name, arguments={**wanted.arguments, "more": 1})], 6, 0),
        (lambda wanted: [ToolCall(name="another", arguments=wanted.arguments)], 0, 0),
        (lambda wanted: [ToolCall(name=wanted.name, arguments=wanted.arguments)] * 2, 0, 0),
        (lambda _: [], 0, 0),
    ],
    ids=["right", "another argument", "another tool", "twice", "none"],
)
def test_a_call_counts_when_tool_and_arguments_are_right(
    quick: RecipeConfig,
    model: Transformer,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    named: int,
    right: int,
) -> None:
    wanted = {call.question: call for call in held_back_calls(6)}
    chat = LLM.chat

    def scripted(llm: LLM, messages: Sequence[Message], *args: Any, tools: Any = (), **rest: Any) -> Output:
        output = chat(llm, messages, *args, **rest)
        if not tools:
            return output
        calls = tuple(answer(wanted[messages[0].text]))
        return replace(output, message=Message(role="assistant", parts=calls), finish_reason="tool_calls")

    monkeypatch.setattr(LLM, "chat", scripted)
    found = measure_abilities(model, tokenizer, with_sources(quick, "own:tool-drills"), {}, num_calls=6)
    assert (found.tools_right, found.calls_right, found.num_calls) == (named, right, 6)


def test_lengths_double_up_to_the_context(
    quick: RecipeConfig, model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("herd.recipes.abilities._SHORTEST", 128)
    assert model.config.max_position_embeddings == 512
    found = measure_abilities(model, tokenizer, with_sources(quick, "own:needles"), {}, num_needles=1)
    assert list(found.needles) == [128, 256, 512]
    smaller = Transformer(replace(model.config, max_position_embeddings=256))
    smaller.load_state_dict(model.state_dict())
    found = measure_abilities(smaller, tokenizer, with_sources(quick, "own:needles"), {}, num_needles=1)
    assert list(found.needles) == [128, 256]
