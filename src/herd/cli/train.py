"""`herd train`: carry out a recipe, or a config that an earlier run saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from herd.base import settings
from herd.cli.load import JsonOption, ThreadsOption, set_threads


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe's name (tiny, cria, sft, lora, dpo, ...) or the config.toml of an earlier run. None lists the recipes."
        ),
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Dotted overrides, as pretrain.lr=3e-4 pretrain.num_steps=100.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Data folder, or the file that a post-training recipe reads. [variable: HERD_DATA]")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the run. [default: runs/RECIPE]")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Delete an earlier run in the folder instead of going on with it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")] = False,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Train or tune a model by a recipe; interrupt and repeat the command to go on, bit for bit. `herd train tiny` takes under two minutes."""
    from herd.base.config_io import apply_overrides, to_toml
    from herd.cli.output import line, note, print_json, table
    from herd.recipes.registry import RECIPES, find_recipe

    if recipe is None:
        known = {name: (make.__doc__ or "").splitlines()[0] for name, make in RECIPES.items()}
        if json:
            print_json(known)
        else:
            table(list(known.items()), ("recipe", "what it trains"))
            note("train one: herd train RECIPE; see all that can be set: herd train RECIPE --dry-run")
        return
    config = apply_overrides(find_recipe(recipe), overrides or [])
    if dry_run:
        line(to_toml(config).rstrip())
        return
    from herd.recipes.pipeline import run_recipe

    set_threads(threads)
    folder = settings.value("data", str(data) if data else None)
    place = output or _place(config.name)
    try:
        result = run_recipe(config, data=Path(folder) if folder else None, output=place, restart=restart)
    except KeyboardInterrupt:
        note(f"\nstopped; the same command goes on from the last state saved in {place}")
        raise
    if json:
        print_json({"model": str(result.model), "stages": [_stage(stage) for stage in result.stages]})
        return
    note(f"done: {result.next_step}")


def _place(name: str) -> Path:
    """The folder of a run without --output. Raises ConfigError for a name that would lead out of runs/."""
    from herd.base.errors import ConfigError

    if not name.isprintable() or name in ("", ".", "..") or any(mark in name for mark in "/\\"):
        raise ConfigError(f"the recipe's name is {name!r}, which is no name of a folder", hint="pass --output FOLDER, or correct the name")
    return Path("runs") / name


def _stage(stage: object) -> dict[str, object]:
    from herd.base.config_io import to_dict

    return to_dict(stage)
