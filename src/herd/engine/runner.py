"""The CPU runner: walks a transformer's layers over packed weights and a paged cache, by the kernels of `herd.kernels`.

Built from a `Transformer`'s config and parameters; rounding points are the model's, and a parity test holds the two together. Everything is
allocated here, once: packed weights, cache, activations, scores. A row's scores are the same whatever else is in the batch (kernels' law).
Shapes: T tokens, D model dim, N query heads, K KV heads, H head dim, F ffn dim, R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from herd.engine.batch import RaggedBatch
from herd.kernels.attention import paged_attention
from herd.kernels.batch import Batch, plan_batch
from herd.kernels.linear import PackedLinear, linear, linear_swiglu, pack_gate_up, pack_linear
from herd.kernels.norm import add_rms_norm, rms_norm
from herd.kernels.rope import RopeTable, make_cache, rope_write
from herd.model.block import Block
from herd.model.rope import rope_frequencies
from herd.model.transformer import Transformer


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


class CpuRunner:
    """A `Runner` on the CPU. `vocab_size` leaves rows of the output matrix out that no token stands for."""

    def __init__(
        self,
        model: Transformer,
        *,
        num_blocks: int,
        block_size: int,
        max_tokens: int,
        score_rows: int,
        cache_dtype: str | None = None,
        vocab_size: int | None = None,
    ) -> None:
        config = model.config
        self.config, self.num_blocks, self.block_size = config, num_blocks, block_size
        self.vocab_size = min(vocab_size or config.vocab_size, config.vocab_size)
        self._layers = [_packed(block) for block in model.model.layers]
        self._norm = model.model.norm.weight.detach()
        self._head = pack_linear(model.head_weight[: self.vocab_size])
        self._embedding = None if config.tie_word_embeddings else model.model.embed_tokens.weight.detach()
        self._rope = RopeTable(rope_frequencies(config))
        self._keys, self._values = make_cache(
            num_layers=config.num_hidden_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            dtype=getattr(torch, cache_dtype) if cache_dtype else model.dtype,
        )
        query, keyvalue = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self._split = (query, keyvalue, keyvalue)

        def arena(width: int) -> Tensor:
            return torch.empty(max_tokens, width, dtype=model.dtype)

        self._residual, self._normed = arena(config.hidden_size), arena(config.hidden_size)
        self._qkv, self._mixed, self._ffn = arena(query + 2 * keyvalue), arena(query), arena(config.intermediate_size)
        self._delta = arena(config.hidden_size)
        self._scores = torch.empty(score_rows, self.vocab_size, dtype=torch.float32)
        self._states = torch.empty(score_rows, config.hidden_size, dtype=torch.float32)

    def run(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.run`: the batch has been computed when this returns."""
        with torch.inference_mode():
            self._copy(batch.copies)
            hidden = self._hidden(batch)[torch.from_numpy(batch.rows_R)]
            return self._score(rms_norm(hidden, self._norm, self.config.rms_norm_eps))

    def hidden(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.hidden`: the residual stream of the last batch is still in its arena."""
        rows = torch.from_numpy(batch.hidden_E)
        for first in range(0, len(rows), len(self._states)):
            with torch.inference_mode():
                part = self._residual[rows[first : first + len(self._states)]]
                states = self._states[: len(part)].copy_(rms_norm(part, self._norm, self.config.rms_norm_eps))
            yield first, states.numpy()

    def _copy(self, copies: tuple[tuple[int, int], ...]) -> None:
        if copies:
            source, target = torch.tensor(copies).t()
            for cache in (self._keys, self._values):
                cache[:, target] = cache[:, source]

    def _hidden(self, batch: RaggedBatch) -> Tensor:
        """The residual stream after the last block, [T, D], in the arena."""
        plan = plan_batch(
            batch.block_table_SW,
            first=batch.first_S,
            lengths=np.diff(batch.starts),
            num_blocks=self.num_blocks,
            block_size=self.block_size,
        )
        count, eps = plan.num_tokens, self.config.rms_norm_eps
        x_TD, normed, delta = self._residual[:count], self._normed[:count], self._delta[:count]
        x_TD.copy_(self._embed(torch.from_numpy(batch.tokens_T).long()))
        rms_norm(x_TD, self._layers[0].norm, eps, out=normed)
        for number, layer in enumerate(self._layers):
            linear(self._attend(number, layer, normed, plan), layer.out, out=delta)
            add_rms_norm(x_TD, delta, layer.ffn_norm, eps, out=normed)
            product = linear_swiglu(normed, layer.gate_up, out=self._ffn[:count])
            linear(product, layer.down, out=delta)
            if number + 1 < len(self._layers):
                add_rms_norm(x_TD, delta, self._layers[number + 1].norm, eps, out=normed)
        return x_TD.add_(delta)

    def _embed(self, tokens_T: Tensor) -> Tensor:
        return self._head.rows(tokens_T) if self._embedding is None else self._embedding[tokens_T]

    def _attend(self, number: int, layer: _Layer, normed_TD: Tensor, plan: Batch) -> Tensor:
        count, head_dim = plan.num_tokens, self.config.head_dim
        qkv = linear(normed_TD, layer.qkv, out=self._qkv[:count])
        q, k, v = (part.view(count, -1, head_dim) for part in qkv.split(self._split, dim=-1))
        keys, values = self._keys[number], self._values[number]
        rope_write(q, k, v, self._rope, keys, values, plan)
        mixed = self._mixed[:count]
        paged_attention(q, keys, values, plan, out=mixed.view(count, -1, head_dim))
        return mixed

    def _score(self, normed_RD: Tensor) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for first in range(0, len(normed_RD), len(self._scores)):
            with torch.inference_mode():
                rows = normed_RD[first : first + len(self._scores)]
                scores = linear(rows, self._head, out=self._scores[: len(rows)])
            yield first, scores.numpy()
