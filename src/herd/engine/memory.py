"""What the engine allocates at start, computed from the config: weights, cache blocks, activations, scores. Nothing is profiled. No torch.

`plan_memory` fills what is left of a limit with blocks, or refuses with the numbers; the engine allocates exactly that and nothing that
grows with load afterwards. Bytes are exact for what herd allocates; torch and the interpreter themselves come on top (`overhead_bytes`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from herd.base.errors import ConfigError, DoesNotFitError
from herd.base.memory import available_memory, gib
from herd.model.config import ModelConfig

OVERHEAD_BYTES = 400 * 2**20
"""Interpreter, torch and its libraries, measured as resident memory of a process that has loaded a model of a few MB; rounded up."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CACHE_DTYPES = (*_BYTES, "int8", "fp8")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """The engine's sizes.

    Attributes:
        context: tokens that a prompt and its answer may have together; None takes the model's. Where nothing else limits memory either,
            `build_engine` takes what half of the free memory holds, if that is less.
        block_size: tokens of a cache block.
        token_budget: tokens of a step at most: the chunk of a prefill, and the width of the activation arena.
        max_sequences: sequences of a step at most.
        score_rows: rows of scores that exist at once.
        num_blocks: cache blocks; None fills `memory_bytes`, or takes what `max_sequences` contexts need, up to `DEFAULT_CACHE_BYTES`.
        memory_bytes: what everything together may take.
        cache_dtype: of keys and values; None takes the weights'. "int8" and "fp8" (e4m3) keep a byte a number and four a vector, for half
            the memory of 16 bits and slightly other scores; fp8 is for GPUs, a CPU reads it by torch's operations, slowly.
        num_draft: tokens guessed at once, by a draft model if there is one, else by prompt lookup; 0 guesses none, with a draft model
            `DEFAULT_NUM_DRAFT`.
        prefix_dir: folder in which prompts' keys and values outlive eviction and restarts; None keeps them in memory alone.
        prefix_dir_bytes: what the files there may take, of all models together.
    """

    context: int | None = None
    block_size: int = 16
    token_budget: int = 512
    max_sequences: int = 64
    score_rows: int = 64
    num_blocks: int | None = None
    memory_bytes: int | None = None
    cache_dtype: str | None = None
    num_draft: int = 0
    prefix_dir: str | None = None
    prefix_dir_bytes: int = 4 * 2**30

    def __post_init__(self) -> None:
        for name in ("block_size", "token_budget", "max_sequences", "score_rows", "prefix_dir_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1", hint=f"leave {name} at its default")
        if self.max_sequences > self.token_budget:
            raise ConfigError(
                f"max_sequences {self.max_sequences} is over token_budget {self.token_budget}", hint="a step has a token for each sequence"
            )
        if self.cache_dtype is not None and self.cache_dtype not in _CACHE_DTYPES:
            raise ConfigError(f"cache_dtype is {self.cache_dtype!r}", hint="choose " + ", ".join(_CACHE_DTYPES))


DEFAULT_CACHE_BYTES = 2 * 2**30
"""The most that the cache takes when no limit was given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Bytes by item, and what they buy: `num_blocks` cache blocks, or `cache_tokens` tokens of cached context over all sequences.

    `draft_bytes` is all that a draft model takes: weights, activations, scores and a cache of as many blocks.
    """

    weights_bytes: int
    cache_bytes: int
    activation_bytes: int
    score_bytes: int
    overhead_bytes: int
    num_blocks: int
    cache_tokens: int
    context: int
    draft_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Everything."""
        return self.weights_bytes + self.cache_bytes + self.activation_bytes + self.score_bytes + self.overhead_bytes + self.draft_bytes


def activation_bytes(config: ModelConfig, num_tokens: int, dtype_bytes: int) -> int:
    """The arena of a step: residual, normed, q and the attention's output, k and v, gate and up, their product, angles in float32."""
    query, keyvalue = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    width = 3 * config.hidden_size + 2 * query + 2 * keyvalue + 3 * config.intermediate_size
    return num_tokens * (width * dtype_bytes + 2 * 4 * config.head_dim)


def cache_bytes_per_token(config: ModelConfig, cache_dtype: str) -> int:
    """Keys and values of one token in all layers; in int8 and fp8 each vector has a float32 scale."""
    if cache_dtype in _BYTES:
        return config.kv_bytes_per_token(_BYTES[cache_dtype])
    return config.kv_bytes_per_token(1) + 2 * config.num_hidden_layers * config.num_key_value_heads * 4


def dtype_bytes(dtype: str) -> int:
    """Bytes of a value."""
    return _BYTES[dtype]


