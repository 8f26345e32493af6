"""Random paged caches and batches over them, and attention by the book in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from herd.kernels.attention import paged_attention
from herd.kernels.batch import Batch, plan_batch
from herd.kernels.int8_rows import numbers_of, quantise, scales_of
from herd.kernels.rope import make_cache

UNIT = 2.0**-24


@dataclass
class World:
    """Sequences with their queries, keys and values by position, and caches that hold them in scattered blocks."""

    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    table: list[list[int]]
    key_cache: Tensor
    value_cache: Tensor

    @property
    def block_size(self) -> int:
        return self.key_cache.shape[1]

    def batch(self, parts: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Batch]:
        """Queries and plan of parts (sequence, first, length)."""
        plan = plan_batch(
            [self.table[s] for s, _, _ in parts],
            first=[first for _, first, _ in parts],
            lengths=[length for _, _, length in parts],
            num_blocks=len(self.key_cache),
            block_size=self.block_size,
        )
        return torch.cat([self.queries[s][first : first + length] for s, first, length in parts]), plan

    def attend(self, parts: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        """The op's outputs, by part."""
        q, plan = self.batch(parts)
        return list(paged_attention(q, self.key_cache, self.value_cache, plan).split([length for _, _, length in parts]))


def world(
    lengths: Sequence[int],
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    seed: int = 0,
    shuffle: int = 0,
) -> World:
    """Sequences of these lengths. `seed` decides values, `shuffle` which blocks hold them; unused slots hold NaN."""
    cache_dtype = cache_dtype or dtype
    random, order = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(shuffle)
    needed = [-(-length // block_size) for length in lengths]
    num_blocks = sum(needed) + 2
    free = torch.randperm(num_blocks, generator=order).tolist()
    width = max(needed)
    caches = make_cache(
        num_layers=1, num_blocks=num_blocks, block_size=block_size, num_kv_heads=kv_heads, head_dim=head_dim, dtype=cache_dtype
    )
    key_cache, value_cache = (cache[0].fill_(-1 if cache_dtype == torch.int8 else torch.nan) for cache in caches)
    made = World([], [], [], [], key_cache, value_cache)
    for length, count in zip(lengths, needed, strict=True):
        q = torch.randn(length, heads, head_dim, generator=random).to(dtype)
        k, v = (torch.randn(length, kv_heads, head_dim, generator=random).to(dtype) for _ in range(2))
        blocks, free = free[:count], free[count:]
        position = torch.arange(length)
        slots = torch.tensor(blocks)[position // block_size] * block_size + position % block_size
        rows = [quantise(x) if cache_dtype == torch.int8 else x.to(cache_dtype) for x in (k, v)]
        key_cache.flatten(0, 1)[slots], value_cache.flatten(0, 1)[slots] = rows
        made.queries.append(q)
        made.keys.append(stands_for(rows[0]))
        made.values.append(stands_for(rows[1]))
        made.table.append(blocks + [-1] * (width - count))
    return made


def stands_for(rows: Tensor) -> Tensor:
    """The numbers in a cache; of int8 exactly, in float64."""
    return numbers_of(rows).double() * scales_of(rows).double()[..., None] if rows.dtype == torch.int8 else rows


def truth(q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Outputs in float64 and a bound on the error of either implementation, by token and head.

    Scores err by (H + 3) u sum |q k|, a key's scale in int8 counted, which moves a probability by twice that at most; sums over keys and
    splits, and a value's scale, add a few hundred u.
    """
    group = q_TNH.shape[1] // k_SKH.shape[1]
    q, k, v = q_TNH.double(), k_SKH.double().repeat_interleave(group, 1), v_SKH.double().repeat_interleave(group, 1)
    scale = q.shape[2] ** -0.5
    position = torch.arange(first, first + len(q))
    visible = torch.arange(len(k))[None] <= position[:, None]
    scores = torch.einsum("tnh,snh->tns", q, k) * scale
    sizes = torch.einsum("tnh,snh->tns", q.abs(), k.abs()) * scale
    scores = scores.masked_fill(~visible[:, None], -torch.inf)
    sizes = sizes.masked_fill(~visible[:, None], 0.0).amax(-1, keepdim=True)
    out = torch.einsum("tns,snh->tnh", scores.softmax(-1), v)
    bound = (4 * (q.shape[2] + 3) * sizes + 400) * UNIT * v.abs().amax()
    return out, bound + out.abs() * (2.0**-8 if q_TNH.dtype == torch.bfloat16 else 0.0)
