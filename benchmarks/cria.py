"""Editions of cria side by side: `python -m benchmarks.cria --data FOLDER MODEL ... [--json FILE]`.

Each model answers the same questions: bits per byte of text held out of training, by language (the held-out documents of the recipe
`cria2`), facts hidden at the model's own context and at shorter ones, whether it ends its turns, and whether it calls the right tool with
the right arguments on requests that stand in no training set. Answers are greedy, so a figure is the model's and not a draw's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from herd import LLM, SamplingParams
from herd.checkpoint.load import load_model
from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model
from herd.model.transformer import Transformer
from herd.recipes.cria import SAMPLE_PROMPTS
from herd.recipes.cria2 import cria2
from herd.recipes.needle_text import make_needles
from herd.recipes.prepare import prepare_heldout
from herd.recipes.tool_drills import held_back_calls
from herd.text.tokenizer import Tokenizer
from herd.train.needles import share_found
from herd.train.trainer import bits_per_byte

PACKAGES = ("llama-herd", "torch")
_LENGTHS = (1024, 2048, 4096, 8192)
_MOST_TOKENS = 160


def heldout_bits(model: Transformer, tokenizer: Tokenizer, data: Path) -> dict[str, float]:
    """Bits per byte of held-out text, by language."""
    heldout = prepare_heldout(cria2(), data, tokenizer)
    return {language: bits_per_byte(model, rows, dtype=torch.float32) for language, rows in heldout.items()}


def needles_found(model: Transformer, tokenizer: Tokenizer, count: int) -> dict[int, float]:
    """The share of needles found at each length that the model has room for."""
    lengths = [length for length in _LENGTHS if length <= model.config.max_position_embeddings]
    return {length: share_found(model, make_needles(tokenizer, count=count, length=length, seed=7)) for length in lengths}


def calls_right(llm: LLM, count: int) -> tuple[int, int]:
    """How many of so many held-back requests get the right call, name and arguments, and how many at least the right tool."""
    greedy = SamplingParams(temperature=0, max_tokens=_MOST_TOKENS)
    right = named = 0
    for wanted in held_back_calls(count):
        calls = llm.chat([{"role": "user", "content": wanted.question}], greedy, tools=wanted.tools).tool_calls
        named += len(calls) == 1 and calls[0].name == wanted.name
        right += len(calls) == 1 and calls[0].name == wanted.name and dict(calls[0].arguments) == wanted.arguments
    return right, named


def turns_ended(llm: LLM) -> int:
    """How many of the recipe's sample prompts get an answer that ends by itself."""
    greedy = SamplingParams(temperature=0, max_tokens=_MOST_TOKENS)
    return sum(llm.chat([{"role": "user", "content": prompt}], greedy).finish_reason == "stop" for prompt in SAMPLE_PROMPTS)


def measure(name: str, data: Path, *, needles: int, calls: int) -> dict[str, Any]:
    """All figures of one model."""
    folder = resolve_model(name)
    tokenizer = load_checkpoint_tokenizer(folder)
    model = load_model(folder, dtype=torch.float32)
    bits, found = heldout_bits(model, tokenizer, data), needles_found(model, tokenizer, needles)
    llm = LLM(folder)
    right, named = calls_right(llm, calls)
    ended = turns_ended(llm)
    llm.close()
    return {"bits_per_byte": bits, "needles": found, "calls_right": right, "tools_right": named, "turns_ended": ended}


def main() -> None:
    """Measure and print."""
    options = harness.parser(__doc__, repeats=1)
    options.add_argument("models", nargs="+", metavar="MODEL", help="folders or names of models")
    options.add_argument("--data", type=Path, required=True, help="the data folder of the recipe")
    options.add_argument("--needles", type=int, default=20, help="facts hidden at each length (default 20)")
    options.add_argument("--calls", type=int, default=100, help="held-back requests for a tool (default 100)")
    args = options.parse_args()
    figures = {name: measure(name, args.data, needles=args.needles, calls=args.calls) for name in args.models}
    languages = sorted({language for figure in figures.values() for language in figure["bits_per_byte"]})
    rows = [
        (f"bits per byte, {language}", *(f"{figure['bits_per_byte'][language]:.3f}" for figure in figures.values()))
        for language in languages
    ]
    for length in _LENGTHS:
        shares = [figure["needles"].get(length) for figure in figures.values()]
        rows.append((f"needles found at {length:,}", *("no room" if share is None else f"{share:.0%}" for share in shares)))
    rows.append((f"right calls of {args.calls}", *(str(figure["calls_right"]) for figure in figures.values())))
    rows.append((f"right tools of {args.calls}", *(str(figure["tools_right"]) for figure in figures.values())))
    rows.append((f"turns ended of {len(SAMPLE_PROMPTS)}", *(str(figure["turns_ended"]) for figure in figures.values())))
    harness.table(("", *figures), rows)
    harness.report(args.json, "cria", PACKAGES, {"models": figures})


if __name__ == "__main__":
    main()
