"""`herd launch`: start a recipe on its mesh, or write what starts it on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from herd.cli.load import JsonOption


def launch(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or the config.toml of an earlier run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Dotted overrides; those of `parallel` make the mesh, as parallel.tp=2 parallel.dp_shard=4.")
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="torchrun starts it here, on one machine; slurm and jobset (Kubernetes) print a script.")
    ] = "torchrun",
    per_node: Annotated[int, typer.Option(help="Processes, and devices, a machine.")] = 8,
    restarts: Annotated[int, typer.Option(help="How often a failed run is started again.")] = 3,
    data: Annotated[Path | None, typer.Option(help="Data folder; on a cluster one that all machines see.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the run, which all machines see.")] = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu.")] = "cuda",
    time: Annotated[str, typer.Option(help="Slurm: the job's time limit.")] = "24:00:00",
    partition: Annotated[str | None, typer.Option(help="Slurm: the partition.")] = None,
    image: Annotated[str, typer.Option(help="Kubernetes: the container image, with herd in it.")] = "herd:latest",
    volume: Annotated[str, typer.Option(help="Kubernetes: the claim of the shared volume, mounted at /runs.")] = "runs",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print torchrun's command instead of starting it.")] = False,
    json: JsonOption = False,
) -> None:
    """Start a recipe on many devices, or print what starts it: `herd launch llama-8b parallel.dp_shard=8`.

    `--kind slurm` prints a script for sbatch, `--kind jobset` a manifest for kubectl; nothing is submitted. The mesh is checked first.
    """
    from herd.base.config_io import apply_overrides
    from herd.base.errors import UsageError
    from herd.cli.output import line, print_json
    from herd.recipes.config import RecipeConfig
    from herd.recipes.launch import Launch, jobset_manifest, slurm_script
    from herd.recipes.registry import find_recipe

    config = apply_overrides(find_recipe(recipe), overrides or [])
    if not isinstance(config, RecipeConfig):
        raise UsageError(f"{recipe} runs in one process", hint=f"herd train {recipe}")
    if kind not in ("torchrun", "slurm", "jobset"):
        raise UsageError(f"--kind is {kind!r}", hint="choose torchrun, slurm or jobset")
    config.parallel.check(config.model)
    job = Launch(
        recipe=recipe,
        overrides=tuple(overrides or ()),
        world_size=config.parallel.world_size,
        per_node=per_node,
        restarts=restarts,
        output=str(output) if output else None,
        data=str(data) if data else None,
        device=device,
    )
    name = f"herd-{config.name}"
    texts = {
        "slurm": lambda: slurm_script(job, time=time, name=name, partition=partition),
        "jobset": lambda: jobset_manifest(job, image=image, name=name, volume_claim=volume),
    }
    if kind in texts:
        text = texts[kind]()
        print_json({"kind": kind, "nodes": job.num_nodes, "processes": job.world_size, "text": text}) if json else line(text.rstrip())
        return
    if job.num_nodes > 1 and not dry_run:
        raise UsageError(
            f"the mesh has {job.world_size} processes, one machine has {per_node}", hint="print a script by --kind slurm or --kind jobset"
        )
    command = job.torchrun(head="HEAD")
    if json:
        print_json({"kind": kind, "nodes": job.num_nodes, "processes": job.world_size, "command": command})
    elif dry_run:
        import shlex

        line(shlex.join(command))
    if not json and not dry_run:
        _start(job.torchrun(python=_torchrun()), device=device)


def _torchrun() -> tuple[str, ...]:
    """This Python's torchrun."""
    import sys

    return sys.executable, "-m", "torch.distributed.run"


def _start(command: list[str], *, device: str) -> None:
    """Become torchrun, so that signals and the exit code are its own."""
    import os

    if device == "cpu":
        # Without it a restart of gloo's processes on one machine hangs on some networks.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.execv(command[0], command)
