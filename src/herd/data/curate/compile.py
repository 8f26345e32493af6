"""From a configuration to a plan of steps.

Stages on one record run together in one pass over a shard. Stages on the whole corpus that stand beside one another share a pass too: the
pass before signs the records for all of them, they are searched one after another (each knows what the ones before drop), and the next pass
applies all their verdicts. A plan therefore has one pass more than it has groups of such stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from herd.base.errors import ConfigError
from herd.data.curate.config import CurateConfig, stage_to_dict
from herd.data.executor.plan import Plan, Shard, Step
from herd.data.executor.shard_run import file_identity
from herd.data.sources import expand
from herd.data.stages.registry import CORPUS_STAGES

_STEPS = "herd.data.curate.steps"
MERGED = "all"
_BEFORE_TEXT = ("url", "url_dedup")


@dataclass(kw_only=True, slots=True)
class _Pass:
    """What one pass applies from the searches before, does to every record, and signs for the searches after."""

    applies: list[Any] = field(default_factory=list)
    stages: list[Any] = field(default_factory=list)
    signs: list[Any] = field(default_factory=list)


def _passes(stages: tuple[Any, ...]) -> list[_Pass]:
    passes = [_Pass()]
    for stage in stages:
        if stage.kind in CORPUS_STAGES:
            passes[-1].signs.append(stage)
        else:
            if passes[-1].signs:
                passes.append(_Pass(applies=passes[-1].signs))
            passes[-1].stages.append(stage)
    if passes[-1].signs:
        passes.append(_Pass(applies=passes[-1].signs))
    return passes


def pass_name(number: int) -> str:
    """The step of a pass."""
    return f"pass-{number}"


def search_name(number: int, order: int, kind: str) -> str:
    """The step of a search after a pass, whose one shard holds the result."""
    return f"search-{number}{chr(ord('a') + order)}-{kind}"


def compile_plan(config: CurateConfig) -> Plan:
    """The plan of a configuration. Raises ConfigError for one without sources or stages, NotFoundError for a file that is not there."""
    if not config.stages:
        raise ConfigError("the config has no stages", hint="add [[stages]], or take a preset: --preset web")
    if not config.sources:
        raise ConfigError("the config has no sources", hint="name files or folders: sources = [...]")
    _check_order(config.stages)
    files = expand(config.sources)
    groups = [tuple(files[start : start + config.files_per_shard]) for start in range(0, len(files), config.files_per_shard)]
    names = [f"{number:05d}" for number in range(len(groups))]
    steps: list[Step] = []
    for number, part in enumerate(_passes(config.stages)):
        steps.append(_pass_step(config, number, part, names, groups))
        for order, stage in enumerate(part.signs):
            steps.extend(_search_steps(number, order, part, stage))
    return Plan(steps=tuple(steps))


def _check_order(stages: tuple[Any, ...]) -> None:
    """Pages have no text before they are extracted: only their addresses can be judged. Without that stage they are read as text."""
    kinds = [stage.kind for stage in stages]
    for kind in kinds[: kinds.index("extract")] if "extract" in kinds else ():
        if kind not in _BEFORE_TEXT:
            raise ConfigError(f"stage {kind} comes before extract", hint=f"only {', '.join(_BEFORE_TEXT)} can; move extract up")


def _pass_step(config: CurateConfig, number: int, part: _Pass, names: list[str], groups: list[tuple[str, ...]]) -> Step:
    results = [search_name(number - 1, order, stage.kind) for order, stage in enumerate(part.applies)]
    after = [f"{name}/{MERGED}" for name in results]
    previous = [] if number == 0 else [pass_name(number - 1)]
    return Step(
        name=pass_name(number),
        function=f"{_STEPS}:run_pass",
        config={
            "previous": previous,
            "text_field": config.text_field,
            "on_damage": config.on_damage,
            "extract": all(stage.kind != "extract" for stage in config.stages),
            "applies": [{"stage": stage_to_dict(stage), "result": result} for stage, result in zip(part.applies, results, strict=True)],
            "stages": [stage_to_dict(stage) for stage in part.stages],
            "signs": [stage_to_dict(stage) for stage in part.signs],
            "depends_on": {file: file_identity(file) for stage in (*part.stages, *part.signs) for file in stage.files()},
        },
        shards=tuple(
            Shard(name=name, files=group if number == 0 else (), after=(*(f"{step}/{name}" for step in previous), *after))
            for name, group in zip(names, groups, strict=True)
        ),
    )


def _search_steps(number: int, order: int, part: _Pass, stage: Any) -> Iterator[Step]:
    """The parts of a search, and what makes one result of them."""
    name = search_name(number, order, stage.kind)
    before = tuple(f"{search_name(number, earlier, part.signs[earlier].kind)}/{MERGED}" for earlier in range(order))
    shared = {"stage": stage_to_dict(stage), "order": order, "pass": pass_name(number), "before": [step.split("/")[0] for step in before]}
    after = (f"{pass_name(number)}/*", *before)
    yield Step(
        name=f"{name}-parts",
        function=f"{_STEPS}:search_part",
        config=shared,
        shards=tuple(Shard(name=f"{index:05d}", after=after) for index in range(stage.parts)),
    )
    yield Step(
        name=name,
        function=f"{_STEPS}:search_merge",
        config={**shared, "parts": f"{name}-parts"},
        shards=(Shard(name=MERGED, after=(*after, f"{name}-parts/*")),),
    )
