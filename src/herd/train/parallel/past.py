"""Causal attention of a document's last tokens over all of it, by fused kernels alone: no mask and no scores exist, at any length.

The C queries of a chunk see every key before the chunk, and those of the chunk up to themselves. Each part is one call of the fused kernel,
and the two are put together by their normalisers; on the way back each part gets the whole's output and normaliser, which makes its
gradients those of the whole softmax:

    log Z = logaddexp(log Z_past, log Z_own),   O = O_past exp(log Z_past - log Z) + O_own exp(log Z_own - log Z)

A GPU's kernel knows the same thing as a causal mask that is aligned at the lower right. Shapes: B batch, C queries, S keys (C <= S),
N query heads, K KV heads, H head dim; inside, heads stand before tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from herd.kernels.torch_compat import flash_backward_cpu, flash_cpu
from herd.model.attention import sdpa


class _LastTokens(torch.autograd.Function):
    """[B, N, C, H] over [B, K, S, H]; S is more than C."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before = k.shape[2] - q.shape[2]
        past, log_past = flash_cpu(q, k[:, :, :before], v[:, :, :before], causal=False)
        own, log_own = flash_cpu(q, k[:, :, before:], v[:, :, before:], causal=True)
        log_z = torch.logaddexp(log_past, log_own)
        out = past.float() * (log_past - log_z).exp_()[..., None] + own.float() * (log_own - log_z).exp_()[..., None]
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, log_z)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, log_z = ctx.saved_tensors
        grad, before = grads[0].contiguous(), k.shape[2] - q.shape[2]
        grad_q, grad_k, grad_v = flash_backward_cpu(grad, q, k[:, :, :before], v[:, :, :before], out, log_z, causal=False)
        own_q, own_k, own_v = flash_backward_cpu(grad, q, k[:, :, before:], v[:, :, before:], out, log_z, causal=True)
        return grad_q + own_q, torch.cat((grad_k, own_k), dim=2), torch.cat((grad_v, own_v), dim=2)


def last_tokens(
    q_BCNH: Float[Tensor, "B C N H"], k_BSKH: Float[Tensor, "B S K H"], v_BSKH: Float[Tensor, "B S K H"]
) -> Float[Tensor, "B C N H"]:
    """Causal attention where the queries are the end of what the keys are."""
    if q_BCNH.shape[1] == k_BSKH.shape[1]:
        return sdpa(q_BCNH, k_BSKH, v_BSKH, causal=True)
    q, k, v = (x.transpose(1, 2) for x in (q_BCNH, k_BSKH, v_BSKH))
    if q.device.type == "cpu":
        out: Tensor = _LastTokens.apply(q, k, v)  # pyright: ignore[reportAssignmentType]
        return out.transpose(1, 2)
    return lower_right(q, k, v).transpose(1, 2)


def lower_right(q: Float[Tensor, "B N C H"], k: Float[Tensor, "B K S H"], v: Float[Tensor, "B K S H"]) -> Float[Tensor, "B N C H"]:
    """The same by torch's own dispatch, which has a fused kernel for it on GPUs."""
    bias = causal_lower_right(q.shape[2], k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=q.shape[1] != k.shape[1])  # pyright: ignore[reportArgumentType]
