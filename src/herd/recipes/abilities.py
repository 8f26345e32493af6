"""What a finished model can do beyond its loss, measured for its card: finding facts, calling tools, ending its turns.

What is asked follows from the recipe: facts are hidden where it trained on hidden facts, tools are offered where it trained on calls. All
questions stand in no training set, all answers are greedy. Another model may be put to the same questions (`herd train --beside`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from herd.base.errors import ContextOverflowError
from herd.inference.llm import LLM
from herd.inference.params import SamplingParams
from herd.model.transformer import Transformer
from herd.recipes.config import RecipeConfig
from herd.recipes.needle_text import make_needles
from herd.recipes.tool_drills import held_back_calls
from herd.text.messages import Message
from herd.text.tokenizer import Tokenizer
from herd.train.needles import share_found
from herd.train.trainer import HeldOut, bits_per_byte

_SHORTEST = 1024
_MOST_TOKENS = 160


@dataclass(frozen=True, kw_only=True, slots=True)
class Abilities:
    """Held-out bits per byte by language; the share of `num_needles` found at each length in tokens.

    Of `num_calls` requests, those with the right tool, and with the right arguments too; of `num_turns` sample prompts, those whose answer
    ended by itself.
    """

    bits_per_byte: dict[str, float] = field(default_factory=dict[str, float])
    needles: dict[int, float] = field(default_factory=dict[int, float])
    num_needles: int = 0
    tools_right: int = 0
    calls_right: int = 0
    num_calls: int = 0
    turns_ended: int = 0
    num_turns: int = 0


def measure_abilities(
    model: Transformer,
    tokenizer: Tokenizer,
    config: RecipeConfig,
    heldout: Mapping[str, HeldOut],
    *,
    num_needles: int = 20,
    num_calls: int = 50,
) -> Abilities:
    """Put the recipe's questions to a model; `heldout` is in its tokenizer's ids."""
    paths = {source.path for _, stage in config.stages() for source in stage.sources}
    needles = _needles_found(model, tokenizer, config, num_needles) if "own:needles" in paths else {}
    llm = LLM(model, tokenizer=tokenizer)
    tools_right, calls_right = _calls_right(llm, num_calls) if "own:tool-drills" in paths else (0, 0)
    ended = sum(_greedy(llm, prompt) for prompt in config.sample_prompts)
    llm.close()
    return Abilities(
        bits_per_byte={language: bits_per_byte(model, rows, dtype=torch.float32) for language, rows in heldout.items()},
        needles=needles,
        num_needles=num_needles if needles else 0,
        tools_right=tools_right,
        calls_right=calls_right,
        num_calls=num_calls if "own:tool-drills" in paths else 0,
        turns_ended=ended,
        num_turns=len(config.sample_prompts),
    )


def _needles_found(model: Transformer, tokenizer: Tokenizer, config: RecipeConfig, count: int) -> dict[int, float]:
    """At the shortest length, its doubles and the recipe's context, as far as the model has room."""
    longest = config.final_model.max_position_embeddings
    lengths = {longest}
    length = min(_SHORTEST, longest)
    while length < longest:
        lengths.add(length)
        length *= 2
    fitting = sorted(length for length in lengths if length <= model.config.max_position_embeddings)
    return {length: share_found(model, make_needles(tokenizer, count=count, length=length, seed=config.seed)) for length in fitting}


def _calls_right(llm: LLM, count: int) -> tuple[int, int]:
    greedy = SamplingParams(temperature=0.0, max_tokens=_MOST_TOKENS)
    named = right = 0
    for wanted in held_back_calls(count):
        try:
            calls = llm.chat([Message.user(wanted.question)], greedy, tools=wanted.tools).tool_calls
        except ContextOverflowError:
            continue  # a model without room for the tools calls none
        hit = len(calls) == 1 and calls[0].name == wanted.name
        named += hit
        right += hit and dict(calls[0].arguments) == wanted.arguments
    return named, right


def _greedy(llm: LLM, prompt: str) -> bool:
    """Whether the answer to a prompt ends by itself."""
    return llm.chat([Message.user(prompt)], SamplingParams(temperature=0.0, max_tokens=_MOST_TOKENS)).finish_reason == "stop"


def abilities_table(columns: Mapping[str, Abilities]) -> list[str]:
    """Lines of a table of what was measured, a column for each model; none where nothing was asked."""
    found = list(columns.values())
    rows: list[tuple[str, list[str]]] = []
    if len(found) > 1:
        languages = sorted({language for each in found for language in each.bits_per_byte})
        rows += [
            (
                f"held-out bits per byte, {lang}",
                [f"{each.bits_per_byte[lang]:.3f}" if lang in each.bits_per_byte else "-" for each in found],
            )
            for lang in languages
        ]
    for length in sorted({length for each in found for length in each.needles}):
        shares = [f"{each.needles[length]:.0%}" if length in each.needles else "no room" for each in found]
        rows.append((f"facts found in {length:,} tokens, of {max(each.num_needles for each in found)}", shares))
    if num_calls := max(each.num_calls for each in found):
        rows.append((f"right tool, of {num_calls} requests kept back", [str(each.tools_right) for each in found]))
        rows.append(("right tool and arguments", [str(each.calls_right) for each in found]))
    if num_turns := max(each.num_turns for each in found):
        rows.append((f"turns ended, of {num_turns}", [str(each.turns_ended) for each in found]))
    if not rows:
        return []
    return [
        "| | " + " | ".join(columns) + " |",
        "|---" * (len(found) + 1) + "|",
        *(f"| {name} | " + " | ".join(values) + " |" for name, values in rows),
    ]
