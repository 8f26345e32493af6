"""Initial weights: normal with the config's standard deviation, and depth-scaled where a matrix writes to the residual stream.

A parameter's value depends on (seed, its name) alone, so it is the same whatever the device, the mesh or the order of construction.
"""

from __future__ import annotations

import hashlib
import math

import torch

from herd.model.transformer import Transformer

_RESIDUAL_WRITERS = ("o_proj.weight", "down_proj.weight")


def parameter_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator that is a function of the seed and the parameter's name."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@torch.no_grad()
def initialise(model: Transformer, *, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Transformer:
    """Allocate `model` (built on meta or not) on `device` in `dtype` and fill it. Returns the model."""
    model.to(dtype=dtype)
    model.to_empty(device=device)
    std = model.config.initializer_range
    depth = 1.0 / math.sqrt(2 * model.config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
            continue
        scale = std * depth if name.endswith(_RESIDUAL_WRITERS) else std
        values = torch.empty(parameter.shape, dtype=torch.float32)
        torch.nn.init.trunc_normal_(values, 0.0, scale, -3 * scale, 3 * scale, generator=parameter_generator(seed, name))
        parameter.copy_(values)
    return model
