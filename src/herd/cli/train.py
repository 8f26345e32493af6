"""`herd train`: carry out a recipe, or a config that an earlier run saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from herd.base import settings
from herd.cli.load import DeviceOption, JsonOption, ThreadsOption, choose_device, set_threads

if TYPE_CHECKING:
    from herd.recipes.registry import AnyConfig


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe's name (tiny, cria, llama-8b, sft, lora, dpo, ...), the config.toml of an earlier run, or `report` to write the "
            "page of a run whose folder follows. None lists the recipes."
        ),
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Dotted overrides, as pretrain.lr=3e-4 pretrain.num_steps=100.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Data folder, or the file that a post-training recipe reads. [variable: HERD_DATA]")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run; of a report, its file. [default: runs/RECIPE, RUN/report.html]"),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Delete an earlier run in the folder instead of going on with it.")] = False,
    beside: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Another model, put to the same questions: the card of a recipe from random weights shows both."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that pack rows, a source each, for a recipe from random weights. [default: 1 on a CPU, the cores beside a GPU]"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved config with steps, tokens and time of each stage, and stop.")
    ] = False,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="Prepare the data, print a sample of each source with what counts marked, and stop.")
    ] = False,
    simulate: Annotated[
        str | None,
        typer.Option(help="Trace this rank (or `all`: one of each pipeline stage) of the mesh without its hardware, and stop."),
    ] = None,
    stage: Annotated[str, typer.Option(help="The stage that --simulate traces, as pretrain or long-131072.")] = "pretrain",
    hardware: Annotated[str, typer.Option(help="The device that --simulate reckons with: a name of `herd plan hardware`.")] = "h100-80gb",
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Train or tune a model by a recipe; interrupt and repeat the command to go on, bit for bit.

    `herd train tiny` takes under two minutes.

    SIGTERM and SIGUSR1 (as Slurm sends before a job's end) save the step in progress and leave with exit code 75: run the command again.
    A run that hangs ends with 76. `herd train report RUN` writes one HTML page of a run's curves, speed and energy.
    """
    from herd.base.config_io import apply_overrides
    from herd.recipes.registry import find_recipe

    set_threads(threads)
    if recipe is None:
        _list(json=json)
        return
    if recipe == "report":
        _report(overrides or [], output, json=json)
        return
    config = apply_overrides(find_recipe(recipe), overrides or [])
    folder = settings.value("data", str(data) if data else None)
    files = Path(folder) if folder else None
    if simulate is not None:
        _simulate(config, simulate, stage, hardware, json=json)
    elif dry_run:
        _dry_run(config, output or _place(config.name), json=json)
    elif inspect:
        _inspect(config, files, output or _place(config.name), json=json)
    else:
        place = output or _place(config.name)
        _train(config, files, place, restart=restart, device=device, beside=beside, workers=workers, json=json)


def _list(*, json: bool) -> None:
    from herd.cli.output import note, print_json, table
    from herd.recipes.registry import RECIPES

    known = {name: (make.__doc__ or "").splitlines()[0] for name, make in RECIPES.items()}
    if json:
        print_json(known)
    else:
        table(list(known.items()), ("recipe", "what it trains"))
        note("train one: herd train RECIPE; see all that can be set: herd train RECIPE --dry-run")


def _train(
    config: AnyConfig,
    data: Path | None,
    place: Path,
    *,
    restart: bool,
    device: str | None,
    beside: str | None,
    workers: int | None,
    json: bool,
) -> None:
    from herd.cli.output import note, print_json
    from herd.recipes.pipeline import run_recipe
    from herd.train.heartbeat import process_rank

    try:
        where = choose_device(settings.value("device", device))
        result = run_recipe(config, data=data, output=place, restart=restart, device=where, beside=beside, workers=workers)
    except KeyboardInterrupt:
        note(f"\nstopped; the same command goes on from the last state saved in {place}")
        raise
    if process_rank():
        return  # the first process tells
    if json:
        print_json({"model": str(result.model), "stages": [_stage(stage) for stage in result.stages]})
        return
    note(f"done: {result.next_step}")


