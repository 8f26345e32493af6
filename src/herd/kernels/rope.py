"""Rotary positions and the cache: rotate q in place, write rotated k and v into paged caches, in one pass.

    out[i] = x[i] cos[i] - x[i + H/2] sin[i];  out[i + H/2] = x[i + H/2] cos[i] + x[i] sin[i]

in float32, each product and the sum rounded by itself, cast back: the model's bits (model.rope). k is rounded to the model's dtype before
it is stored in the cache's. A cache is [blocks, block_size, K, C], one for keys and one for values of each layer; `make_cache` lays out all
layers as [L, blocks, block_size, K, C]: a token is one run of K * C elements to write, and a decode reads the blocks of a split, all heads,
as one run each.
Shapes: T tokens, N query heads, K KV heads, H head dim, C elements of a cached vector: H, in int8 and
fp8 those of its scale too, P positions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Real
from torch import Tensor

from herd.kernels import dispatch, library, memory
from herd.kernels.batch import Batch
from herd.kernels.buffer import dtype_name
from herd.kernels.caches import CACHE_DTYPES, cache_shape, row_width
from herd.kernels.checks import refuse, require
from herd.kernels.int8_rows import stored

_BLOCK = 512


class RopeTable:
    """Cosines and sines of positions 0, 1, ..., float32 [P, H/2], computed 512 positions at a time as they are needed.

    Always the same blocks, since torch may compute the odd end of an array by another cosine: a position's angle then has one value.
    """

    def __init__(self, frequencies: Float[Tensor, "F"]) -> None:
        self.frequencies = frequencies.float().cpu()
        require(len(frequencies) > 0, "no frequencies to rotate by", "give H/2 of them")
        empty = torch.empty(0, len(frequencies))
        self._table = (empty, empty)

    def upto(self, num_positions: int) -> tuple[Float[Tensor, "P F"], Float[Tensor, "P F"]]:
        """Tables of at least so many positions."""
        cos, _ = table = self._table
        if len(cos) < num_positions:
            wanted = max(num_positions, 2 * len(cos))
            blocks = [self._block(begin) for begin in range(len(cos), wanted, _BLOCK)]
            table = tuple(torch.cat([old, *new]) for old, new in zip(table, zip(*blocks, strict=True), strict=True))
            self._table = (table[0], table[1])
        return self._table

    def _block(self, begin: int) -> tuple[Tensor, Tensor]:
        angles = torch.arange(begin, begin + _BLOCK)[:, None].float() * self.frequencies
        return angles.cos(), angles.sin()


def make_cache(
    *, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[Real[Tensor, "L blocks block_size K C"], Real[Tensor, "L blocks block_size K C"]]:
    """Zeroed key and value caches of every layer, on huge pages where there are any. `cache[layer]` is what the ops take."""
    sizes = {"num_layers": num_layers, "num_blocks": num_blocks, "block_size": block_size}
    shape = cache_shape(**sizes, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype)
    return memory.zeros(shape, dtype), memory.zeros(shape, dtype)


def check_caches(key_cache: Tensor, value_cache: Tensor, batch: Batch, kv_heads: int, head_dim: int) -> None:
    """Both caches have the batch's blocks and the model's heads, and lie in one piece. Raises ConfigError otherwise."""
    shape = (batch.num_blocks, batch.block_size, kv_heads, row_width(head_dim, key_cache.dtype))
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        if cache.shape != shape or dtype_name(cache.dtype) not in CACHE_DTYPES or cache.dtype != key_cache.dtype:
            raise refuse(
                f"{name} is {cache.dtype} {list(cache.shape)}, expected {list(shape)} in a dtype of caches, both alike",
                "make them with make_cache, and plan the batch for the same blocks",
            )
        if not cache.is_contiguous():
            raise refuse(f"{name} has strides {list(cache.stride())}", "a layer's cache must be contiguous")


def check_heads(name: str, x: Tensor, tokens: int, dtype: torch.dtype) -> None:
    """[T, heads, H] with heads side by side; tokens may be apart, as in a view of a fused qkv product."""
    shape = x.shape
    if len(shape) != 3 or shape[0] != tokens or x.dtype != dtype:
        raise refuse(f"{name} is {x.dtype} {list(shape)}, expected {dtype} [{tokens}, heads, head_dim]", "check it against the batch")
    _, heads, head_dim = shape
    apart, between, inner = x.stride()
    if inner != 1 or (between != head_dim and heads != 1) or (tokens > 1 and apart < heads * head_dim):
        raise refuse(f"{name} has strides {[apart, between, inner]} for shape {list(shape)}", "heads must lie side by side")


def rope_write(
    q: Float[Tensor, "T N H"],
    k: Float[Tensor, "T K H"],
    v: Float[Tensor, "T K H"],
    table: RopeTable,
    key_cache: Real[Tensor, "blocks block_size K C"],
    value_cache: Real[Tensor, "blocks block_size K C"],
    batch: Batch,
) -> None:
    """Rotate q in place; write rotated k and plain v to the batch's slots. q, k and v may be views of one product.

    Raises ConfigError where a shape, dtype or stride does not fit.
    """
    tokens, head_dim = batch.num_tokens, q.shape[-1]
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_heads(name, x, tokens, q.dtype)
        if x.shape[2] != head_dim:
            raise refuse(f"{name} has heads of {x.shape[2]}, q of {head_dim}", "they must agree")
    if k.shape != v.shape:
        raise refuse(f"k is {list(k.shape)} and v {list(v.shape)}", "they must have one shape")
    if head_dim != 2 * len(table.frequencies):
        raise refuse(f"heads of {head_dim} and {len(table.frequencies)} frequencies", "give H/2 frequencies")
    check_caches(key_cache, value_cache, batch, k.shape[1], head_dim)
    cos, sin = table.upto(batch.num_positions)
    found = dispatch.native(q.device, q.dtype)
    known = library.cache_code(key_cache.dtype) is not None and (key_cache.dtype != torch.int8 or head_dim <= library.MAX_HEAD_DIM)
    if found is None or not known:
        reference(q, k, v, cos, sin, key_cache, value_cache, batch)
        return
    rows = (q.data_ptr(), q.stride(0), k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0))
    sizes = (library.code(q.dtype), tokens, q.shape[1], k.shape[1], head_dim)
    places = (cos.data_ptr(), sin.data_ptr(), batch.positions.data_ptr(), batch.slots.data_ptr())
    caches = (key_cache.data_ptr(), value_cache.data_ptr(), library.cache_code(key_cache.dtype))
    library.raise_for(found.rope_write(*rows, *sizes, *places, *caches))


def reference(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, key_cache: Tensor, value_cache: Tensor, batch: Batch) -> None:
    """The oracle: herd.model's rotation, then an indexed write."""
    cos_T1H, sin_T1H = (torch.cat((rows, rows), dim=-1)[:, None] for rows in (cos[batch.positions], sin[batch.positions]))

    def rotate(x_TNH: Tensor) -> Tensor:
        x = x_TNH.float()
        first, second = x.chunk(2, dim=-1)
        return (x * cos_T1H + torch.cat((-second, first), dim=-1) * sin_T1H).to(x_TNH.dtype)

    q.copy_(rotate(q))
    for cache, rows in ((key_cache, rotate(k)), (value_cache, v)):
        cache.flatten(0, 1)[batch.slots] = stored(rows, cache.dtype)
