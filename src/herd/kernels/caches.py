"""The shape of a paged cache: [L, blocks, block_size, K, C] for keys and for values, of every dtype that a cache can hold. No torch.

Shapes: L layers, K KV heads, H head dim, C elements of a cached vector: H, in int8 and fp8 those of its scale too (`int8_rows`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from herd.kernels.buffer import dtype_name
from herd.kernels.checks import require
from herd.kernels.library import CODES

if TYPE_CHECKING:
    from herd.kernels.buffer import Dtype, Memory

SCALE_BYTES = 4
BYTE_NAMES = ("int8", "float8_e4m3fn")
CACHE_DTYPES = (*CODES, *BYTE_NAMES)
"""What a cache can hold. C knows all but fp8, which the reference and the Triton kernels read and write."""


def cache_dtype_name(name: str | None, default: Dtype) -> str:
    """The dtype of a cache by the name that users give it: torch's, or fp8. None: the default."""
    return dtype_name(default) if name is None else "float8_e4m3fn" if name == "fp8" else name


def row_width(head_dim: int, dtype: Dtype) -> int:
    """Elements that a cache of `dtype` has for a vector: H, in int8 and fp8 those of the scale too."""
    return head_dim + SCALE_BYTES if dtype_name(dtype) in BYTE_NAMES else head_dim


def head_dim_of(cache: Memory) -> int:
    """H of a cache whose last dimension is rows."""
    return cache.shape[-1] - (SCALE_BYTES if dtype_name(cache.dtype) in BYTE_NAMES else 0)


def cache_shape(
    *, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: Dtype
) -> tuple[int, int, int, int, int]:
    """The shape of keys and of values, of all layers. Raises ConfigError for a dtype that no cache holds, and for numbers below 1."""
    known = dtype_name(dtype) in CACHE_DTYPES
    require(known, f"a cache cannot hold {dtype}", "float32, bfloat16, float16, int8 and float8_e4m3fn can be stored")
    shape = (num_layers, num_blocks, block_size, num_kv_heads, row_width(head_dim, dtype))
    require(min(shape) > 0, f"a cache of shape {list(shape)} holds nothing", "every number must be positive")
    return shape
