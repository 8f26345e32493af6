"""Meta's 8-bit release of the 405B: row-wise float8 (e4m3fn) in the feed-forward matrices of all layers but the first and the last.

A row's scale is the factor that gives its values back: value = code * scale, scale = largest magnitude of the row / 448. Rows are those
of the local shard, so w2, which is cut along its columns, has a scale per row and rank. Scales lie beside it in fp8_scales_{rank}.pt.
Llama 3 report (arXiv 2407.21783), section 6.2. Shapes: R rows of the shard, C columns of the shard.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from herd.model.config import ModelConfig

FP8_DTYPE = torch.float8_e4m3fn
FP8_MAX = 448.0
FP8_MATRICES = ("w1", "w2", "w3")

# A power of two, so that the floor times 448 is exact; it stands in for the scale of a row of zeros.
_SCALE_FLOOR = 2.0**-40


def is_fp8_layer(config: ModelConfig, layer: int) -> bool:
    """Whether a layer's feed-forward matrices are stored in 8 bits: all layers but the first and the last."""
    return 0 < layer < config.num_hidden_layers - 1


def scale_key(layer: int, matrix: str, rank: int) -> str:
    """The name of a matrix's scales in its rank's file."""
    return f"{layer}_feed_forward.{matrix}_{rank}"


def row_scales(rows_RC: Float[Tensor, "R C"]) -> Float[Tensor, "R"]:
    """Each row's scale, float32.

    Multiplying such a scale by 448 and dividing again gives it back for every float32 (`tests` try them all), so that storing what was read
    gives the same bytes.
    """
    largest = rows_RC.abs().amax(dim=1).float()
    # A tensor, as GPUs replace the division by a number with a product by its reciprocal, which rounds differently.
    return (largest / torch.full_like(largest, FP8_MAX)).clamp(min=_SCALE_FLOOR)


def quantise_rows(rows_RC: Float[Tensor, "R C"]) -> tuple[Tensor, Float[Tensor, "R"]]:
    """Codes in float8_e4m3fn and the scales that give the rows back."""
    scales = row_scales(rows_RC)
    codes = (rows_RC.float() / scales[:, None]).clamp_(-FP8_MAX, FP8_MAX).to(FP8_DTYPE)
    return codes, scales


def dequantise_rows(codes_RC: Tensor, scales_R: Float[Tensor, "R"]) -> Float[Tensor, "R C"]:
    """The rows in float32."""
    return codes_RC.float().mul_(scales_R[:, None])
