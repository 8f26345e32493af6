"""A static key-value cache that is an attention core: one allocation, written in place, for prefill and decode of one batch.

The simplest core that generates; the engine's paged core takes its place for serving. Every row of the batch has the same length.
Shapes: B batch, T new tokens, S capacity, K KV heads, H head dim.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from herd.base.errors import ContextOverflowError
from herd.model.attention import sdpa
from herd.model.config import ModelConfig


class StaticCache:
    """Room for `capacity` tokens a row. Call `advance(T)` after each forward over T new tokens."""

    def __init__(
        self, config: ModelConfig, *, capacity: int, batch: int = 1, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        shape = (config.num_hidden_layers, batch, capacity, config.num_key_value_heads, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

    def positions(self, num_tokens: int) -> Tensor:
        """Positions [1, T] of the next `num_tokens` tokens."""
        return torch.arange(self.length, self.length + num_tokens, device=self.keys.device)[None]

    def advance(self, num_tokens: int) -> None:
        """Count tokens that a finished forward has written."""
        self.length += num_tokens

    def truncate(self, length: int) -> None:
        """Forget every token from `length` on."""
        self.length = min(self.length, length)

    def __call__(
        self, layer: int, q_BTNH: Float[Tensor, "B T N H"], k_BTKH: Float[Tensor, "B T K H"], v_BTKH: Float[Tensor, "B T K H"]
    ) -> Float[Tensor, "B T N H"]:
        start, tokens = self.length, k_BTKH.shape[1]
        end = start + tokens
        if end > self.capacity:
            raise ContextOverflowError(
                f"{end:,} tokens do not fit a cache of {self.capacity:,}", hint="shorten the prompt, or ask for fewer new tokens"
            )
        self.keys[layer, :, start:end] = k_BTKH
        self.values[layer, :, start:end] = v_BTKH
        keys, values = self.keys[layer, :, :end], self.values[layer, :, :end]
        if start == 0:
            return sdpa(q_BTNH, keys, values, causal=True)
        if tokens == 1:
            return sdpa(q_BTNH, keys, values)
        mask = torch.ones(tokens, end, dtype=torch.bool, device=keys.device).tril(diagonal=start)
        return sdpa(q_BTNH, keys, values, mask)
