"""How the references keep the law: every product and every transcendental function at one fixed shape.

A library may choose another order of summation for another number of rows, and torch computes the last few elements of an array by another
exp than the rest. So rows go through products in tiles of 16, elements through functions in chunks of 4096, padded with zeros.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 16
_CHUNK = 4096
ALIGN = 16


def by_rows(function: Callable[[Tensor], Tensor], x_MK: Tensor) -> Tensor:
    """Apply a function of [16, K] to the rows of a matrix, whatever their number."""
    rows = x_MK.shape[0]
    if rows == 0:
        return function(x_MK.new_zeros(ROWS, x_MK.shape[1]))[:0]
    padded = F.pad(x_MK, (0, 0, 0, -rows % ROWS)).contiguous()
    return torch.cat([function(tile) for tile in padded.split(ROWS)])[:rows]


def by_elements(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of single elements."""
    padded = F.pad(x.reshape(-1), (0, -x.numel() % _CHUNK))
    if not padded.numel():
        return x.clone()
    return torch.cat([function(chunk) for chunk in padded.split(_CHUNK)])[: x.numel()].view(x.shape)


def align(x: Tensor, dims: int) -> Tensor:
    """The last `dims` dimensions padded with zeros to multiples of 16: small odd products are computed by other means, row by row."""
    padding: list[int] = []
    for dim in range(1, dims + 1):
        padding += [0, -x.shape[-dim] % ALIGN]
    return F.pad(x, padding) if any(padding) else x
