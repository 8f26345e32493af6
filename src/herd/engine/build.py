"""An engine from a model: sizes planned, memory allocated, scheduler and runner put together. Needs no torch for a mapped model."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from herd.base.errors import ConfigError
from herd.base.log import get_logger
from herd.engine.blocks import BlockPool
from herd.engine.engine import Engine
from herd.engine.memory import EngineConfig, MemoryPlan, plan_memory, with_context
from herd.engine.packed.mapped import MappedModel
from herd.engine.runner import CpuRunner
from herd.engine.scheduler import Scheduler
from herd.engine.speculation import DEFAULT_NUM_DRAFT, Guesser, PromptLookup
from herd.kernels import dispatch
from herd.kernels.buffer import dtype_name
from herd.kernels.triton import runtime
from herd.model.config import ModelConfig

if TYPE_CHECKING:
    import torch

    from herd.engine.gpu.runner import GpuRunner
    from herd.engine.grammar.compiler import GrammarCompiler
    from herd.engine.torch_runner import TorchRunner
    from herd.model.transformer import Transformer

log = get_logger(__name__)


def plan_for(
    model: Transformer | MappedModel, config: EngineConfig, draft: Transformer | None = None, *, device: torch.device | None = None
) -> MemoryPlan:
    """What serving a loaded model takes, with a draft model if there is one; or of a model on the meta device, what it would take on
    `device`. Raises as `plan_memory`, ConfigError where the GPU's kernels cannot be asked.
    """
    if isinstance(model, MappedModel):
        size = model.weights.size_bytes if model.quantised else None
        return plan_memory(model.config, config, dtype=model.dtype, weights_bytes=size)
    from herd.engine.packed.weights import weights_bytes

    common: dict[str, Any] = {"dtype": dtype_name(model.dtype), "weights_bytes": weights_bytes(model)}
    if _on_gpu(model) if device is None else _would_run_in_triton(model, device):
        common["buffer_bytes"] = _gpu_bytes(model, config) + (_gpu_bytes(draft, config) if draft is not None else 0)
    if draft is None:
        return plan_memory(model.config, config, **common)
    return plan_memory(model.config, config, **common, draft=draft.config, draft_dtype=dtype_name(draft.dtype))


def build_engine(
    model: Transformer | MappedModel,
    config: EngineConfig | None = None,
    *,
    vocab_size: int | None = None,
    draft: Transformer | None = None,
    threaded: bool = False,
    grammars: Callable[[], GrammarCompiler] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Engine:
    """Allocate everything and return an engine that is ready.

    Args:
        model: the weights; they are packed for the runner, so the model itself may be let go of.
        config: the sizes.
        vocab_size: ids that the tokenizer has, where the model has rows to spare: those are never drawn.
        draft: a smaller model of the same vocabulary that guesses tokens for this one to verify; the answers stay the same.
        threaded: give the engine a thread of its own.
        grammars: makes the compiler of grammars, at first use.
        clock: seconds, for the scheduler's metrics.

    Raises:
        DoesNotFitError: the memory limit leaves no room for one sequence of the context.
        ConfigError: sizes that contradict each other, a draft model of another vocabulary, a prefix_dir that cannot be one.
    """
    config = _with_context(model, config or EngineConfig())
    if draft is not None:
        check_vocabularies(model.config, draft, vocab_size)
    plan = plan_for(model, config, draft)
    runner = _runner(model, config, plan, vocab_size)
    secret = None
    if config.prefix_dir is not None:
        from herd.engine.disk.build import open_secret

        secret = open_secret(config.prefix_dir)
    key = secret or secrets.token_bytes(32)
    pool = BlockPool(plan.num_blocks, config.block_size, key=key)
    disk = None
    if config.prefix_dir is not None and secret is not None:
        from herd.engine.disk.build import open_folder
        from herd.engine.disk.cache import DiskCache

        assert not isinstance(model, MappedModel), "the name of its blocks' state takes torch"
        folder = open_folder(config.prefix_dir, model, runner, secret=secret, max_bytes=config.prefix_dir_bytes)
        disk = DiskCache(folder, pool, runner, clock=clock)
    scheduler = Scheduler(
        pool,
        token_budget=config.token_budget,
        max_sequences=config.max_sequences,
        max_context=plan.context,
        clock=clock,
    )
    guesser = make_guesser(draft, config, plan, vocab_size, key)
    common: dict[str, Any] = {"guesser": guesser, "grammars": grammars, "clock": clock, "disk": disk}
    engine = Engine(runner, scheduler, context=plan.context, threaded=threaded, **common)
    engine.plans = [plan]
    return engine


def check_vocabularies(model: ModelConfig, draft: Transformer, vocab_size: int | None) -> None:
    """Raises ConfigError where the draft model has other token ids. Rows beyond `vocab_size` stand for no token."""
    sizes = [min(vocab_size or one.vocab_size, one.vocab_size) for one in (model, draft.config)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the draft model has {sizes[1]:,} token ids, the model {sizes[0]:,}",
            hint="take a smaller model of the same family: both need the same tokenizer",
        )


def make_guesser(draft: Transformer | None, config: EngineConfig, plan: MemoryPlan, vocab_size: int | None, key: bytes) -> Guesser | None:
    """A draft model in this process, prompt lookup, or nothing, as the sizes say. `key` is that of the engine's own blocks."""
    if draft is None:
        return PromptLookup(config.num_draft) if config.num_draft else None
    from herd.engine.draft_model import DraftModel

    return DraftModel(
        _runner(draft, config, plan, vocab_size),
        BlockPool(plan.num_blocks, config.block_size, key=key),
        num_draft=config.num_draft or DEFAULT_NUM_DRAFT,
        token_budget=config.token_budget,
        context=draft.config.max_position_embeddings,
    )


