"""The CPU runner: walks a transformer's layers over packed weights and a paged cache, by the kernels of `herd.kernels`: in one call of C
where it can, else op by op.

Built from a `Transformer`'s config and parameters; rounding points are the model's, and a parity test holds the two together. Everything is
allocated here, once: packed weights, cache, activations, scores. A row's scores are the same whatever else is in the batch (kernels' law).
Shapes: T tokens, D model dim, N query heads, K KV heads, H head dim, F ffn dim, R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from herd.engine import block_copy
from herd.engine.batch import RaggedBatch
from herd.kernels.attention import paged_attention
from herd.kernels.batch import Batch, plan_batch
from herd.kernels.forward import Block, Forward
from herd.kernels.linear import linear, linear_swiglu, pack_gate_up, pack_linear
from herd.kernels.norm import add_rms_norm, rms_norm
from herd.kernels.rope import RopeTable, make_cache, rope_write
from herd.model.block import Block as DecoderBlock
from herd.model.rope import rope_frequencies
from herd.model.transformer import Transformer


def _packed(block: nn.Module, keys: Tensor, values: Tensor) -> Block:
    assert isinstance(block, DecoderBlock)
    attention, mlp = block.self_attn, block.mlp
    dtype = attention.q_proj.weight.dtype
    return Block(
        norm=block.input_layernorm.weight.detach().to(dtype),
        qkv=pack_linear([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]),
        out=pack_linear(attention.o_proj.weight),
        ffn_norm=block.post_attention_layernorm.weight.detach().to(dtype),
        gate_up=pack_gate_up(mlp.gate_proj.weight, mlp.up_proj.weight),
        down=pack_linear(mlp.down_proj.weight),
        keys=keys,
        values=values,
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
        keys, values = make_cache(
            num_layers=config.num_hidden_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            dtype=getattr(torch, cache_dtype) if cache_dtype else model.dtype,
        )
        self._keys, self._values = keys, values
        self.block_layout, self.block_bytes = block_copy.block_layout((keys, values)), block_copy.block_bytes((keys, values))
        self._blocks = [_packed(*block) for block in zip(model.model.layers, keys, values, strict=True)]
        self._norm = model.model.norm.weight.detach().to(model.dtype)
        self._head = pack_linear(model.head_weight[: self.vocab_size])
        self._embedding = None if config.tie_word_embeddings else model.model.embed_tokens.weight.detach()
        self._rope = RopeTable(rope_frequencies(config))
        query, keyvalue = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self._split = (query, keyvalue, keyvalue)
        hidden, ffn = config.hidden_size, config.intermediate_size
        widths = {"residual": hidden, "normed": hidden, "qkv": query + 2 * keyvalue, "mixed": query, "ffn": ffn, "delta": hidden}
        self._arenas = {name: torch.empty(max_tokens, width, dtype=model.dtype) for name, width in widths.items()}
        self._scores = torch.empty(score_rows, self.vocab_size, dtype=torch.float32)
        self._states = torch.empty(score_rows, config.hidden_size, dtype=torch.float32)
        self._forward = self._whole()

    def _whole(self) -> Forward | None:
        """All blocks in one call, where C knows the shapes."""
        config = self.config
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        if not Forward.fits(self._head, self._embedding, num_heads=heads, kv_heads=kv_heads, head_dim=head_dim):
            return None
        return Forward(
            self._blocks,
            norm=self._norm,
            head=self._head,
            embedding=self._embedding,
            rope=self._rope,
            num_heads=heads,
            eps=config.rms_norm_eps,
            arenas=self._arenas,
            scores=self._scores,
        )

    def run(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.run`: the batch has been computed when this returns."""
        self._copy(batch.copies)
        if self._forward is None or not self._forward.available or len(batch.hidden_E):
            return self._by_ops(batch)
        places = {"first_S": batch.first_S, "starts": batch.starts, "block_table_SW": batch.block_table_SW}
        self._forward(batch.tokens_T, rows_R=batch.rows_R, **places)
        return self._chunks(len(batch.rows_R), self._forward.score)

    @torch.inference_mode()
    def _by_ops(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        hidden = self._hidden(batch)[torch.from_numpy(batch.rows_R)]
        normed_RD = rms_norm(hidden, self._norm, self.config.rms_norm_eps)

        @torch.inference_mode()
        def score(first: int, count: int) -> NDArray[np.float32]:
            return linear(normed_RD[first : first + count], self._head, out=self._scores[:count]).numpy()

        return self._chunks(len(normed_RD), score)

    def _chunks(self, num_rows: int, score: Callable[[int, int], NDArray[np.float32]]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for first in range(0, num_rows, len(self._scores)):
            yield first, score(first, min(num_rows - first, len(self._scores)))

    def hidden(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.hidden`: the residual stream of the last batch, run op by op, is still in its arena."""
        rows = torch.from_numpy(batch.hidden_E)
        for first in range(0, len(rows), len(self._states)):
            with torch.inference_mode():
                part = self._arenas["residual"][rows[first : first + len(self._states)]]
                states = self._states[: len(part)].copy_(rms_norm(part, self._norm, self.config.rms_norm_eps))
            yield first, states.numpy()

    def copy_out(self, block: int) -> memoryview:
        """See `batch.BlockCopier`."""
        return block_copy.copy_out((self._keys, self._values), block)

    def copy_in(self, block: int, content: memoryview) -> None:
        """See `batch.BlockCopier`."""
        block_copy.copy_in((self._keys, self._values), block, content)

    @torch.inference_mode()
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
        x_TD, normed, delta, ffn = (self._arenas[name][:count] for name in ("residual", "normed", "delta", "ffn"))
        x_TD.copy_(self._embed(torch.from_numpy(batch.tokens_T).long()))
        rms_norm(x_TD, self._blocks[0].norm, eps, out=normed)
        for number, layer in enumerate(self._blocks):
            linear(self._attend(layer, normed, plan), layer.out, out=delta)
            add_rms_norm(x_TD, delta, layer.ffn_norm, eps, out=normed)
            product = linear_swiglu(normed, layer.gate_up, out=ffn)
            linear(product, layer.down, out=delta)
            if number + 1 < len(self._blocks):
                add_rms_norm(x_TD, delta, self._blocks[number + 1].norm, eps, out=normed)
        return x_TD.add_(delta)

    def _embed(self, tokens_T: Tensor) -> Tensor:
        return self._head.rows(tokens_T) if self._embedding is None else self._embedding[tokens_T]

    def _attend(self, layer: Block, normed_TD: Tensor, plan: Batch) -> Tensor:
        count, head_dim = plan.num_tokens, self.config.head_dim
        qkv = linear(normed_TD, layer.qkv, out=self._arenas["qkv"][:count])
        q, k, v = (part.view(count, -1, head_dim) for part in qkv.split(self._split, dim=-1))
        rope_write(q, k, v, self._rope, layer.keys, layer.values, plan)
        mixed = self._arenas["mixed"][:count]
        paged_attention(q, layer.keys, layer.values, plan, out=mixed.view(count, -1, head_dim))
        return mixed
