"""An engine over several processes of this machine, from a checkpoint: sizes planned, processes started, each with its share."""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from herd.base.errors import ConfigError
from herd.base.log import LEVELS
from herd.checkpoint.hf import main_dtype
from herd.checkpoint.hf_config import DTYPE_NAMES
from herd.checkpoint.load import as_dtype, save_model
from herd.checkpoint.open import open_checkpoint
from herd.engine.grammar.compiler import GrammarCompiler
from herd.engine.memory import EngineConfig, MemoryPlan
from herd.engine.parallel.engine import ParallelEngine
from herd.engine.parallel.layout import Layout
from herd.engine.parallel.plan import plan_ranks, resolved, with_context
from herd.engine.parallel.rank import RankSpec, make_pool, make_runner, schedule_sizes
from herd.engine.parallel.replica import LeadScheduler
from herd.engine.parallel.workers import Workers
from herd.engine.speculation import PromptLookup
from herd.kernels.dispatch import num_threads, set_num_threads
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer

DEFAULT_TIMEOUT_S = 30.0
"""A rank that says nothing for so long is given up; each says something four times a second."""


def build_parallel_engine(
    model: Path | str | Transformer,
    config: EngineConfig | None = None,
    *,
    tp: int = 1,
    pp: int = 1,
    dtype: torch.dtype | str | None = None,
    vocab_size: int | None = None,
    grammars: Callable[[], GrammarCompiler] | None = None,
    clock: Callable[[], float] = time.monotonic,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> ParallelEngine:
    """Start `tp` x `pp` - 1 processes beside this one, and return an engine that is ready.

    Args:
        model: a checkpoint, of which every process reads its share; a model in memory is written to a temporary folder first.
        config: the sizes; a memory limit is each process's own.
        tp: processes that share every layer.
        pp: stages that have the layers behind one another.
        dtype: of weights and activations; None takes the stored one.
        vocab_size: ids that the tokenizer has, where the model has rows to spare.
        grammars: makes the compiler of grammars, at first use.
        clock: seconds, for metrics.
        timeout_s: after so long without a word a process is taken to hang.

    The kernels' threads are shared out evenly between the processes, this one included until `close`.

    Raises:
        ConfigError: the model cannot be split so, or sizes contradict each other.
        DoesNotFitError: a rank's memory limit leaves no room for one sequence of the context.
        EngineError: a process died or hung at its start.
    """
    if config is not None and config.prefix_dir is not None:
        raise ConfigError("a model over several processes keeps no prefixes on disk", hint="leave out prefix_dir, or tp and pp")
    folder = Path(tempfile.mkdtemp(prefix="herd-ranks-"))
    try:
        if isinstance(model, Transformer):
            save_model(model, folder / "model")
            model = folder / "model"
        spec, model_config, plans = _plan(Path(model), config or EngineConfig(), Layout(tp=tp, pp=pp), dtype, vocab_size, folder)
        return _start(spec, model_config, plans, grammars=grammars, clock=clock, timeout_s=timeout_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _plan(
    path: Path, config: EngineConfig, layout: Layout, dtype: torch.dtype | str | None, vocab_size: int | None, folder: Path
) -> tuple[RankSpec, ModelConfig, list[MemoryPlan]]:
    """Rank 0's spec, the model, and every rank's memory."""
    with open_checkpoint(path) as source:
        model = source.config
        name = DTYPE_NAMES[as_dtype(dtype) if dtype is not None else main_dtype(source)]
    layout.check(model)
    size = min(vocab_size or model.vocab_size, model.vocab_size)
    plans = plan_ranks(model, with_context(model, config, dtype=name, layout=layout), dtype=name, layout=layout, vocab_size=size)
    level = logging.getLevelName(logging.getLogger("herd").level).lower()
    spec = RankSpec(
        rank=0,
        tp=layout.tp,
        pp=layout.pp,
        folder=str(folder),
        path=str(path),
        dtype=name,
        sizes=resolved(config, plans),
        vocab_size=size,
        key=secrets.token_bytes(32).hex(),
        threads=max(1, num_threads() // layout.size),
        log_level=level if level in LEVELS else None,
    )
    return spec, model, plans


def _start(
    spec: RankSpec,
    model_config: ModelConfig,
    plans: list[MemoryPlan],
    *,
    grammars: Callable[[], GrammarCompiler] | None,
    clock: Callable[[], float],
    timeout_s: float,
) -> ParallelEngine:
    threads = num_threads()
    workers = Workers(spec.layout.size, timeout_s=timeout_s)
    with contextlib.ExitStack() as undo:
        undo.callback(set_num_threads, threads)
        undo.callback(workers.close)
        workers.send_each({rank: replace(spec, rank=rank).to_dict() for rank in range(1, spec.layout.size)})
        workers.wait("up")
        try:
            runner = make_runner(spec)
        except RuntimeError as error:
            raise workers.verdict() or error from error
        workers.wait("ready")
        scheduler = LeadScheduler(make_pool(spec), **{**schedule_sizes(spec), "clock": clock})
        engine = ParallelEngine(
            workers,
            runner,
            scheduler,
            model_config=model_config,
            plans=plans,
            dtype=spec.dtype,
            on_close=partial(set_num_threads, threads),
            context=plans[0].context,
            guesser=PromptLookup(spec.sizes.num_draft) if spec.sizes.num_draft else None,
            grammars=grammars,
            clock=clock,
        )
        undo.pop_all()
        return engine
