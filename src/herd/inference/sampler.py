"""Choose the next token from logits. A draw depends on (seed, position) alone, so a seed replays however the request was run.

Greedy takes the lowest id among equals. Otherwise: temperature, top-k, top-p, min-p, then one uniform number picks from what is left by
cumulative probability in id order. Shapes: V vocabulary.
"""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

from herd.inference.params import SamplingParams


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a pure function of seed and position."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def probabilities(logits: Float[Tensor, "V"], params: SamplingParams) -> Float[Tensor, "V"]:
    """The distribution to draw from: float64, zero for every token that the parameters rule out."""
    scores = logits.double() / params.temperature
    probs = torch.softmax(scores, dim=-1)
    if params.top_k and params.top_k < probs.numel():
        threshold = torch.topk(probs, params.top_k).values[-1]
        probs = torch.where(probs >= threshold, probs, 0.0)
        probs = probs / probs.sum()
    if params.top_p < 1.0:
        ordered, index = torch.sort(probs, descending=True, stable=True)
        before = torch.cumsum(ordered, -1) - ordered
        keep = torch.zeros_like(probs, dtype=torch.bool).scatter_(0, index, before <= params.top_p)
        probs = torch.where(keep, probs, 0.0)
        probs = probs / probs.sum()
    if params.min_p > 0.0:
        probs = torch.where(probs >= params.min_p * probs.max(), probs, 0.0)
        probs = probs / probs.sum()
    return probs


def sample(logits: Float[Tensor, "V"], params: SamplingParams, *, seed: int, position: int) -> int:
    """The id of the next token at `position` (counted from the start of the prompt)."""
    if params.temperature == 0.0:
        return int(torch.argmax(logits))
    cumulative = torch.cumsum(probabilities(logits, params), -1)
    place = torch.searchsorted(cumulative, torch.tensor(uniform(seed, position) * float(cumulative[-1]), dtype=torch.float64), right=True)
    return min(int(place), int(torch.nonzero(cumulative.diff(prepend=cumulative.new_zeros(1)))[-1]))
