"""The blocks of a model over a paged cache, by the Triton kernels: a residual stream goes in and comes out.

The same steps and rounding points as `engine.layers`; where a product takes quantised rows, the norm before it makes them. What it launches
follows from its arguments' shapes, so it can be captured. Shapes: T tokens, D model dim, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from herd.engine.gpu.buffers import Buffers
from herd.engine.gpu.layout import Places
from herd.engine.gpu.weights import GpuWeights, Stack
from herd.kernels.triton.linear import AS_IS, BYTES, linear, met_codes
from herd.kernels.triton.norm import rms_norm, rms_norm_quantised
from herd.kernels.triton.rope import rope_write
from herd.kernels.triton.swiglu import swiglu
from herd.model.config import ModelConfig

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], object]
"""Attention of q over a layer's keys and values, into a tensor."""


class GpuForward:
    """Weights, cache and working space of one model."""

    def __init__(self, config: ModelConfig, weights: GpuWeights, buffers: Buffers, keys: Tensor, values: Tensor, *, exact: bool) -> None:
        self.config, self.weights, self.buffers, self.keys, self.values, self.exact = config, weights, buffers, keys, values, exact
        query, keyvalue = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self._split = (query, keyvalue, keyvalue)

    def run(self, places: Places, attend: Attend) -> None:
        """Leave the residual stream after the last block in its arena."""
        count, config, arenas = len(places.tokens), self.config, self.buffers.arenas
        x, delta, mixed, gates, ffn, qkv = (arenas[name][:count] for name in ("residual", "delta", "mixed", "gates", "ffn", "qkv"))
        torch.index_select(self.weights.embedding, 0, places.tokens, out=x)
        added: Tensor | None = None
        for block, keys, values in zip(self.weights.blocks, self.keys, self.values, strict=True):
            self.norm_then(x, block.norm, block.qkv, qkv, added)
            q, k, v = (part.view(count, -1, config.head_dim) for part in qkv.split(self._split, dim=-1))
            angles = {"cos": self.buffers.cos, "sin": self.buffers.sin}
            rope_write(q, k, v, **angles, positions=places.positions, slots=places.slots, keys=keys, values=values)
            attend(q, keys, values, mixed.view(count, -1, config.head_dim))
            self.multiply(mixed, block.out, delta)
            self.norm_then(x, block.ffn_norm, block.gate_up, gates, delta)
            swiglu(*gates.chunk(2, dim=-1), out=ffn)
            self.multiply(ffn, block.down, delta)
            added = delta
        x.add_(delta)

    def multiply(self, x_TK: Tensor, stack: Stack, out: Tensor) -> None:
        """The products of a stack, side by side in `out`."""
        for matrix, part in zip(stack, _parts(stack, out), strict=True):
            linear(x_TK, matrix, out=part, scratch=self.buffers.scratch, exact=self.exact)

    def norm_then(self, x_TD: Tensor, weight: Tensor, stack: Stack, out: Tensor, delta: Tensor | None) -> None:
        """Add `delta` to the residual stream, normalise it, and multiply it with a stack."""
        matrix, scratch, eps = stack[0], self.buffers.scratch, self.config.rms_norm_eps
        if len(stack) == 1 and matrix.inputs != AS_IS and matrix.columns is None:
            codes, scales = scratch.codes_of(len(x_TD), matrix)
            mode = "int8" if matrix.inputs == BYTES else "fp8"
            rms_norm_quantised(x_TD, weight, eps, mode=mode, codes=codes, scales=scales, delta=delta, bound=matrix.bound)
            met_codes(codes, scales, matrix, out=out, scratch=scratch, exact=self.exact)
            return
        normed = rms_norm(x_TD, weight, eps, out=self.buffers.arenas["normed"][: len(x_TD)], delta=delta)
        self.multiply(normed, stack, out)


def _parts(stack: Stack, out: Tensor) -> list[Tensor]:
    ends = [0]
    for matrix in stack:
        ends.append(ends[-1] + matrix.num_outputs)
    return [out[:, begin:end] for begin, end in pairwise(ends)]
