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
from herd.checkpoint.load import as_dtype, save_model
from herd.checkpoint.open import open_checkpoint
from herd.checkpoint.source import DTYPE_NAMES
from herd.engine.build import check_vocabularies, make_guesser
from herd.engine.disk.block_file import FRAME_BYTES
from herd.engine.disk.build import check_limit, open_secret
from herd.engine.grammar.compiler import GrammarCompiler
from herd.engine.memory import EngineConfig, MemoryPlan
from herd.engine.parallel.engine import ParallelEngine
from herd.engine.parallel.layout import Layout
from herd.engine.parallel.lead_disk import LeadDisk
from herd.engine.parallel.plan import DraftSize, plan_ranks, resolved, with_context
from herd.engine.parallel.rank import RankSpec, make_pool, make_runner, open_share, schedule_sizes
from herd.engine.parallel.replica import LeadScheduler
from herd.engine.parallel.shard_runner import ShardRunner
from herd.engine.parallel.workers import Workers
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
    draft: Transformer | None = None,
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
        draft: a smaller model of the same vocabulary, on the CPU; it stays whole in this process and guesses tokens for all to verify.
        grammars: makes the compiler of grammars, at first use.
        clock: seconds, for metrics.
        timeout_s: after so long without a word a process is taken to hang.

    The kernels' threads are shared out evenly between the processes, this one included until `close`.

    Raises:
        ConfigError: the model cannot be split so, sizes contradict each other, a draft model of another vocabulary or device, or a
            prefix_dir that cannot be one.
        DoesNotFitError: a rank's memory limit leaves no room for one sequence of the context.
        EngineError: a process died or hung at its start.
    """
    folder = Path(tempfile.mkdtemp(prefix="herd-ranks-"))
    try:
        if isinstance(model, Transformer):
            save_model(model, folder / "model")
            model = folder / "model"
        layout = Layout(tp=tp, pp=pp)
        spec, model_config, plans = _plan(Path(model), config or EngineConfig(), layout, dtype, vocab_size, draft, folder)
        return _start(spec, model_config, plans, draft=draft, grammars=grammars, clock=clock, timeout_s=timeout_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _plan(
    path: Path,
    config: EngineConfig,
    layout: Layout,
    dtype: torch.dtype | str | None,
    vocab_size: int | None,
    draft: Transformer | None,
    folder: Path,
) -> tuple[RankSpec, ModelConfig, list[MemoryPlan]]:
    """Rank 0's spec, the model, and every rank's memory."""
    with open_checkpoint(path) as source:
        model = source.config
        name = DTYPE_NAMES[as_dtype(dtype) if dtype is not None else main_dtype(source)]
    layout.check(model)
    size = min(vocab_size or model.vocab_size, model.vocab_size)
    sizes = with_context(model, config, dtype=name, layout=layout)
    plans = plan_ranks(model, sizes, dtype=name, layout=layout, vocab_size=size, draft=_draft_size(draft, model, vocab_size))
    sizes = resolved(config, plans)
    secret = None
    if sizes.prefix_dir is not None:
        check_limit(sizes.prefix_dir_bytes, sum(plan.cache_bytes // plan.num_blocks + FRAME_BYTES for plan in plans))
        secret = open_secret(sizes.prefix_dir)
        sizes = sizes if secret is not None else replace(sizes, prefix_dir=None)
    level = logging.getLevelName(logging.getLogger("herd").level).lower()
    spec = RankSpec(
        rank=0,
        tp=layout.tp,
        pp=layout.pp,
        folder=str(folder),
        path=str(path),
        dtype=name,
        sizes=sizes,
        vocab_size=size,
        key=(secret or secrets.token_bytes(32)).hex(),
        threads=max(1, num_threads() // layout.size),
        log_level=level if level in LEVELS else None,
    )
    return spec, model, plans


def _draft_size(draft: Transformer | None, model: ModelConfig, vocab_size: int | None) -> DraftSize | None:
    """Raises ConfigError for a draft model that cannot guess for this one."""
    if draft is None:
        return None
    check_vocabularies(model, draft, vocab_size)
    if draft.device.type != "cpu":
        raise ConfigError(
            f"the draft model is on {draft.device}, and a model over several processes runs on the CPU", hint='load it with device="cpu"'
        )
    return DraftSize(config=draft.config, dtype=DTYPE_NAMES[draft.dtype])


def _start(
    spec: RankSpec,
    model_config: ModelConfig,
    plans: list[MemoryPlan],
    *,
    draft: Transformer | None,
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
        disk = _open_disk(spec, runner, scheduler, workers, clock)
        engine = ParallelEngine(
            workers,
            runner,
            scheduler,
            model_config=model_config,
            plans=plans,
            dtype=spec.dtype,
            on_close=partial(set_num_threads, threads),
            context=plans[0].context,
            guesser=make_guesser(draft, spec.sizes, plans[0], spec.vocab_size, bytes.fromhex(spec.key)),
            grammars=grammars,
            clock=clock,
            disk=disk,
        )
        undo.pop_all()
        return engine


def _open_disk(
    spec: RankSpec, runner: ShardRunner, scheduler: LeadScheduler, workers: Workers, clock: Callable[[], float]
) -> LeadDisk | None:
    """The prefix cache on disk, on every rank, where there is a folder for it."""
    if runner.share is None:
        return None
    shares = [runner.share, *(workers.shares[rank] for rank in range(1, workers.size))]
    workers.send({"shares": shares})
    folder, others = open_share(spec, runner, shares), range(1, workers.size)
    disk = LeadDisk(folder, scheduler, runner, clock=clock, ranks=others, send=workers.send)
    workers.on_disk = disk.hear
    return disk
