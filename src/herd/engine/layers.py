"""The blocks of a model, or a run of them, over packed weights and a paged cache, by the kernels of `herd.kernels`.

Knows no embedding and no scores: a residual stream goes in and comes out. Everything is allocated here, once. A row's result is the same
whatever else is in the batch (kernels' law). Where each of several processes has a share of every block, `whole` makes of their parts of a
sum the sum. Shapes: T tokens, D model dim, N query heads, K KV heads, H head dim, F ffn dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from herd.engine.batch import RaggedBatch
from herd.kernels.attention import paged_attention
from herd.kernels.batch import Batch, plan_batch
from herd.kernels.linear import PackedLinear, linear, linear_swiglu, pack_gate_up, pack_linear
from herd.kernels.norm import add_rms_norm, rms_norm
from herd.kernels.rope import RopeTable, make_cache, rope_write
from herd.model.block import Block
from herd.model.config import ModelConfig
from herd.model.rope import rope_frequencies

Whole = Callable[[Tensor], object]
"""Replaces a part of a sum by the sum, in place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """One block's weights as the kernels read them."""

    norm: Tensor
    qkv: PackedLinear
    out: PackedLinear
    ffn_norm: Tensor
    gate_up: PackedLinear
    down: PackedLinear


def _packed(block: nn.Module) -> _Layer:
    assert isinstance(block, Block)
    attention, mlp = block.self_attn, block.mlp
    return _Layer(
        norm=block.input_layernorm.weight.detach(),
        qkv=pack_linear([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]),
        out=pack_linear(attention.o_proj.weight),
        ffn_norm=block.post_attention_layernorm.weight.detach(),
        gate_up=pack_gate_up(mlp.gate_proj.weight, mlp.up_proj.weight),
        down=pack_linear(mlp.down_proj.weight),
    )


def _nothing(part: Tensor) -> None:
    """The part is the sum."""


class PackedLayers:
    """Blocks with their cache and their arena of activations. `config` has the heads and the ffn dim that these blocks have."""

    def __init__(
        self,
        config: ModelConfig,
        blocks: Iterable[nn.Module],
        *,
        dtype: torch.dtype,
        cache_dtype: torch.dtype,
        num_blocks: int,
        block_size: int,
        max_tokens: int,
    ) -> None:
        self.config, self.num_blocks, self.block_size = config, num_blocks, block_size
        self._layers = [_packed(block) for block in blocks]
        self._rope = RopeTable(rope_frequencies(config))
        self._keys, self._values = make_cache(
            num_layers=len(self._layers),
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            dtype=cache_dtype,
        )
        query, keyvalue = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self._split = (query, keyvalue, keyvalue)

        def arena(width: int) -> Tensor:
            return torch.empty(max_tokens, width, dtype=dtype)

        self.residual, self._normed = arena(config.hidden_size), arena(config.hidden_size)
        self._qkv, self._mixed, self._ffn = arena(query + 2 * keyvalue), arena(query), arena(config.intermediate_size)
        self._delta = arena(config.hidden_size)

    def copy(self, copies: tuple[tuple[int, int], ...]) -> None:
        """Copy cache blocks, (from, to), before anything of a step is written."""
        if copies:
            source, target = torch.tensor(copies).t()
            for cache in (self._keys, self._values):
                cache[:, target] = cache[:, source]

    def plan(self, batch: RaggedBatch) -> Batch:
        """The batch as the kernels want it."""
        return plan_batch(
            batch.block_table_SW,
            first=batch.first_S,
            lengths=np.diff(batch.starts),
            num_blocks=self.num_blocks,
            block_size=self.block_size,
        )

    def run(self, x_TD: Float[Tensor, "T D"], plan: Batch, whole: Whole = _nothing) -> Float[Tensor, "T D"]:
        """The residual stream after the last block, in place of the one before the first."""
        count, eps = plan.num_tokens, self.config.rms_norm_eps
        normed, delta = self._normed[:count], self._delta[:count]
        rms_norm(x_TD, self._layers[0].norm, eps, out=normed)
        for number, layer in enumerate(self._layers):
            whole(linear(self._attend(number, layer, normed, plan), layer.out, out=delta))
            add_rms_norm(x_TD, delta, layer.ffn_norm, eps, out=normed)
            product = linear_swiglu(normed, layer.gate_up, out=self._ffn[:count])
            whole(linear(product, layer.down, out=delta))
            if number + 1 < len(self._layers):
                add_rms_norm(x_TD, delta, self._layers[number + 1].norm, eps, out=normed)
        return x_TD.add_(delta)

    def _attend(self, number: int, layer: _Layer, normed_TD: Tensor, plan: Batch) -> Tensor:
        count, head_dim = plan.num_tokens, self.config.head_dim
        qkv = linear(normed_TD, layer.qkv, out=self._qkv[:count])
        q, k, v = (part.view(count, -1, head_dim) for part in qkv.split(self._split, dim=-1))
        keys, values = self._keys[number], self._values[number]
        rope_write(q, k, v, self._rope, keys, values, plan)
        mixed = self._mixed[:count]
        paged_attention(q, keys, values, plan, out=mixed.view(count, -1, head_dim))
        return mixed
