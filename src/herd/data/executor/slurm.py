"""A plan as Slurm job arrays: one script a step, chained by `afterok`; each array task takes every M-th shard.

Renders text, and calls `sbatch` where it is asked to. The tasks run `herd data run PLAN --step STEP --task N --tasks M`, which does what
the local executor does to a shard, so a task that was killed is simply submitted again.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from herd.base.errors import ConfigError, HerdError, NotFoundError
from herd.data.executor.plan import PLAN_FILE, Plan, Step


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmOptions:
    """What the cluster is asked for. `max_tasks` bounds an array (MaxArraySize), `at_once` how many of its tasks run together (0: all)."""

    partition: str | None = None
    account: str | None = None
    time: str = "04:00:00"
    memory: str = "8G"
    cpus: int = 1
    max_tasks: int = 1000
    at_once: int = 0
    setup: str = ""

    def __post_init__(self) -> None:
        for name in ("partition", "account", "time", "memory"):
            value = getattr(self, name)
            if value is not None and (not value.isprintable() or " " in value or not value):
                raise ConfigError(f"{name} is {value!r}, which sbatch would not take", hint="one word without spaces")
        for name, least in (("cpus", 1), ("max_tasks", 1), ("at_once", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least {least}", hint=f"leave {name} out for the default")


def num_tasks(step: Step, options: SlurmOptions) -> int:
    """Tasks of a step's array."""
    return max(1, min(len(step.shards), options.max_tasks))


def render(plan: Plan, folder: Path, options: SlurmOptions) -> dict[str, str]:
    """The script of every step, by its name."""
    return {step.name: _script(step, folder.absolute(), options) for step in plan.steps}


def _script(step: Step, folder: Path, options: SlurmOptions) -> str:
    if "\n" in str(folder):
        raise ConfigError(f"the folder {str(folder)!r} holds a line break", hint="choose another --output")
    count = num_tasks(step, options)
    limit = f"%{options.at_once}" if options.at_once else ""
    asked = {
        "job-name": f"herd-{step.name}",
        "array": f"0-{count - 1}{limit}",
        "cpus-per-task": str(options.cpus),
        "mem": options.memory,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "output": str(folder / "logs" / f"{step.name}-%a.log"),
    }
    lines = ["#!/bin/bash", *(f"#SBATCH --{name}={shlex.quote(value)}" for name, value in asked.items() if value is not None)]
    command = [sys.executable, "-m", "herd", "data", "run", str(folder / PLAN_FILE), "--step", step.name, "--tasks", str(count)]
    lines += ["set -euo pipefail", *([options.setup] if options.setup else [])]
    lines.append(f'exec {shlex.join(command)} --task "${{SLURM_ARRAY_TASK_ID:?}}"')
    return "\n".join(lines) + "\n"


def write_scripts(plan: Plan, folder: Path, options: SlurmOptions) -> list[Path]:
    """Write the scripts below the run's folder, numbered in their order, and the folder of their logs; returns their paths."""
    place = folder / "slurm"
    place.mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    paths: list[Path] = []
    for number, (name, text) in enumerate(render(plan, folder, options).items()):
        paths.append(place / f"{number:02d}-{name}.sbatch")
        paths[-1].write_text(text, encoding="utf-8")
    return paths


def submit(scripts: list[Path]) -> list[str]:
    """Hand the scripts to sbatch, each to start when the one before has ended well; returns the job ids.

    Raises NotFoundError where there is no sbatch, HerdError with its words where it refuses.
    """
    program = shutil.which("sbatch")
    if program is None:
        raise NotFoundError("there is no sbatch on this machine", hint=f"take {scripts[0].parent} to the cluster, or leave --submit out")
    ids: list[str] = []
    for script in scripts:
        after = [f"--dependency=afterok:{ids[-1]}"] if ids else []
        done = subprocess.run([program, "--parsable", *after, str(script)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise HerdError(f"sbatch refused {script.name}: {done.stderr.strip()}", hint="set what the cluster asks for, as --partition")
        ids.append(done.stdout.strip().partition(";")[0])
    return ids
