"""The blocks of a model, or a run of them, over packed weights and a paged cache, by the kernels of `herd.kernels`.

Knows no embedding and no scores: a residual stream goes in and comes out, and what they write to is given (`arenas`). A row's result is
the same whatever else is in the batch (kernels' law). Where each of several processes has a share of every block, `whole` makes of their
parts of a sum the sum. Shapes: T tokens, D model dim, N query heads, K KV heads, H head dim, F ffn dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from herd.engine import block_copy
from herd.engine.arenas import Arenas
from herd.engine.batch import RaggedBatch
from herd.kernels.attention import paged_attention
from herd.kernels.batch import Batch, plan_batch
from herd.kernels.linear import PackedLinear, linear, linear_swiglu, pack_gate_up, pack_linear
from herd.kernels.norm import add_rms_norm, rms_norm
from herd.kernels.packed_quant import common_format, pack_quantised, pack_quantised_gated
from herd.kernels.quantised import QuantWeight
from herd.kernels.rope import RopeTable, rope_write
from herd.model.block import Block as DecoderBlock
from herd.model.config import ModelConfig
from herd.model.quant_linear import QuantLinear
from herd.model.rope import rope_frequencies

Whole = Callable[[Tensor], object]
"""Replaces a part of a sum by the sum, in place."""


def _quantised(modules: Iterable[nn.Module]) -> list[QuantWeight]:
    return [module.quantised for module in modules if isinstance(module, QuantLinear)]


def packs(block: nn.Module) -> bool:
    """Whether C has kernels for a block's matrices: those that read the same input are all quantised, and of one format, or none is."""
    assert isinstance(block, DecoderBlock)
    attention, mlp = block.self_attn, block.mlp
    stacks = ((attention.q_proj, attention.k_proj, attention.v_proj), (attention.o_proj,), (mlp.gate_proj, mlp.up_proj), (mlp.down_proj,))
    return all(stack_packs(stack) for stack in stacks)


def stack_packs(modules: Sequence[nn.Module]) -> bool:
    """Whether C takes matrices that read the same input as one."""
    quantised = _quantised(modules)
    return not quantised or (len(quantised) == len(modules) and common_format(quantised) is not None)


def pack(*modules: nn.Module, dtype: torch.dtype, rows: int | None = None) -> PackedLinear:
    """Matrices that read the same input, stacked; of each the first `rows`."""
    quantised = _quantised(modules)
    if quantised:
        return pack_quantised([weight.rows(rows) for weight in quantised], dtype)
    weights = [module.weight for module in modules]
    return pack_linear([weight[:rows] for weight in weights if isinstance(weight, Tensor)])


def _pack_gated(gate: nn.Module, up: nn.Module, dtype: torch.dtype) -> PackedLinear:
    quantised = _quantised((gate, up))
    if quantised:
        return pack_quantised_gated(quantised[0], quantised[1], dtype)
    assert isinstance(gate.weight, Tensor) and isinstance(up.weight, Tensor)
    return pack_gate_up(gate.weight, up.weight)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BlockWeights:
    """A block's weights as the kernels read them."""

    norm: Tensor
    qkv: PackedLinear
    out: PackedLinear
    ffn_norm: Tensor
    gate_up: PackedLinear
    down: PackedLinear

    def tensors(self) -> Iterator[Tensor]:
        """Everything that has bytes."""
        yield from (self.norm, self.ffn_norm)
        for matrix in (self.qkv, self.out, self.gate_up, self.down):
            yield from (part for part in (matrix.data, matrix.columns) if part is not None)


def pack_block(block: nn.Module, dtype: torch.dtype) -> BlockWeights:
    """A block's weights, packed."""
    assert isinstance(block, DecoderBlock)
    attention, mlp = block.self_attn, block.mlp
    return BlockWeights(
        norm=block.input_layernorm.weight.detach().to(dtype),
        qkv=pack(attention.q_proj, attention.k_proj, attention.v_proj, dtype=dtype),
        out=pack(attention.o_proj, dtype=dtype),
        ffn_norm=block.post_attention_layernorm.weight.detach().to(dtype),
        gate_up=_pack_gated(mlp.gate_proj, mlp.up_proj, dtype),
        down=pack(mlp.down_proj, dtype=dtype),
    )


def _nothing(part: Tensor) -> None:
    """The part is the sum."""


class PackedLayers:
    """Blocks over a cache and an arena of activations. `config` and `arenas` have the heads and the ffn dim that these blocks have.

    Attributes:
        block_layout, block_bytes: see `batch.BlockCopier`.
    """

    def __init__(
        self, config: ModelConfig, blocks: Iterable[nn.Module | BlockWeights], arenas: Arenas, *, rope: RopeTable | None = None
    ) -> None:
        self.config, self.arenas = config, arenas
        _, self.num_blocks, self.block_size, _, _ = arenas.keys.shape
        self.rope = rope or RopeTable(rope_frequencies(config))
        self.keys, self.values = arenas.keys.tensor(), arenas.values.tensor()
        self.activations = {name: arena.tensor() for name, arena in arenas.activations.items()}
        self.residual = self.activations["residual"]
        dtype = self.residual.dtype
        self.blocks = [block if isinstance(block, BlockWeights) else pack_block(block, dtype) for block in blocks]
        query, keyvalue = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self._split = (query, keyvalue, keyvalue)
        self._caches = (self.keys, self.values)
        self.block_layout, self.block_bytes = block_copy.block_layout(self._caches), block_copy.block_bytes(self._caches)

    def copy_out(self, block: int) -> memoryview:
        """See `batch.BlockCopier`."""
        return block_copy.copy_out(self._caches, block)

    def copy_in(self, block: int, content: memoryview) -> None:
        """See `batch.BlockCopier`."""
        block_copy.copy_in(self._caches, block, content)

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
        normed, delta, ffn = (self.activations[name][:count] for name in ("normed", "delta", "ffn"))
        rms_norm(x_TD, self.blocks[0].norm, eps, out=normed)
        for number, block in enumerate(self.blocks):
            whole(linear(self._attend(number, normed, plan), block.out, out=delta))
            add_rms_norm(x_TD, delta, block.ffn_norm, eps, out=normed)
            product = linear_swiglu(normed, block.gate_up, out=ffn)
            whole(linear(product, block.down, out=delta))
            if number + 1 < len(self.blocks):
                add_rms_norm(x_TD, delta, self.blocks[number + 1].norm, eps, out=normed)
        return x_TD.add_(delta)

    def _attend(self, layer: int, normed_TD: Tensor, plan: Batch) -> Tensor:
        count, head_dim = plan.num_tokens, self.config.head_dim
        keys, values = self.keys[layer], self.values[layer]
        qkv = linear(normed_TD, self.blocks[layer].qkv, out=self.activations["qkv"][:count])
        q, k, v = (part.view(count, -1, head_dim) for part in qkv.split(self._split, dim=-1))
        rope_write(q, k, v, self.rope, keys, values, plan)
        mixed = self.activations["mixed"][:count]
        paged_attention(q, keys, values, plan, out=mixed.view(count, -1, head_dim))
        return mixed
