"""NF4: matrices in 4 bits with double quantisation, a plain torch reference. QLoRA, arXiv 2305.14314, section 3.

Weights are cut into blocks of 64; each is divided by its largest absolute value and every weight replaced by the nearest of 16 levels,
which are quantiles of a normal distribution with zero among them. The blocks' largest values, less their mean, are quantised in turn, 256
to a block, to 8-bit floats (e4m3). So a weight costs 4 + 8/64 + 32/(64 * 256) = 4.127 bits. Levels are packed two to a byte, the first in
the high half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
SECOND_BLOCK = 256
EIGHT_BIT = torch.float8_e4m3fn
_EIGHT_BIT_MAX = 448.0

LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The table of the paper's appendix E, as its authors' code prints it in float32."""


def normal_levels() -> Tensor:
    """The table computed: quantiles of a normal distribution, eight above zero, seven below, zero itself, scaled to [-1, 1]; float64."""
    offset = 0.9677083
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    above = normal.icdf(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    below = -normal.icdf(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([above, torch.zeros(1, dtype=torch.float64), below]).sort().values
    return levels / levels.abs().max()


@dataclass(frozen=True, kw_only=True, slots=True)
class Nf4:
    """A quantised matrix: `codes` uint8, two levels a byte; `scales` e4m3, one a block; `factors` float32, one for 256 blocks; `mean`."""

    codes: Tensor
    scales: Tensor
    factors: Tensor
    mean: Tensor
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return sum(part.numel() * part.element_size() for part in (self.codes, self.scales, self.factors, self.mean))


def _blocks(values: Tensor, size: int) -> Tensor:
    """Values in blocks, the last filled up with zeros."""
    flat = values.flatten()
    return F.pad(flat, (0, -len(flat) % size)).view(-1, size)


def quantise(weight: Tensor) -> Nf4:
    """Quantise a matrix."""
    blocks = _blocks(weight.detach().float(), BLOCK)
    largest = blocks.abs().amax(1)
    mean = largest.mean()
    second = _blocks(largest - mean, SECOND_BLOCK)
    factors = (second.abs().amax(1) / _EIGHT_BIT_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    scales = (second / factors[:, None]).to(EIGHT_BIT).flatten()[: len(blocks)]
    absmax = _absmax(scales, factors, mean)
    levels = torch.tensor(LEVELS, device=weight.device)
    # The nearest level by the midpoints between neighbours. The stored block scale, itself rounded, is what the levels will be scaled by.
    middles = (levels[1:] + levels[:-1]) / 2
    normalised = blocks / absmax.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    found = torch.bucketize(normalised, middles).to(torch.uint8).flatten()
    return Nf4(codes=(found[0::2] << 4) | found[1::2], scales=scales, factors=factors, mean=mean, shape=tuple(weight.shape))


def _absmax(scales: Tensor, factors: Tensor, mean: Tensor) -> Tensor:
    return (_blocks(scales.float(), SECOND_BLOCK) * factors[:, None]).flatten()[: len(scales)] + mean


@lru_cache(maxsize=8)
def _pairs(device: torch.device) -> Tensor:
    """The two levels of every byte [256, 2]; kept, since a copy to a GPU for each use would wait for it."""
    levels = torch.tensor(LEVELS, device=device)
    return torch.cartesian_prod(levels, levels)


def dequantise(stored: Nf4, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix that the codes stand for."""
    blocks = (
        F.embedding(stored.codes.int(), _pairs(stored.codes.device)).view(-1, BLOCK)
        * _absmax(stored.scales, stored.factors, stored.mean)[:, None]
    )
    return blocks.flatten()[: math.prod(stored.shape)].view(stored.shape).to(dtype)
