"""A mix as a file: token folders, limits of epochs, phases of weights, the length of a row and the seed. What a trainer opens.

sequence_length = 8192
seed = 0
[sources.web]
tokens = "tokens/web"        # a folder of `herd data tokenize`, relative to this file
max_epochs = 2
[[phases]]
from_sample = 0
weights = { web = 0.8, books = 0.2 }
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from herd.base.config_io import from_dict
from herd.base.errors import ConfigError, NotFoundError
from herd.data.loader import StreamMixture
from herd.data.packed import PackedTokens
from herd.data.schedule import MixPhase
from herd.data.token_shards import TokenDataset


@dataclass(frozen=True, kw_only=True, slots=True)
class MixSource:
    """One source: its tokens, how often it may be read (0: as often as it takes), whether documents longer than a row are cut."""

    tokens: str
    max_epochs: float = 0.0
    split: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """What a mix file says, its folders resolved."""

    sources: Mapping[str, MixSource]
    phases: tuple[MixPhase, ...]
    sequence_length: int
    seed: int = 0


def read_mix(path: Path) -> Mix:
    """Read a mix file. Raises NotFoundError, ConfigError for what is not one, naming the key."""
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint="the guide to data shows a mix file") from error
    unknown = set(data) - {"sources", "phases", "sequence_length", "seed"}
    if unknown:
        raise ConfigError(f"unknown key {min(unknown)!r} in {path}", hint="keys: sources, phases, sequence_length, seed")
    sources, phases = data.get("sources"), data.get("phases")
    if not isinstance(sources, dict) or not sources or not isinstance(phases, list) or not phases:
        raise ConfigError(f"{path} needs [sources.NAME] tables and [[phases]]", hint="the guide to data shows a mix file")
    for name in ("sequence_length", "seed"):
        if not isinstance(data.get(name, 0), int):
            raise ConfigError(f"{name} is {data[name]!r}, it must be a whole number", hint=f"write {name} = 8192")
    if "sequence_length" not in data:
        raise ConfigError(f"sequence_length is missing in {path}", hint="the tokens of a row, as 8192")
    found = {
        name: cast("MixSource", from_dict(MixSource, table, where=f"sources.{name}"))
        for name, table in cast("dict[str, Any]", sources).items()
    }
    return Mix(
        sources={
            name: MixSource(tokens=str(path.parent / source.tokens), max_epochs=source.max_epochs, split=source.split)
            for name, source in found.items()
        },
        phases=tuple(_phase(table, number) for number, table in enumerate(cast("list[Any]", phases))),
        sequence_length=int(data["sequence_length"]),
        seed=int(data.get("seed", 0)),
    )


def _phase(table: Any, number: int) -> MixPhase:
    if not isinstance(table, dict) or set(cast("dict[str, Any]", table)) != {"from_sample", "weights"}:
        raise ConfigError(f"phases.{number} needs from_sample and weights, and nothing else", hint="weights = { web = 0.8, books = 0.2 }")
    values = cast("dict[str, Any]", table)
    weights = values["weights"]
    if not isinstance(values["from_sample"], int) or not isinstance(weights, dict):
        raise ConfigError(f"phases.{number}: from_sample is a whole number, weights a table", hint="weights = { web = 0.8, books = 0.2 }")
    for name, weight in cast("dict[str, Any]", weights).items():
        if not isinstance(weight, int | float) or isinstance(weight, bool):
            raise ConfigError(
                f"phases.{number}.weights.{name} is {weight!r}, it must be a number", hint="a weight is a share of the samples"
            )
    return MixPhase(from_sample=values["from_sample"], weights=cast("dict[str, float]", weights))


def open_mix(mix: Mix, *, num_samples: int | None = None) -> StreamMixture:
    """The samples of a mix: packs what is not packed yet. Raises ConfigError if the sources have different tokenizers."""
    datasets = {name: TokenDataset(Path(source.tokens)) for name, source in mix.sources.items()}
    if len({dataset.tokenizer for dataset in datasets.values()}) > 1:
        kinds = ", ".join(f"{name} {dataset.tokenizer[:8]}" for name, dataset in datasets.items())
        raise ConfigError(f"the sources were tokenised by different tokenizers: {kinds}", hint="tokenize them again by one")
    rows = {name: PackedTokens(dataset, mix.sequence_length, split=mix.sources[name].split) for name, dataset in datasets.items()}
    limits = {name: source.max_epochs for name, source in mix.sources.items() if source.max_epochs}
    return StreamMixture(rows, mix.phases, seed=mix.seed, max_epochs=limits, num_samples=num_samples)
