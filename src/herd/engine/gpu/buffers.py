"""What the GPU runner allocates beside weights, cache and scores: activations, angles, a step's numbers, scratch of products and attention.

Made on the meta device it takes nothing and still knows its bytes: that is how the memory plan counts it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from herd.engine.gpu.graphs import padded_parts
from herd.engine.gpu.layout import Sizes
from herd.kernels.triton import attention
from herd.kernels.triton.linear import GpuMatrix, Scratch
from herd.model.config import ModelConfig

PARTIALS = 4096
"""Tokens times parts that a decoding step may leave to be merged; where it would be more, programs walk all parts of their token."""


def most_sizes(max_tokens: int, max_sequences: int, width: int) -> Sizes:
    """A step's numbers at most. A tile has at least one token, and each sequence may begin one of its own."""
    return Sizes(tokens=max_tokens, sequences=max_sequences, width=width, rows=max_tokens, tiles=max_tokens)


class Buffers:
    """Working space for `max_tokens` tokens of `max_sequences` sequences with at most `width` blocks of `block_size` each."""

    def __init__(
        self,
        config: ModelConfig,
        matrices: list[GpuMatrix],
        *,
        dtype: torch.dtype,
        max_tokens: int,
        max_sequences: int,
        width: int,
        block_size: int,
        device: torch.device,
    ) -> None:
        query, keyvalue = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        hidden, ffn = config.hidden_size, config.intermediate_size
        widths = {
            "residual": hidden,
            "normed": hidden,
            "delta": hidden,
            "qkv": query + 2 * keyvalue,
            "mixed": query,
            "gates": 2 * ffn,
            "ffn": ffn,
        }
        self.arenas = {name: torch.empty(max_tokens, size, dtype=dtype, device=device) for name, size in widths.items()}
        self.scratch = Scratch.of(matrices, rows=max_tokens, dtype=dtype, device=device)
        self.numbers = torch.zeros(most_sizes(max_tokens, max_sequences, width).total, dtype=torch.int32, device=device)
        positions = width * block_size
        self.cos, self.sin = (torch.zeros(positions, config.head_dim // 2, device=device) for _ in range(2))
        partials = min(PARTIALS, max_sequences * padded_parts(attention.num_parts(positions)))
        self.partials = torch.empty(
            attention.partial_numbers(partials, config.num_attention_heads, config.head_dim, 1), dtype=torch.float32, device=device
        )
        self.most_partials = partials

    def tensors(self) -> list[Tensor]:
        """Everything that has bytes."""
        scratch = self.scratch
        return [
            *self.arenas.values(),
            scratch.parts,
            scratch.codes,
            scratch.scales,
            scratch.gathered,
            self.numbers,
            self.cos,
            self.sin,
            self.partials,
        ]

    @property
    def size_bytes(self) -> int:
        """Bytes of it all."""
        return sum(tensor.nbytes for tensor in self.tensors())
