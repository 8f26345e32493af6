"""What a run of blocks needs beside its weights: the paged cache and an arena of activations, allocated once. No torch.

Shapes: L layers, K KV heads, C elements of a cached vector, T tokens of a step at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from herd.kernels.buffer import Buffer
from herd.kernels.caches import cache_shape
from herd.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Arenas:
    """Keys and values, [L, blocks, block_size, K, C], and the activations of a step by name, [T, width]."""

    keys: Buffer
    values: Buffer
    activations: dict[str, Buffer]

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy cache blocks, (from, to), before anything of a step is written. All are read before the first is written."""
        if not copies:
            return
        source, target = np.array(copies).T
        for cache in (self.keys, self.values):
            blocks = cache.bytes().reshape(*cache.shape[:2], -1)
            blocks[:, target] = blocks[:, source]


def allocate(config: ModelConfig, *, dtype: str, cache_dtype: str, num_blocks: int, block_size: int, max_tokens: int) -> Arenas:
    """Memory for blocks that have the heads and the ffn dim of `config`. Raises ConfigError for a cache of a dtype that there is not."""
    query, keyvalue = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    hidden, ffn = config.hidden_size, config.intermediate_size
    widths = {"residual": hidden, "normed": hidden, "qkv": query + 2 * keyvalue, "mixed": query, "ffn": ffn, "delta": hidden}
    shape = cache_shape(
        num_layers=config.num_hidden_layers,
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        dtype=cache_dtype,
    )
    return Arenas(
        keys=Buffer.zeros(shape, cache_dtype),
        values=Buffer.zeros(shape, cache_dtype),
        activations={name: Buffer.zeros((max_tokens, width), dtype) for name, width in widths.items()},
    )
