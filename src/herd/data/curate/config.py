"""What a run of curation is: sources and stages in order, as a TOML file with one `[[stages]]` table a stage, or a preset.

A stage's table holds its `kind` and whichever of its values differ from the defaults.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import tomli_w

from herd.base.config_io import SCHEMA_VERSION, from_dict, to_dict
from herd.base.errors import ConfigError, UsageError, did_you_mean
from herd.data.dedup.distribution import TokenDistribution
from herd.data.dedup.keys import ExactDedup, UrlDedup
from herd.data.dedup.lines import LineDedup
from herd.data.dedup.minhash import MinHashDedup
from herd.data.stages.dirty_words import DirtyWords
from herd.data.stages.heuristics import Heuristics
from herd.data.stages.language import LanguageFilter
from herd.data.stages.page import ExtractText
from herd.data.stages.pii import PiiRemoval
from herd.data.stages.registry import STAGES
from herd.data.stages.repetition import Repetition
from herd.data.stages.routes import Routes
from herd.data.stages.url import UrlFilter


@dataclass(frozen=True, kw_only=True, slots=True)
class CurateConfig:
    """A run. `sources` are files, folders, globs or URLs; a shard of the work is `files_per_shard` of their files.

    `text_field` names the records' text. `on_damage` says whether a damaged file ends the run or is left from where it is damaged on.
    """

    name: str = "curate"
    sources: tuple[str, ...] = ()
    stages: tuple[Any, ...] = ()
    text_field: str = "text"
    files_per_shard: int = 1
    on_damage: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        if self.files_per_shard < 1:
            raise ConfigError(f"files_per_shard is {self.files_per_shard}", hint="at least 1")


def stage_to_dict(stage: Any) -> dict[str, Any]:
    """A stage as its table."""
    return {"kind": stage.kind, **to_dict(stage)}


def stage_from_dict(table: Any, where: str = "stage") -> Any:
    """A stage of a table. Raises ConfigError for an unknown kind, key or value."""
    if not isinstance(table, dict) or not isinstance(cast("dict[str, Any]", table).get("kind"), str):
        raise ConfigError(f"{where} has no kind", hint="kinds: " + ", ".join(STAGES))
    values = dict(cast("dict[str, Any]", table))
    kind = values.pop("kind")
    if kind not in STAGES:
        raise ConfigError(
            f"{where} is of an unknown kind {kind!r}", hint=did_you_mean(kind, STAGES, otherwise="kinds: " + ", ".join(STAGES))
        )
    return from_dict(STAGES[kind], values, where=where)


def to_toml(config: CurateConfig) -> str:
    """A configuration as TOML that `from_toml` reads back."""
    values = {name: getattr(config, name) for name in ("name", "sources", "text_field", "files_per_shard", "on_damage")}
    return tomli_w.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
            "stages": [stage_to_dict(stage) for stage in config.stages],
        }
    )


def from_toml(text: str) -> CurateConfig:
    """Read a configuration. Raises ConfigError for what is not one, naming the key."""
    try:
        data = tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"the config is not TOML: {error}", hint="see one: herd data curate --preset web --dry-run") from error
    version = data.pop("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ConfigError(f"the config has schema_version {version!r}, this herd reads {SCHEMA_VERSION}", hint="use the herd that wrote it")
    tables = data.pop("stages", [])
    if not isinstance(tables, list):
        raise ConfigError("stages is no list of tables", hint="write each stage as [[stages]]")
    stages = tuple(stage_from_dict(table, f"stages.{number}") for number, table in enumerate(cast("list[Any]", tables)))
    config = from_dict(CurateConfig, {**data, "stages": []}, where="")
    return CurateConfig(**{**{name: getattr(config, name) for name in CurateConfig.__slots__}, "stages": stages})


def _web() -> tuple[Any, ...]:
    """A crawl, in the paper's order: addresses, languages, duplicates, rules of thumb, personal data."""
    return (
        UrlFilter(),
        ExtractText(),
        Routes(),
        LanguageFilter(routes=("prose", "maths")),
        UrlDedup(),
        ExactDedup(),
        MinHashDedup(),
        LineDedup(),
        TokenDistribution(),
        Heuristics(),
        Repetition(),
        DirtyWords(),
        PiiRemoval(),
    )


def _clean() -> tuple[Any, ...]:
    """Collections that people made with care, whose language is known: duplicates, short or repetitive texts and personal data go.

    Duplicates come last: what looks at one record at a time is then one pass, which counts a text's words once.
    """
    return (
        ExtractText(),
        LanguageFilter(trust_label=True),
        Routes(),
        Heuristics(min_words=10, max_words=1_000_000, max_symbols_per_word=0.2, max_broken_lines=0.5),
        Repetition(top=(0.30, 0.27, 0.24), repeated=(0.35, 0.33, 0.31, 0.29, 0.27, 0.25)),
        DirtyWords(),
        PiiRemoval(),
        ExactDedup(),
        MinHashDedup(),
    )


def _dedup() -> tuple[Any, ...]:
    """Duplicates only: by address, text, near likeness and line."""
    return (ExtractText(), UrlDedup(), ExactDedup(), MinHashDedup(), LineDedup())


PRESETS: dict[str, Callable[[], tuple[Any, ...]]] = {"web": _web, "clean": _clean, "dedup": _dedup}
"""Stages by the name of a preset."""


def preset(name: str) -> tuple[Any, ...]:
    """The stages of a preset. Raises UsageError for an unknown one."""
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}", hint=did_you_mean(name, PRESETS, otherwise="presets: " + ", ".join(PRESETS)))
    return PRESETS[name]()


def describe_presets() -> Mapping[str, Sequence[str]]:
    """The kinds of stages of every preset."""
    return {name: [stage.kind for stage in make()] for name, make in PRESETS.items()}
