"""What each rank of a model over several processes allocates: `engine.memory`'s plan, once a rank. No torch.

A memory limit is each rank's own. All ranks have as many cache blocks as the one with the least room, since they take the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from herd.base.errors import DoesNotFitError
from herd.base.memory import available_memory
from herd.engine.memory import DEFAULT_CACHE_BYTES, EngineConfig, MemoryPlan, affordable_context, dtype_bytes, plan_memory
from herd.engine.parallel.layout import Layout
from herd.model.config import ModelConfig


def weight_count(config: ModelConfig, layout: Layout, rank: int, vocab_size: int) -> int:
    """Parameters that a rank holds, exactly."""
    share, rows = layout.share(config, rank), len(layout.rows(vocab_size, rank))
    count = share.num_hidden_layers * share.num_parameters_layer
    if layout.is_last(rank):
        count += rows * config.hidden_size + config.hidden_size
    if layout.is_first(rank) and not (config.tie_word_embeddings and layout.is_last(rank)):
        count += rows * config.hidden_size
    return count


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftSize:
    """A draft model, which lies whole on rank 0, and the dtype of its weights."""

    config: ModelConfig
    dtype: str


def plan_rank(
    config: ModelConfig,
    engine: EngineConfig,
    *,
    dtype: str,
    layout: Layout,
    rank: int,
    vocab_size: int | None = None,
    draft: DraftSize | None = None,
) -> MemoryPlan:
    """What one rank takes. Raises ConfigError as `plan_memory`; DoesNotFitError with the rank's figures."""
    size, wide = min(vocab_size or config.vocab_size, config.vocab_size), dtype_bytes(dtype)
    scores = len(layout.rows(size, rank)) if layout.is_last(rank) or rank == 0 else 0
    if rank == 0:
        scores += size  # it samples from whole rows, and receives them part by part
    # What a rank gathers of its stage, and the copy that gloo makes of it.
    exchanged = 2 * layout.tp * engine.token_budget * config.hidden_size * wide if layout.tp > 1 else 0
    if layout.is_last(rank) or rank == 0:
        exchanged += engine.token_budget * config.hidden_size * 4  # states of embeddings, which rank 0 gets all at once
    try:
        return plan_memory(
            layout.share(config, rank),
            engine,
            dtype=dtype,
            weights_bytes=weight_count(config, layout, rank, size) * wide,
            score_bytes=engine.score_rows * scores * 4,
            buffer_bytes=exchanged,
            draft=draft.config if draft is not None and rank == 0 else None,
            draft_dtype=draft.dtype if draft is not None else None,
        )
    except DoesNotFitError as error:
        raise DoesNotFitError(f"rank {rank} of {layout.size} does not fit: {error.message}", hint=error.hint) from error


def plan_ranks(
    config: ModelConfig,
    engine: EngineConfig,
    *,
    dtype: str,
    layout: Layout,
    vocab_size: int | None = None,
    draft: DraftSize | None = None,
) -> list[MemoryPlan]:
    """Every rank's plan, with one number of blocks. Raises ConfigError for a layout that the model cannot have, else as `plan_rank`."""
    layout.check(config)

    def plans(sizes: EngineConfig) -> list[MemoryPlan]:
        common: dict[str, Any] = {"dtype": dtype, "layout": layout, "vocab_size": vocab_size, "draft": draft}
        return [plan_rank(config, sizes, rank=rank, **common) for rank in range(layout.size)]

    return plans(replace(engine, num_blocks=min(plan.num_blocks for plan in plans(engine))))


def with_context(config: ModelConfig, engine: EngineConfig, *, dtype: str, layout: Layout) -> EngineConfig:
    """The sizes, their context set to what every rank can afford where none was asked for; ranks share the memory of one machine."""
    if engine.context is not None or engine.memory_bytes is not None or engine.num_blocks is not None:
        return engine
    budget = max(DEFAULT_CACHE_BYTES, (available_memory() or 0) // 2 // layout.size)
    contexts = (affordable_context(layout.share(config, rank), engine, dtype=dtype, cache_bytes=budget) for rank in range(layout.size))
    return replace(engine, context=min(contexts))


def resolved(engine: EngineConfig, plans: Sequence[MemoryPlan]) -> EngineConfig:
    """The sizes that every rank allocates by."""
    return replace(engine, num_blocks=plans[0].num_blocks, context=plans[0].context)
