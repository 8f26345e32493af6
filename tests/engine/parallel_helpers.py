"""Engines over several processes for tests: a tiny checkpoint, sizes that suit it, and answers compared."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import torch
from small_model import CONFIG, CONTEXT, Answer  # pyright: ignore[reportMissingImports]

from herd.checkpoint.load import save_model
from herd.engine.memory import EngineConfig
from herd.engine.parallel.build import build_parallel_engine
from herd.engine.parallel.engine import ParallelEngine
from herd.model.init import initialise
from herd.model.transformer import Transformer

SIZES = EngineConfig(context=CONTEXT, token_budget=160, max_sequences=64, num_blocks=4000)
"""A budget over two of the smallest pieces, so that stages share long steps."""


def checkpoint(folder: Path, **changes: object) -> Path:
    """A random model of four layers on disk."""
    with torch.device("meta"):
        model = Transformer(replace(CONFIG, **{"num_hidden_layers": 4, **changes}))  # pyright: ignore[reportArgumentType]
    save_model(initialise(model, seed=11).eval(), folder)
    return folder


def parallel_engine(
    model: Path | Transformer,
    *,
    tp: int = 1,
    pp: int = 1,
    dtype: str | None = None,
    draft: Transformer | None = None,
    timeout_s: float = 30.0,
    **changes: object,
) -> ParallelEngine:
    """An engine that answers; close it."""
    config = replace(SIZES, **changes)  # pyright: ignore[reportArgumentType]
    return build_parallel_engine(model, config, tp=tp, pp=pp, dtype=dtype, draft=draft, timeout_s=timeout_s)


def token_ids(found: list[Answer]) -> list[list[int]]:
    """The ids of answers, without their log-probabilities."""
    return [[one.token_id for _, one in answer] for answer in found]


def is_gone(pid: int) -> bool:
    """Whether a process has ended, be it that no one has taken note yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def all_gone(pids: list[int], within_s: float) -> bool:
    """Whether every process has ended in time."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if all(is_gone(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False
