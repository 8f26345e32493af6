"""Choose the next token from logits. A draw depends on (seed, position) alone, so a seed replays however the request was run.

Greedy takes the lowest id among equals, and so do top-k and top-p at their limits. Otherwise: temperature, top-k, top-p, min-p, then one
uniform number picks from what is left by cumulative probability in id order. Shapes: V vocabulary.
"""

from __future__ import annotations

import hashlib
import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from herd.base.errors import CheckpointError
from herd.inference.params import SamplingParams


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a pure function of seed and position."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def probabilities(logits: Float[Tensor, "V"], params: SamplingParams) -> Float[Tensor, "V"]:
    """The distribution to draw from: float64, zero for every token that the parameters rule out."""
    # The largest score becomes 0 before the division, so that no temperature overflows.
    scores = logits.double()
    probs = torch.softmax((scores - scores.max()) / params.temperature, dim=-1)
    if params.top_k and params.top_k < probs.numel():
        likeliest = torch.sort(probs, descending=True, stable=True).indices[: params.top_k]
        probs = _only(probs, torch.zeros_like(probs, dtype=torch.bool).index_fill_(0, likeliest, True))
    if params.top_p < 1.0:
        ordered, index = torch.sort(probs, descending=True, stable=True)
        before = torch.cumsum(ordered, -1) - ordered
        probs = _only(probs, torch.zeros_like(probs, dtype=torch.bool).scatter_(0, index, before <= params.top_p))
    if params.min_p > 0.0:
        probs = _only(probs, probs >= params.min_p * probs.max())
    return probs


def _only(probs: Float[Tensor, "V"], keep: Bool[Tensor, "V"]) -> Float[Tensor, "V"]:
    """The distribution without the tokens that are not kept."""
    kept = torch.where(keep, probs, 0.0)
    return kept / kept.sum()


def sample(logits: Float[Tensor, "V"], params: SamplingParams, *, seed: int, position: int) -> int:
    """The id of the next token at `position` (counted from the start of the prompt).

    Raises CheckpointError for logits that are no numbers: what would be drawn from them is noise.
    """
    if not math.isfinite(float(logits.max())):
        raise CheckpointError(
            f"the model's scores for token {position} are not finite numbers",
            hint="its weights are damaged (herd verify MODEL), or its dtype is too narrow for them: try --dtype float32",
        )
    if params.temperature == 0.0:
        return int(torch.argmax(logits))
    cumulative = torch.cumsum(probabilities(logits, params), -1)
    place = torch.searchsorted(cumulative, torch.tensor(uniform(seed, position) * float(cumulative[-1]), dtype=torch.float64), right=True)
    return min(int(place), int(torch.nonzero(cumulative.diff(prepend=cumulative.new_zeros(1)))[-1]))
