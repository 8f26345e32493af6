"""Causal attention in blocks of queries, for CPUs: products large enough to run at the processor's speed.

Torch's own CPU kernel works on small tiles and is slower up to 2K tokens in bf16 and 1K in float32. Block i of the queries meets the keys
up to its end, so half of the scores are never computed; one block's scores exist at a time. The probabilities of short rows are kept for
the way back where they are bf16; others are computed again. Scores, softmax and sums are float32; what lies between the products is one
pass of C (`kernels.softmax`).

    P = softmax(s Q K^T),  O = P V;  dS = P o (dO V^T - rowsum(dO o O)),  dQ = s dS K,  dK = s dS^T Q,  dV = P^T dO

Shapes: B rows, T tokens, N query heads, K KV heads, G = N/K query heads of a KV head, H head dim; X = B K, inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from herd.kernels import dispatch
from herd.kernels.softmax import causal_softmax, softmax_gradient

BLOCK = 64
"""Queries in a block; the fastest of 64, 128 and 256 on a Zen 5 core."""

KEEP_UP_TO = {torch.bfloat16: 1024}
FASTER_UP_TO = {torch.bfloat16: 2048, torch.float32: 1024}
"""Tokens in a row, by dtype: up to the first, probabilities are kept; past the second, torch's kernel is as fast."""


def _by_kv_head(q_BTNH: Tensor, num_kv: int) -> Tensor:
    """[B, T, N, H] as [B K, G, T, H], contiguous."""
    batch, length, heads, dim = q_BTNH.shape
    split = q_BTNH.view(batch, length, num_kv, heads // num_kv, dim)
    return split.permute(0, 2, 3, 1, 4).reshape(batch * num_kv, heads // num_kv, length, dim)


def _as_rows(x_XGTH: Tensor, batch: int) -> Tensor:
    """Back from `_by_kv_head`."""
    _, group, length, dim = x_XGTH.shape
    return x_XGTH.view(batch, -1, group, length, dim).permute(0, 3, 1, 2, 4).reshape(batch, length, -1, dim)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, BLOCK):
        yield start, min(length, start + BLOCK)


def _probabilities(q_XGTH: Tensor, keys_XHT: Tensor, start: int, end: int) -> Tensor:
    """Softmax of a block's scaled float32 scores against the keys up to its end, in q's dtype: [X, G * block, end]."""
    heads, group, _, dim = q_XGTH.shape
    block = q_XGTH[:, :, start:end].reshape(heads, -1, dim).float()
    scores = torch.bmm(block, keys_XHT[:, :, :end]).view(heads, group, end - start, end)
    return causal_softmax(scores, first=start + 1, scale=1 / math.sqrt(dim), dtype=q_XGTH.dtype).view(heads, -1, end)


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, group, length, dim = q.shape
        keys, out, kept = k.transpose(1, 2).float(), torch.empty_like(q), []
        for start, end in _blocks(length):
            probabilities = _probabilities(q, keys, start, end)
            out[:, :, start:end] = torch.bmm(probabilities, v[:, :end]).view(heads, group, end - start, dim)
            if length <= KEEP_UP_TO.get(q.dtype, 0):
                kept.append(probabilities)
        ctx.save_for_backward(q, k, v, out, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, *kept = ctx.saved_tensors
        grad = grad_outputs[0].contiguous()
        heads, group, length, dim = q.shape
        keys, grad_q = k.transpose(1, 2).float(), torch.empty_like(q)
        grad_k, grad_v = (torch.zeros(heads, length, dim, dtype=torch.float32, device=q.device) for _ in range(2))
        delta = (grad.float() * out.float()).sum(-1)
        for number, (start, end) in enumerate(_blocks(length)):
            probabilities = kept[number] if kept else _probabilities(q, keys, start, end)
            block = grad[:, :, start:end].reshape(heads, -1, dim)
            grad_v[:, :end] += torch.bmm(probabilities.transpose(1, 2), block)
            grad_scores = torch.bmm(block, v[:, :end].transpose(1, 2))
            deltas = delta[:, :, start:end].flatten(1).contiguous()
            narrow = softmax_gradient(grad_scores, probabilities, deltas, scale=1 / math.sqrt(dim))
            grad_q[:, :, start:end] = torch.bmm(narrow, k[:, :end]).view(heads, group, end - start, dim)
            grad_k[:, :end] += torch.bmm(narrow.transpose(1, 2), q[:, :, start:end].reshape(heads, -1, dim))
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def blockwise_attention(
    q_BTNH: Float[Tensor, "B T N H"], k_BTKH: Float[Tensor, "B T K H"], v_BTKH: Float[Tensor, "B T K H"]
) -> Float[Tensor, "B T N H"]:
    """Causal attention of every row, in the dtype of its inputs."""
    num_kv = k_BTKH.shape[2]
    k, v = (_by_kv_head(part, num_kv).squeeze(1) for part in (k_BTKH, v_BTKH))
    # Autocast would round the float32 scores' product to bf16.
    with torch.autocast(q_BTNH.device.type, enabled=False):
        out: Tensor = _Blockwise.apply(_by_kv_head(q_BTNH, num_kv), k, v)  # pyright: ignore[reportAssignmentType]
    return _as_rows(out, len(q_BTNH))


def is_faster(q_BTNH: Tensor) -> bool:
    """Whether these blocks beat torch's kernel: on a CPU, in rows that are not long, in float32 by the C kernels alone."""
    kind = q_BTNH.dtype
    if dispatch.device_type(q_BTNH.device) != "cpu" or q_BTNH.shape[1] > FASTER_UP_TO.get(kind, 0):
        return False
    return kind == torch.bfloat16 or dispatch.native(q_BTNH.device, kind) is not None