def _with_context(model: Transformer | MappedModel, config: EngineConfig) -> EngineConfig:
    """The config, its context set to what is affordable where no size was asked for."""
    found = with_context(model.config, config, dtype=dtype_name(model.dtype))
    if config.context is None and found.context is not None and found.context < model.config.max_position_embeddings:
        log.info(
            "the context is %s of the model's %s tokens, what half of the free memory holds; ask for more with EngineConfig(context=...)",
            f"{found.context:,}", f"{model.config.max_position_embeddings:,}",
        )  # fmt: skip
    return found


def _gpu_bytes(model: Transformer, config: EngineConfig) -> int:
    """What the GPU runner allocates beyond the plan's arenas."""
    from herd.engine.gpu.plan import extra_bytes

    return extra_bytes(model, config)


def _on_gpu(model: Transformer) -> bool:
    """Whether the GPU runner takes a model. Raises ConfigError where that is asked for and cannot be."""
    from herd.model.transformer import Transformer

    if type(model) is not Transformer or not dispatch.runs_triton(model.device):
        return False
    from herd.engine.gpu.weights import runs_in_triton

    return runs_in_triton(model)


def _would_run_in_triton(model: Transformer, device: torch.device) -> bool:
    """Whether the GPU runner would take a model that is not there yet, on a device that need not be here."""
    if device.type != "cuda" or os.environ.get("HERD_KERNELS") == "reference":
        return False
    if not runtime.installed():
        raise ConfigError(
            "what a GPU's kernels need beside the model is told by Triton, which is not installed",
            hint="plan on Linux, where torch's CUDA builds have it, or pip install triton; --device cpu plans without",
        )
    from herd.engine.gpu.weights import runs_in_triton

    return runs_in_triton(model)


def _runner(
    model: Transformer | MappedModel, config: EngineConfig, plan: MemoryPlan, vocab_size: int | None
) -> CpuRunner | TorchRunner | GpuRunner:
    common: dict[str, Any] = {
        "num_blocks": plan.num_blocks,
        "block_size": config.block_size,
        "score_rows": config.score_rows,
        "cache_dtype": config.cache_dtype,
        "vocab_size": vocab_size,
    }
    if not isinstance(model, MappedModel):
        found = _torch_runner(model, config, plan, common)
        if found is not None:
            return found
    return CpuRunner(model, max_tokens=config.token_budget, **common)


def _torch_runner(model: Transformer, config: EngineConfig, plan: MemoryPlan, common: dict[str, Any]) -> TorchRunner | GpuRunner | None:
    """The runner of a model on a GPU, or of one that computes by itself; None where the CPU's takes it."""
    from herd.engine.packed.weights import PackedModel, runs_in_c
    from herd.model.transformer import Transformer

    if _on_gpu(model):
        from herd.engine.gpu.runner import GpuRunner

        sizes = {"max_tokens": config.token_budget, "max_sequences": config.max_sequences, "context": plan.context}
        return GpuRunner(model, **sizes, **common)
    # A subclass may compute otherwise than its parameters say, so it is run itself.
    if model.device.type != "cpu" or type(model) not in (Transformer, PackedModel) or not runs_in_c(model):
        from herd.engine.torch_runner import TorchRunner

        return TorchRunner(model, **common)
    return None
