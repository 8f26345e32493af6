"""The bytes that the GPU runner allocates beyond the arenas that every plan counts, computed from shapes; nothing is allocated.

Exactly what it allocates, for a model that has an id for every row of its vocabulary; a few numbers of each draw come and go beside it.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from herd.engine.gpu.buffers import Buffers
from herd.engine.gpu.weights import stacks
from herd.engine.memory import EngineConfig, activation_bytes, dtype_bytes
from herd.kernels.triton.linear import GpuMatrix
from herd.model.transformer import Transformer


def extra_bytes(model: Transformer, engine: EngineConfig) -> int:
    """Arenas, scratch of products and attention, angles of all positions and tables, less what the plan has for a step: it may be less."""
    config = model.config
    buffers = Buffers(
        config,
        [_shape(matrix) for stack in stacks(model) for matrix in stack],
        dtype=model.dtype,
        max_tokens=engine.token_budget,
        max_sequences=engine.max_sequences,
        width=-(-(engine.context or config.max_position_embeddings) // engine.block_size),
        block_size=engine.block_size,
        device=torch.device("meta"),
    )
    counted = activation_bytes(config, engine.token_budget, dtype_bytes(str(model.dtype).removeprefix("torch.")))
    return buffers.size_bytes - counted


def _shape(matrix: GpuMatrix) -> GpuMatrix:
    return replace(matrix, values=matrix.values.to("meta"), scales=None, zeros=None)
