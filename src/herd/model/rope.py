"""Rotary position embedding with Llama 3.1's frequency scaling.

Knows positions and head size only: no cache, no batch layout. Frequencies and angles are computed in fp32, whatever the model's dtype.
Pairs are (i, i + H/2), as in Hugging Face files; Meta files interleave pairs and are permuted on load (`checkpoint.meta`).
    f_i = theta^(-2i/H);  wavelength w = 2 pi / f;  scaled as `config.RopeScaling` says.
Llama 3 report, section 3.2 (theta 500,000); the scaling is in Meta's released code, not in the report.
Shapes: B batch, T tokens, N heads, H head dim, F = H/2 frequencies.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from herd.kernels import fused, plain
from herd.model.config import ModelConfig, RopeScaling


def rope_frequencies(config: ModelConfig, device: torch.device | str | None = None) -> Float[Tensor, "F"]:
    """The angle, in radians a position, of each of the H/2 rotated pairs; float32."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=device).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponent)
    return frequencies if config.rope_scaling is None else scale_frequencies(frequencies, config.rope_scaling)


def scale_frequencies(frequencies: Float[Tensor, "F"], scaling: RopeScaling) -> Float[Tensor, "F"]:
    """Apply the Llama 3.1 scaling: keep short wavelengths, divide long ones by `factor`, blend between."""
    original = scaling.original_max_position_embeddings
    wavelength = 2 * math.pi / frequencies
    smooth = (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(wavelength > original / scaling.low_freq_factor, frequencies / scaling.factor, frequencies)
    between = (wavelength <= original / scaling.low_freq_factor) & (wavelength >= original / scaling.high_freq_factor)
    return torch.where(between, blended, scaled)


def rope_table(
    positions_BT: Int[Tensor, "B T"], frequencies: Float[Tensor, "F"]
) -> tuple[Float[Tensor, "B T 1 2*F"], Float[Tensor, "B T 1 2*F"]]:
    """Cosines and sines of every position, float32, shaped to multiply [B, T, heads, H]."""
    cos, sin = plain.rope_angles(positions_BT, frequencies)
    return torch.cat((cos, cos), dim=-1)[:, :, None, :], torch.cat((sin, sin), dim=-1)[:, :, None, :]


def apply_rope(
    x_BTNH: Float[Tensor, "B T N H"], cos: Float[Tensor, "#B T 1 H"], sin: Float[Tensor, "#B T 1 H"]
) -> Float[Tensor, "B T N H"]:
    """Rotate each pair (i, i + H/2) of every head by its position's angle; computed in fp32, returned in x's dtype."""
    if fused.applies(x_BTNH):
        return fused.rotate(x_BTNH, cos, sin)
    x = x_BTNH.float()
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x_BTNH.dtype)