def plan_memory(
    config: ModelConfig,
    engine: EngineConfig,
    *,
    dtype: str,
    weights_bytes: int | None = None,
    score_bytes: int | None = None,
    buffer_bytes: int = 0,
    draft: ModelConfig | None = None,
    draft_dtype: str | None = None,
) -> MemoryPlan:
    """What serving `config` takes; `parallel.plan` calls it for each rank's share of a model.

    Args:
        config: the model.
        engine: the sizes.
        dtype: of weights and activations.
        weights_bytes: what the weights take, where that is not their count times their width.
        score_bytes: what scores take, where those are not of the whole vocabulary once.
        buffer_bytes: what is allocated for exchange with other processes, or by a GPU's runner beyond a step's arenas (or less than
            these, where it is negative); counted as activations.
        draft: a model that guesses for this one, of `draft_dtype` or else `dtype`.

    Raises:
        ConfigError: a context over the model's.
        DoesNotFitError: the limit leaves no room for one sequence of the context; the message has the figures.
    """
    wide = _BYTES[dtype]
    context = engine.context or config.max_position_embeddings
    if context > config.max_position_embeddings:
        raise ConfigError(
            f"the context of {context:,} tokens is over the model's {config.max_position_embeddings:,}",
            hint=f"set a context of {config.max_position_embeddings} or less",
        )
    fixed = _step_bytes(config, engine, wide) | {"overhead_bytes": OVERHEAD_BYTES + (_disk_bytes() if engine.prefix_dir else 0)}
    fixed["weights_bytes"] = config.num_parameters * wide if weights_bytes is None else weights_bytes
    fixed["activation_bytes"] += buffer_bytes
    if score_bytes is not None:
        fixed["score_bytes"] = score_bytes
    own_block_bytes = block_bytes = _block_bytes(config, engine, dtype)
    if draft is not None:
        kind = draft_dtype or dtype
        block_bytes += _block_bytes(draft, engine, kind)
        fixed["draft_bytes"] = draft.num_parameters * _BYTES[kind] + sum(_step_bytes(draft, engine, _BYTES[kind]).values())
    for_one = 1 + -(-context // engine.block_size)
    num_blocks = engine.num_blocks or _blocks(engine, sum(fixed.values()), block_bytes, for_one)
    total = sum(fixed.values()) + num_blocks * block_bytes
    if num_blocks < for_one or (engine.memory_bytes is not None and total > engine.memory_bytes):
        needed = sum(fixed.values()) + for_one * block_bytes
        limit = engine.memory_bytes if engine.memory_bytes is not None else total
        raise DoesNotFitError(
            f"one sequence of {context:,} tokens needs {gib(needed)} ({gib(fixed['weights_bytes'])} of weights, "
            f"{gib(for_one * block_bytes)} of cache), the limit is {gib(limit)}",
            hint=f"raise the limit, or set a context below {context:,}",
        )
    if draft is not None:
        fixed["draft_bytes"] += num_blocks * (block_bytes - own_block_bytes)
    return MemoryPlan(
        **fixed,
        cache_bytes=num_blocks * own_block_bytes,
        num_blocks=num_blocks,
        cache_tokens=(num_blocks - 1) * engine.block_size,
        context=context,
    )


def _disk_bytes() -> int:
    """What may lie in memory on its way to a prefix cache on disk and from it."""
    from herd.engine.disk.cache import READ_BYTES, WRITE_BYTES

    return READ_BYTES + WRITE_BYTES


def _step_bytes(config: ModelConfig, engine: EngineConfig, wide: int) -> dict[str, int]:
    """The arenas of a step."""
    return {
        "activation_bytes": activation_bytes(config, engine.token_budget, wide) + engine.score_rows * config.hidden_size * 4,
        "score_bytes": engine.score_rows * config.vocab_size * 4,
    }


def _block_bytes(config: ModelConfig, engine: EngineConfig, dtype: str) -> int:
    return cache_bytes_per_token(config, engine.cache_dtype or dtype) * engine.block_size


def _blocks(engine: EngineConfig, fixed_bytes: int, block_bytes: int, for_one: int) -> int:
    """Blocks that fit the limit; without one, what all sequences can use, within the default, and at least one context's."""
    if engine.memory_bytes is not None:
        return max(0, engine.memory_bytes - fixed_bytes) // block_bytes
    wanted = 1 + engine.max_sequences * (for_one - 1)
    return max(for_one, min(wanted, DEFAULT_CACHE_BYTES // block_bytes))


def affordable_context(config: ModelConfig, engine: EngineConfig, *, dtype: str, cache_bytes: int) -> int:
    """The model's context, or as much of it as so many bytes of cache hold for one sequence; at least one block."""
    per_token = cache_bytes_per_token(config, engine.cache_dtype or dtype)
    blocks = max(1, cache_bytes // (per_token * engine.block_size) - 1)
    return min(config.max_position_embeddings, blocks * engine.block_size)


def with_context(config: ModelConfig, engine: EngineConfig, *, dtype: str) -> EngineConfig:
    """The sizes, their context set to what is affordable now where no size was asked for: what half of the free memory holds."""
    if engine.context is not None or engine.memory_bytes is not None or engine.num_blocks is not None:
        return engine
    budget = max(DEFAULT_CACHE_BYTES, (available_memory() or 0) // 2)
    return replace(engine, context=affordable_context(config, engine, dtype=dtype, cache_bytes=budget))
