"""paged_attention: causal attention of a ragged batch over paged keys and values; chunks of prompts and decoding tokens in one call.

Token t of sequence s, at position p, sees keys 0..p of its sequence; query head n reads KV head n // (N/K); softmax in float32.
One order of summation, by positions alone, in C and in the reference: splits of 128 keys aligned at position 0, each with its own softmax,
merged in ascending order (csrc/attention.c tells the details). A token's output is the same alone, in a chunk and in a batch.
In int8 and fp8 the bytes are multiplied as numbers: a key's scale multiplies its scores, a value's scale its probabilities. Each
implementation is attention over the dequantised vectors within the bound of any other cache (tests/kernels/paged.py).
    m' = max(m, m_j);  l' = l e^(m - m') + l_j e^(m_j - m');  o' = o e^(m - m') + o_j e^(m_j - m');  output o / l
Shapes: T tokens, N query heads, K KV heads, G = N/K, H head dim, C elements of a cached vector, S sequences.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor

from herd.kernels import dispatch, library, tiles
from herd.kernels.batch import Batch
from herd.kernels.checks import refuse
from herd.kernels.int8_rows import BYTE_DTYPES, numbers_of, scales_of
from herd.kernels.rope import check_caches, check_heads


def paged_attention(
    q: Float[Tensor, "T N H"],
    key_cache: Real[Tensor, "blocks block_size K C"],
    value_cache: Real[Tensor, "blocks block_size K C"],
    batch: Batch,
    out: Float[Tensor, "T N H"] | None = None,
) -> Float[Tensor, "T N H"]:
    """Attention outputs of the batch's tokens, whose keys and values are in the caches already; scores are divided by sqrt(H).

    Raises ConfigError where a shape, dtype or stride does not fit.
    """
    tokens, (heads, head_dim), kv_heads = batch.num_tokens, q.shape[1:], key_cache.shape[2]
    check_heads("q", q, tokens, q.dtype)
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    check_heads("out", out, tokens, q.dtype)
    if out.shape != q.shape:
        raise refuse(f"out is {list(out.shape)}, q {list(q.shape)}", "they must have one shape")
    if heads % kv_heads:
        raise refuse(f"{heads} query heads cannot share {kv_heads} KV heads", "the one must be a multiple of the other")
    check_caches(key_cache, value_cache, batch, kv_heads, head_dim)
    found = dispatch.native(q.device, q.dtype)
    unknown = head_dim > library.MAX_HEAD_DIM or head_dim % 2 or heads // kv_heads > library.MAX_GROUP
    if found is None or unknown or library.cache_code(key_cache.dtype) is None:
        out.copy_(reference(q, key_cache, value_cache, batch))
        return out
    rows = (q.data_ptr(), q.stride(0), library.code(q.dtype), heads, kv_heads, head_dim, head_dim**-0.5)
    caches = (key_cache.data_ptr(), value_cache.data_ptr(), library.cache_code(key_cache.dtype), batch.block_size)
    table = (batch.block_table.data_ptr(), batch.block_table.stride(0), batch.starts.data_ptr(), batch.first.data_ptr())
    library.raise_for(found.attention(*rows, *caches, *table, batch.num_sequences, out.data_ptr(), out.stride(0)))
    return out


def reference(q: Tensor, key_cache: Tensor, value_cache: Tensor, batch: Batch) -> Tensor:
    """The oracle: tiles of 16 query rows of each KV head by splits of 128 keys, every product at that one shape."""
    out = torch.empty_like(q)
    starts, first = batch.starts.tolist(), batch.first.tolist()
    for s, (begin, end) in enumerate(pairwise(starts)):
        if begin == end:
            continue
        positions = torch.arange(first[s], first[s] + end - begin, device=q.device)
        seen = torch.arange(int(positions[-1]) + 1, device=q.device)
        slots = batch.block_table[s].to(q.device)[seen // batch.block_size].long() * batch.block_size + seen % batch.block_size
        k, v = (cache.flatten(0, 1)[slots] for cache in (key_cache, value_cache))
        if k.dtype in BYTE_DTYPES:
            scales = (_scale_splits(scales_of(k)), _scale_splits(scales_of(v)))
            out[begin:end] = _sequence(q[begin:end], _splits(numbers_of(k)), _splits(numbers_of(v)), positions, scales)
        else:
            out[begin:end] = _sequence(q[begin:end], _splits(k), _splits(v), positions)
    return out


def dense_reference(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
    """The same for one whole sequence without a cache: token t is at position t."""
    if not len(q_TNH):
        return q_TNH
    return _sequence(q_TNH, _splits(k_TKH), _splits(v_TKH), torch.arange(len(q_TNH), device=q_TNH.device))


def _splits(x_SKH: Tensor) -> Tensor:
    """[splits, K, 128, H] in float32, padded with zeros."""
    padded = F.pad(x_SKH.float(), (0, 0, 0, 0, 0, -len(x_SKH) % library.SPLIT))
    return tiles.align(padded.view(-1, library.SPLIT, *x_SKH.shape[1:]).transpose(1, 2), 1).contiguous()


def _scale_splits(x_SK: Tensor) -> Tensor:
    """[splits, K, 1, 128], padded with zeros."""
    padded = F.pad(x_SK, (0, 0, 0, -len(x_SK) % library.SPLIT))
    return padded.view(-1, library.SPLIT, x_SK.shape[1]).transpose(1, 2)[:, :, None].contiguous()


def _sequence(q_TNH: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scales: tuple[Tensor, Tensor] | None = None) -> Tensor:
    tokens, heads, head_dim = q_TNH.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    rows = q_TNH.float().view(tokens, kv_heads, group, head_dim).transpose(0, 1).reshape(kv_heads, tokens * group, head_dim)
    rows = tiles.align(F.pad(rows, (0, 0, 0, -rows.shape[1] % tiles.ROWS)), 1)
    at = F.pad(positions.repeat_interleave(group), (0, -tokens * group % tiles.ROWS), value=-1)
    found = [
        _tile(tile, keys, values, place, head_dim**-0.5, scales)
        for tile, place in zip(rows.split(tiles.ROWS, 1), at.split(tiles.ROWS), strict=True)
    ]
    out = torch.cat(found, dim=1)[:, : tokens * group, :head_dim]
    return out.reshape(kv_heads, tokens, group, head_dim).transpose(0, 1).reshape(q_TNH.shape).to(q_TNH.dtype)


def _tile(q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scale: float, scales: tuple[Tensor, Tensor] | None) -> Tensor:
    """16 rows of every KV head; a row of padding stands at position -1 and sees nothing."""
    m = q.new_full(q.shape[:2], -torch.inf)
    total, out = torch.zeros_like(m), torch.zeros_like(q)
    for split in range(int(positions.max()) // library.SPLIT + 1):
        key = torch.arange(split * library.SPLIT, (split + 1) * library.SPLIT, device=q.device)
        visible = key[None] <= positions[:, None]
        products = torch.matmul(q.contiguous(), keys[split].transpose(1, 2))
        if scales is not None:
            products = products * scales[0][split]
        scores = torch.where(visible, products * scale, -torch.inf)
        some = visible[:, 0]
        split_m = torch.where(some, scores.amax(-1), 0.0)
        p = torch.where(visible, tiles.by_elements(torch.exp, scores - split_m[..., None]), 0.0)
        high = torch.where(some, torch.maximum(m, split_m), m)
        keep = torch.where(some, tiles.by_elements(torch.exp, m - high), 1.0)
        take = torch.where(some, tiles.by_elements(torch.exp, split_m - high), 0.0)
        total = total * keep + p.sum(-1) * take
        weights = p if scales is None else p * scales[1][split]
        out = out * keep[..., None] + torch.matmul(weights, values[split]) * take[..., None]
        m = high
    return out / total.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
