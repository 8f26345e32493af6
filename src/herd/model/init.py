"""Initial weights: normal with the config's standard deviation, and depth-scaled where a matrix writes to the residual stream.

A parameter's value depends on (seed, its name) alone, so it is the same whatever the device, the mesh or the order of construction.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from herd.model.config import ModelConfig
from herd.model.transformer import Transformer

_RESIDUAL_WRITERS = ("o_proj.weight", "down_proj.weight")


def parameter_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator that is a function of the seed and the parameter's name."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def initial_values(config: ModelConfig, name: str, shape: Sequence[int], *, seed: int) -> Tensor:
    """The first float32 values, on the CPU, of a parameter of this name and (whole) shape."""
    if name.endswith("norm.weight"):
        return torch.ones(tuple(shape))
    depth = 1.0 / math.sqrt(2 * config.num_hidden_layers)
    scale = config.initializer_range * (depth if name.endswith(_RESIDUAL_WRITERS) else 1.0)
    values = torch.empty(tuple(shape), dtype=torch.float32)
    return torch.nn.init.trunc_normal_(values, 0.0, scale, -3 * scale, 3 * scale, generator=parameter_generator(seed, name))


@torch.no_grad()
def initialise(model: Transformer, *, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Transformer:
    """Allocate `model` (built on meta or not) on `device` in `dtype` and fill it. Returns the model."""
    model.to(dtype=dtype)
    model.to_empty(device=device)
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_values(model.config, name, parameter.shape, seed=seed))
    return model
