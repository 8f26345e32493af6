"""Models that lie on this machine, and what `herd serve` of each takes: read from headers, planned as the engine plans, loading nothing.

    python -m herd.inference.on_disk      the list as JSON, for a server that keeps torch out of its own process

`offer` says of a model whether it fits into so many bytes, and with which options.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from herd.base.errors import ConfigError, HerdError
from herd.base.memory import gib

LEAST_CONTEXT = 2048
"""Less is not offered."""
_MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskModel:
    """A model on disk.

    Attributes:
        name: what `herd serve` calls it by.
        path: where it is.
        size_bytes: its files.
        num_parameters, dtype, context: of the model as it would be served; None where there is a problem.
        needs_bytes: what the engine would allocate in all, with the context that it would take by default.
        fixed_bytes: of it, all but the cache.
        token_bytes: of the cache, what one token takes.
        problem: why it cannot be served.
    """

    name: str
    path: str
    size_bytes: int
    num_parameters: int | None = None
    dtype: str | None = None
    context: int | None = None
    needs_bytes: int | None = None
    fixed_bytes: int | None = None
    token_bytes: int | None = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """How a model fits: the bytes that it takes, its context, and options of `herd serve` that it needs for that."""

    needs_bytes: int
    context: int
    options: tuple[str, ...] = ()


def models_on_disk() -> list[DiskModel]:
    """What ships, what is in herd's folder, and every Llama in Hugging Face's cache."""
    from herd.checkpoint.resolve import InstalledModel, cached_models, installed_models

    def told(model: InstalledModel) -> DiskModel:
        common: dict[str, Any] = {"name": model.name, "path": str(model.path), "size_bytes": model.size_bytes}
        try:
            return DiskModel(**common, **_planned(model.path))
        except HerdError as error:
            return DiskModel(**common, problem=error.message)

    found = [told(model) for model in installed_models()]
    names = {model.name for model in found}
    # The cache is everyone's: what is no Llama there is no one's mistake.
    return found + [one for one in map(told, cached_models()) if one.problem is None and one.name not in names]


def _planned(path: Path) -> dict[str, Any]:
    """What serving a checkpoint on the CPU takes. Raises HerdError for what cannot be served."""
    import torch

    from herd.checkpoint.hf import main_dtype
    from herd.checkpoint.load import outline_of
    from herd.checkpoint.open import open_checkpoint
    from herd.checkpoint.source import DTYPE_NAMES
    from herd.engine.build import plan_for
    from herd.engine.memory import EngineConfig, cache_bytes_per_token, with_context

    with open_checkpoint(path) as source:
        dtype = main_dtype(source)
        kind = DTYPE_NAMES.get(dtype)
        if kind is None:
            raise ConfigError(f"its weights are {dtype}", hint="convert it: herd convert")
        outline = outline_of(source, dtype)
    plan = plan_for(outline, with_context(outline.config, EngineConfig(), dtype=kind), device=torch.device("cpu"))
    return {
        "num_parameters": outline.config.num_parameters,
        "dtype": kind,
        "context": plan.context,
        "needs_bytes": plan.total_bytes,
        "fixed_bytes": plan.total_bytes - plan.cache_bytes,
        "token_bytes": cache_bytes_per_token(outline.config, kind),
    }


def offer(model: DiskModel, room_bytes: int) -> Offer | None:
    """How a model fits into so many bytes: as it would be served by default, or with less context; None where it does not."""
    if model.needs_bytes is None or model.context is None or model.fixed_bytes is None or model.token_bytes is None:
        return None
    if model.needs_bytes <= room_bytes:
        return Offer(needs_bytes=model.needs_bytes, context=model.context)
    room_bytes = room_bytes // _MIB * _MIB
    # One block of the cache is nobody's, and a context ends within a block: some tokens less than the room holds.
    context = min(model.context, (room_bytes - model.fixed_bytes) // model.token_bytes - 64) // 1024 * 1024
    if context < LEAST_CONTEXT:
        return None
    return Offer(needs_bytes=room_bytes, context=context, options=("--memory", f"{room_bytes // _MIB}MiB", "--context", str(context)))


def from_dict(data: Mapping[str, Any]) -> DiskModel:
    """A model of the list that `main` writes."""
    return DiskModel(**data)


def fit_text(model: DiskModel, room_bytes: int | None) -> str:
    """For people: `fits`, with which options, or why not."""
    if model.problem is not None:
        return model.problem
    if room_bytes is None:
        return "unknown: the system does not tell its free memory"
    found = offer(model, room_bytes)
    if found is None:
        return f"no: {gib(room_bytes)} are free"
    return "yes" if not found.options else "with " + " ".join(found.options)


def main() -> None:
    """Write the list."""
    json.dump([asdict(model) for model in models_on_disk()], sys.stdout)


if __name__ == "__main__":
    main()
