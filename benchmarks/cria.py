"""Editions of cria side by side: `python -m benchmarks.cria --data FOLDER MODEL ... [--json FILE]`.

What the card of `herd train cria2 --beside cria` tells, for any number of finished models: bits per byte of text held out of training, by
language, facts hidden in texts up to the model's context, calls of tools on requests that stand in no training set, turns ended.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import harness
from herd.checkpoint.load import load_model
from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model
from herd.recipes.abilities import Abilities, abilities_table, measure_abilities
from herd.recipes.prepare import prepare_heldout
from herd.recipes.registry import find_recipe
from herd.recipes.tune_config import TuneConfig

PACKAGES = ("llama-herd", "torch")


def measure(name: str, recipe: str, data: Path, *, needles: int, calls: int) -> Abilities:
    """All figures of one model."""
    folder, config = resolve_model(name), find_recipe(recipe)
    if isinstance(config, TuneConfig):
        raise SystemExit(f"error: {recipe} tunes a model and keeps no text out of training")
    tokenizer = load_checkpoint_tokenizer(folder)
    heldout = prepare_heldout(config, data, tokenizer)
    return measure_abilities(load_model(folder, dtype=torch.float32), tokenizer, config, heldout, num_needles=needles, num_calls=calls)


def main() -> None:
    """Measure and print."""
    options = harness.parser(__doc__, repeats=1)
    options.add_argument("models", nargs="+", metavar="MODEL", help="folders or names of models")
    options.add_argument("--recipe", default="cria2", help="whose text kept back and questions are taken (default cria2)")
    options.add_argument("--data", type=Path, required=True, help="the data folder of the recipe")
    options.add_argument("--needles", type=int, default=20, help="facts hidden at each length (default 20)")
    options.add_argument("--calls", type=int, default=50, help="held-back requests for a tool (default 50)")
    args = options.parse_args()
    figures = {name: measure(name, args.recipe, args.data, needles=args.needles, calls=args.calls) for name in args.models}
    print("\n".join(abilities_table(figures)))
    harness.report(args.json, "cria", PACKAGES, {"models": {name: asdict(figure) for name, figure in figures.items()}})


if __name__ == "__main__":
    main()
