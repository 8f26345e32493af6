"""One block of a paged cache as bytes: what lies in it of every tensor of the cache, one behind the other.

A cache's tensors are [layers, blocks, ...]: keys and values here, and whatever else a layout needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


def block_layout(caches: Sequence[Tensor]) -> str:
    """Dtype and shape of what a block has of each tensor."""
    shapes = [(str(cache.dtype).removeprefix("torch."), (cache.shape[0], *cache.shape[2:])) for cache in caches]
    return " ".join(f"{dtype}[{','.join(map(str, shape))}]" for dtype, shape in shapes)


def block_bytes(caches: Sequence[Tensor]) -> int:
    """What a block takes."""
    return sum(_shares(caches))


def _shares(caches: Sequence[Tensor]) -> list[int]:
    return [cache.shape[0] * prod(cache.shape[2:]) * cache.element_size() for cache in caches]


@torch.inference_mode()
def copy_out(caches: Sequence[Tensor], block: int) -> memoryview:
    """A copy of a block's bytes."""
    content = torch.empty(block_bytes(caches), dtype=torch.uint8)
    for cache, share in zip(caches, content.split(_shares(caches)), strict=True):
        share.view(cache.dtype).view(cache[:, block].shape).copy_(cache[:, block])
    return content.numpy().data


@torch.inference_mode()
def copy_in(caches: Sequence[Tensor], block: int, content: memoryview) -> None:
    """Overwrite a block with what `copy_out` gave."""
    shares = torch.frombuffer(content, dtype=torch.uint8).split(_shares(caches))
    for cache, share in zip(caches, shares, strict=True):
        # A header's length may leave the bytes where a wider dtype cannot be viewed in place.
        cache[:, block] = share.clone().view(cache.dtype).view(cache[:, block].shape)
