"""The ops of `herd.model`: torch's own, differentiable, in whatever order of summation torch takes. Where a gradient is wanted on a CPU
those between the products are `fused`.

With HERD_KERNELS=reference they keep the fixed order of the references instead, so that a forward over a whole sequence has the very bits
of the engine's, token by token.

Shapes: B batch, T tokens, K inputs, N outputs (in `causal_attention`: N query heads, K KV heads), H head dim, F frequencies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from herd.kernels import attention, dispatch, fused, norm, tiles
from herd.kernels.rope import RopeTable


def linear(x: Float[Tensor, "*batch K"], weight: Float[Tensor, "N K"]) -> Float[Tensor, "*batch N"]:
    """Rows times a matrix: x w^T."""
    if not dispatch.fixed_order():
        return F.linear(x, weight)
    aligned = tiles.align(weight, 2)
    rows = F.pad(x.reshape(-1, x.shape[-1]), (0, aligned.shape[1] - weight.shape[1]))
    product = tiles.by_rows(lambda tile: F.linear(tile, aligned), rows)
    return product[:, : len(weight)].view(*x.shape[:-1], len(weight))


def rms_norm(x: Float[Tensor, "*batch D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*batch D"]:
    """Rows normalised: x * rsqrt(mean(x^2) + eps), in float32 and cast back, times the weight."""
    if dispatch.fixed_order():
        return norm.reference(x.reshape(-1, x.shape[-1]), weight.to(x.dtype), eps).view(x.shape)
    narrow = weight.to(x.dtype)
    if fused.applies(x, narrow):
        return fused.rms_norm(x, narrow, eps)
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * narrow


def swiglu(gate: Float[Tensor, "*batch F"], up: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch F"]:
    """silu(gate) * up, where silu(x) = x / (1 + e^-x)."""
    if dispatch.fixed_order():
        return tiles.by_elements(F.silu, gate) * up
    return fused.swiglu(gate, up) if fused.applies(gate, up) else F.silu(gate) * up


def rope_angles(positions_BT: Int[Tensor, "B T"], frequencies: Float[Tensor, "F"]) -> tuple[Float[Tensor, "B T F"], Float[Tensor, "B T F"]]:
    """Cosines and sines of every position and frequency, float32."""
    if dispatch.fixed_order() and positions_BT.numel():
        cos, sin = RopeTable(frequencies).upto(int(positions_BT.max()) + 1)
        places = positions_BT.cpu()
        return cos[places].to(positions_BT.device), sin[places].to(positions_BT.device)
    angles = positions_BT[:, :, None].float() * frequencies
    return angles.cos(), angles.sin()


def causal_attention(
    q_BTNH: Float[Tensor, "B T N H"], k_BTKH: Float[Tensor, "B T K H"], v_BTKH: Float[Tensor, "B T K H"]
) -> Float[Tensor, "B T N H"] | None:
    """Attention in the fixed order, where that is asked for; None where the caller is to take torch's."""
    if not dispatch.fixed_order():
        return None
    return torch.stack([attention.dense_reference(*row) for row in zip(q_BTNH, k_BTKH, v_BTKH, strict=True)])
