"""RMSNorm as Llama computes it: in fp32, cast back to the input's dtype, then multiplied by the weight.

The order of cast and multiplication is part of the definition: another order differs in the last bit of bf16.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from herd.kernels import plain


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) * weight over the last dimension."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return plain.rms_norm(x, self.weight, self.eps)