def _dry_run(config: AnyConfig, place: Path, *, json: bool) -> None:
    """The config as TOML, the estimates above it as comments; both as one object with --json."""
    import torch

    from herd.base.config_io import to_dict, to_toml
    from herd.cli.output import line, print_json
    from herd.recipes.config import RecipeConfig
    from herd.recipes.estimate import describe, estimate_stages, this_machine
    from herd.train.precision import compute_dtype

    estimates = []
    if isinstance(config, RecipeConfig):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        machine = this_machine(device, compute_dtype(config.pretrain, device), config.parallel)
        estimates = estimate_stages(config, folder=place, machine=machine)
    if json:
        print_json({"config": to_dict(config), "stages": [to_dict(estimate) for estimate in estimates]})
        return
    for estimate in estimates:
        line(f"# {describe(estimate)}")
    line(to_toml(config).rstrip())


def _simulate(config: AnyConfig, wanted: str, stage: str, hardware: str, *, json: bool) -> None:
    """One table a rank: traced beside planned."""
    from herd.base.errors import UsageError
    from herd.base.progress import track_steps
    from herd.cli.output import print_json
    from herd.cli.simulate_tables import show_rank
    from herd.recipes.config import RecipeConfig
    from herd.recipes.simulate import ranks_to_trace, simulate_recipe

    if not isinstance(config, RecipeConfig):
        raise UsageError("--simulate is for recipes from random weights", hint="a post-training run has one process")
    ranks = ranks_to_trace(config.parallel, wanted)
    with track_steps("tracing", total=len(ranks)) as advance:
        reports = simulate_recipe(config, ranks=ranks, stage_name=stage, hardware=hardware, advance=advance)
    if json:
        print_json([report.to_dict() for report in reports])
        return
    for report in reports:
        show_rank(report)


def _inspect(config: AnyConfig, data: Path | None, place: Path, *, json: bool) -> None:
    import os
    import sys

    from herd.base.config_io import to_dict
    from herd.cli.output import line, print_json
    from herd.recipes.config import RecipeConfig
    from herd.recipes.inspect import inspect_recipe, inspect_tune

    colour = not json and sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if isinstance(config, RecipeConfig):
        views = inspect_recipe(config, data=data, output=place, colour=colour)
    else:
        views = inspect_tune(config, data=data, output=place, colour=colour)
    if json:
        print_json([to_dict(view) for view in views])
        return
    line(f"what counts in the loss is {'green' if colour else 'between ⟦ and ⟧'}")
    for view in views:
        line(f"\n{view.stage} / {view.source}: {view.num_rows:,} rows, {view.share_filled:.1%} filled, {view.share_counted:.1%} counted")
        line(view.sample)


def _report(arguments: list[str], output: Path | None, *, json: bool) -> None:
    """`herd train report RUN`."""
    from herd.base.config_io import to_dict
    from herd.base.errors import UsageError
    from herd.cli.output import note, print_json
    from herd.recipes.config import PowerConfig
    from herd.recipes.registry import find_recipe
    from herd.train.report import write_report

    if len(arguments) != 1:
        raise UsageError(f"report takes the folder of one run, here {len(arguments)}", hint="herd train report runs/tiny")
    run = Path(arguments[0])
    saved = run / "config.toml"
    power = getattr(find_recipe(str(saved)), "power", PowerConfig()) if saved.is_file() else PowerConfig()
    target = output or run / "report.html"
    summaries = write_report(run, target, pue=power.pue, grid_kg_per_kwh=power.grid_kg_per_kwh)
    if json:
        print_json({"page": str(target), "stages": [to_dict(summary) for summary in summaries]})
    else:
        note(f"wrote {target}")


def _place(name: str) -> Path:
    """The folder of a run without --output. Raises ConfigError for a name that would lead out of runs/."""
    from herd.base.errors import ConfigError

    if not name.isprintable() or name in ("", ".", "..") or any(mark in name for mark in "/\\"):
        raise ConfigError(f"the recipe's name is {name!r}, which is no name of a folder", hint="pass --output FOLDER, or correct the name")
    return Path("runs") / name


def _stage(stage: object) -> dict[str, object]:
    from herd.base.config_io import to_dict

    return to_dict(stage)
