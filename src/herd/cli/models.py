"""`herd models` and `herd pull`: what is here, what short names stand for, and fetching from the hub."""

from __future__ import annotations

from typing import Annotated

import typer

from herd.cli.load import JsonOption


def models(
    aliases: Annotated[bool, typer.Option("--aliases", help="List the short names and the hub names they stand for.")] = False,
    fits: Annotated[
        bool, typer.Option("--fits", help="Tell what `herd serve` of each takes, and whether so much is free; Hugging Face's cache too.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List the models on this machine."""
    from herd.base.memory import gib
    from herd.base.registry import ALIASES
    from herd.checkpoint.resolve import installed_models
    from herd.cli.output import note, print_json, table

    if aliases:
        if json:
            print_json(ALIASES)
        else:
            table(list(ALIASES.items()), ("alias", "hub name"))
        return
    if fits:
        _fitting(json=json)
        return
    found = installed_models()
    if json:
        print_json([{"name": model.name, "path": str(model.path), "size_bytes": model.size_bytes} for model in found])
        return
    table([(model.name, gib(model.size_bytes), str(model.path)) for model in found], ("name", "size", "path"))
    note("more: herd pull ORG/NAME; herd models --aliases")


def _fitting(*, json: bool) -> None:
    """What serving takes, for each."""
    from dataclasses import asdict

    from herd.base.memory import available_memory, gib
    from herd.cli.output import print_json, table
    from herd.inference.on_disk import fit_text, models_on_disk, offer

    free = available_memory()
    found = models_on_disk()
    if json:
        offers = [None if free is None else offer(model, free) for model in found]
        told = [{"fits": one is not None, "options": list(one.options) if one else []} for one in offers]
        print_json([{**asdict(model), "free_bytes": free, **more} for model, more in zip(found, told, strict=True)])
        return
    rows = [
        (model.name, gib(model.size_bytes), "-" if model.needs_bytes is None else gib(model.needs_bytes), fit_text(model, free))
        for model in found
    ]
    table(rows, ("name", "on disk", "to serve", "fits now"))


def pull(
    model: Annotated[str, typer.Argument(help="ORG/NAME on the Hugging Face hub, or an alias (herd models --aliases).")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    meta: Annotated[bool, typer.Option("--meta", help="Take Meta's own .pth files instead of safetensors.")] = False,
    include: Annotated[list[str] | None, typer.Option(help="Patterns of files to take instead, as '*.gguf'.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be fetched.")] = False,
    json: JsonOption = False,
) -> None:
    """Fetch a model from the hub. Run it again to go on where it broke off."""
    from herd.base.memory import gib
    from herd.base.progress import track_steps
    from herd.checkpoint import hub
    from herd.cli.output import note, print_json

    plan = hub.plan_pull(model, revision=revision, meta=meta, include=include or ())
    note(f"{plan.name}, {plan.revision} (commit {plan.commit[:8]}): {len(plan.files)} files, {gib(plan.size_bytes)}")
    note(f"{gib(plan.missing_bytes)} of them to fetch into {plan.target}")
    if not dry_run:
        with track_steps(plan.name, total=plan.size_bytes, unit="bytes") as advance:
            hub.pull(plan, report=advance)
        note(f"done: herd chat --model {model}")
    if json:
        files = [{"name": file.name, "size_bytes": file.size_bytes} for file in plan.files]
        print_json({"name": plan.name, "path": str(plan.target), "size_bytes": plan.size_bytes, "files": files})
