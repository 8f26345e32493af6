"""A plan: steps in order, each one pure function over named shards. It is data (JSON), so that another process or machine can take a part.

A step's shard reads files and the output folders of shards of earlier steps (`after`: "clean/00003", or "clean/*" for all of them); it
writes into a folder of its own, which appears whole or not at all. Knows nothing of what the functions do, nor of who calls them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.base.atomic import atomic_file
from herd.base.config_io import from_dict, to_dict
from herd.base.errors import ConfigError, FormatError, NotFoundError, UsageError, did_you_mean

PLAN_VERSION = 1
PLAN_FILE = "plan.json"
DONE_FILE = "done.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One part of a step: source files (paths or URLs), and the finished shards that it reads besides."""

    name: str
    files: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One function, its configuration (plain JSON) and its shards. `function` is "package.module:name"."""

    name: str
    function: str
    shards: tuple[Shard, ...]
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [self.name, *(shard.name for shard in self.shards)]
        for name in names:
            if not name or name.startswith(".") or not all(letter.isalnum() or letter in "-_." for letter in name):
                raise ConfigError(f"step {self.name!r}: {name!r} is no name of a folder", hint="letters, digits, - and _")
        if len(set(names[1:])) != len(names) - 1:
            raise ConfigError(f"step {self.name!r} has two shards of one name", hint="name every shard once")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Steps that are carried out one after another; within a step, shards in any order and at the same time."""

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        known: dict[str, set[str]] = {}
        for step in self.steps:
            if step.name in known:
                raise ConfigError(f"two steps are named {step.name!r}", hint="name every step once")
            for reference in (reference for shard in step.shards for reference in shard.after):
                before, _, shard = reference.partition("/")
                if before not in known or (shard != "*" and shard not in known[before]):
                    raise ConfigError(f"step {step.name!r} reads {reference!r}, which no earlier step makes", hint="order the steps")
            known[step.name] = {shard.name for shard in step.shards}

    def step(self, name: str) -> Step:
        """A step by its name. Raises UsageError for one that is not there."""
        for step in self.steps:
            if step.name == name:
                return step
        names = [step.name for step in self.steps]
        raise UsageError(f"the plan has no step {name!r}", hint=did_you_mean(name, names, otherwise="steps: " + ", ".join(names)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a step's function is given: its shard's number and files, the folders of what it comes after, and its own empty folder."""

    name: str
    number: int
    config: Mapping[str, Any]
    files: tuple[str, ...]
    inputs: Mapping[str, tuple[Path, ...]]
    output: Path

    def input(self, step: str) -> Path:
        """The one folder of an earlier step that this shard reads."""
        (folder,) = self.inputs[step]
        return folder


def inputs_of(plan: Plan, shard: Shard, folder: Path) -> dict[str, tuple[Path, ...]]:
    """The folders that a shard reads, by step, in the order of the plan."""
    found: dict[str, list[Path]] = {}
    for reference in shard.after:
        name, _, wanted = reference.partition("/")
        members = [member.name for member in plan.step(name).shards] if wanted == "*" else [wanted]
        found.setdefault(name, []).extend(folder / name / member for member in members)
    return {name: tuple(paths) for name, paths in found.items()}


def write_plan(plan: Plan, folder: Path) -> Path:
    """Save a plan into its folder; returns the file."""
    path = folder / PLAN_FILE
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({"version": PLAN_VERSION, **to_dict(plan)}, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def read_plan(path: Path) -> Plan:
    """Read a plan that `write_plan` saved. Only functions of herd itself may be named in a file: a plan is data, never code.

    Raises NotFoundError, FormatError for a file of another shape.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", hint=f"name the {PLAN_FILE} of a run") from error
    except ValueError as error:
        raise FormatError(f"{path} is not JSON: {error}", hint="make the plan anew: herd data curate CONFIG --plan-only") from error
    if not isinstance(data, dict) or data.pop("version", None) != PLAN_VERSION:
        raise FormatError(f"{path} is no plan of version {PLAN_VERSION}", hint="make the plan anew: herd data curate CONFIG --plan-only")
    plan = Plan(steps=tuple(_step(item, path) for item in data.get("steps", ())))
    for step in plan.steps:
        if not step.function.startswith("herd."):
            raise FormatError(f"{path}: step {step.name!r} calls {step.function!r}", hint="a plan file may call herd's functions only")
    return plan


def _step(item: Any, path: Path) -> Step:
    try:
        shards = tuple(from_dict(Shard, shard, where="shard") for shard in item["shards"])
        return Step(name=item["name"], function=item["function"], config=item.get("config", {}), shards=shards)
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path}: a step of another shape ({error})", hint="make the plan anew") from error


def all_shards(plan: Plan) -> Iterator[tuple[Step, int]]:
    """Every (step, shard number), in order."""
    for step in plan.steps:
        for number in range(len(step.shards)):
            yield step, number
