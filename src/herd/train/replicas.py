"""A hash of the weights, to catch silent corruption: replicas that should be equal, and are not, differ in it.

    h(w) = sum_i (2 i + 1) * G * (bits(w_i) + 1)  mod 2^64

over the bit patterns, so that one flipped bit anywhere changes it (an odd factor has an inverse), as does a permutation. It is computed
where the weights are, in chunks, and is the same on every device. Gathering the hashes of the ranks is the business of `parallel`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
_CHUNK = 1 << 22
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def tensor_hash(tensor: Tensor) -> int:
    """The 64-bit hash of a tensor's bits, in the order of its elements."""
    words = tensor.detach().contiguous().view(-1).view(_WORDS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK].to(torch.int64)
        place = torch.arange(start, start + len(part), dtype=torch.int64, device=tensor.device)
        total += ((2 * place + 1) * _GOLDEN * (part + 1)).sum()
    return int(total) & (2**64 - 1)


def parameter_hash(model: nn.Module) -> str:
    """A hash of every parameter by its name: equal on replicas with the same bits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}:{tuple(parameter.shape)}:{parameter.dtype}:{tensor_hash(parameter):016x}\n".encode())
    return digest.hexdigest()


def differing_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """The names whose bits differ, or that one side lacks."""
    return sorted(
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or tensor_hash(ours[name]) != tensor_hash(theirs[name])
    )


def odd_replicas(hashes: Sequence[str]) -> list[int]:
    """The ranks whose hash is not that of the majority; all of them where there is no majority."""
    if len(set(hashes)) <= 1:
        return []
    common, votes = Counter(hashes).most_common(1)[0]
    if 2 * votes <= len(hashes):
        return list(range(len(hashes)))
    return [rank for rank, value in enumerate(hashes) if value != common]
