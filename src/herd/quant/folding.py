"""Scales moved from the inputs of matrices into what makes them: SmoothQuant and AWQ. The model computes the same; it rounds better.

    y = (x / s) (w diag(s))^T, and x / s comes for free: from the norm's weight, from v's rows, from up's rows.

SmoothQuant (arXiv 2211.10438): s = max|x|^a / max|w|^(1-a), so that inputs of 8 bits lose less; a by search. AWQ (arXiv 2306.00978):
s = mean|x|^a, so that the weights of large inputs lose less; a by search, 0 (nothing moved) among them. Both take the a of least error in
the products of calibration. Shapes: K inputs, N outputs, R rows of the sample.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from herd.checkpoint.quant_scheme import MatrixScheme
from herd.kernels.quantised import matmul
from herd.model.config import ModelConfig
from herd.quant.calibration import POINTS, Inputs
from herd.quant.rounding import round_matrix

SHARES = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
_PRODUCERS = {
    "attn_in": "input_layernorm.weight",
    "o_in": "self_attn.v_proj.weight",
    "mlp_in": "post_attention_layernorm.weight",
    "down_in": "mlp.up_proj.weight",
}


def fold(
    tensors: dict[str, Tensor],
    inputs: dict[str, Inputs],
    schemes: Mapping[str, MatrixScheme],
    config: ModelConfig,
    *,
    method: str,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Move scales in a block, in place, where all readers of a point are quantised. Returns the share a of each point.

    Args:
        tensors: the block's, float32, by name within the block.
        inputs: what each point reads; changed along.
        schemes: of the block's quantised matrices, by name within the block.
        config: the model's.
        method: "smooth" or "awq".
        dtype: what norms are stored in: a scale is what remains when the norm's weight has been rounded.
    """
    shares: dict[str, float] = {}
    for point, readers in POINTS.items():
        if not all(name in schemes for name in readers):
            continue
        weights = [tensors[f"{name}.weight"] for name in readers]
        found = [schemes[name] for name in readers]
        share, scale_K = _best(weights, inputs[point], found, point, config, method)
        shares[point] = share
        if share == 0.0 and method == "awq":
            continue
        scale_K = _divide_producer(tensors, point, scale_K, config, dtype)
        for name in readers:
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] * scale_K
        inputs[point] = inputs[point].scaled(scale_K)
    return shares


def _shared(scale_K: Tensor, point: str, config: ModelConfig) -> Tensor:
    """One scale for the query heads that read the same v."""
    if point != "o_in":
        return scale_K
    per_head = scale_K.view(config.num_key_value_heads, -1, config.head_dim)
    return per_head.log().mean(1, keepdim=True).exp().expand_as(per_head).reshape(-1)


def _scales(weights: list[Tensor], inputs: Inputs, share: float, point: str, config: ModelConfig, method: str) -> Tensor:
    if method == "smooth":
        largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).clamp(min=1e-5)
        scale = inputs.largest_K.clamp(min=1e-5).pow(share) / largest.pow(1.0 - share)
    else:
        scale = inputs.mean_K.clamp(min=1e-5).pow(share)
    scale = _shared(scale, point, config)
    return (scale / scale.log().mean().exp()).clamp(1e-3, 1e3)


def _best(
    weights: list[Tensor], inputs: Inputs, schemes: list[MatrixScheme], point: str, config: ModelConfig, method: str
) -> tuple[float, Tensor]:
    best_share, best_scale, least = 0.0, torch.ones_like(inputs.largest_K), None
    for share in SHARES:
        unscaled = share == 0.0
        scale = torch.ones_like(inputs.largest_K) if unscaled else _scales(weights, inputs, share, point, config, method)
        error = sum(_error(weight, inputs, scale, scheme) for weight, scheme in zip(weights, schemes, strict=True))
        if least is None or error < least:
            best_share, best_scale, least = share, scale, error
    return best_share, best_scale


def _error(weight: Tensor, inputs: Inputs, scale: Tensor, scheme: MatrixScheme) -> float:
    """Squared error of the products of calibration. The clip is looked for later, once the scale is found."""
    quantised = round_matrix(weight * scale, scheme, search=False)
    if scheme.activation == "none":
        difference = quantised.dequantise() / scale - weight
        return float(((difference @ inputs.moment_KK) * difference).sum())
    rows = inputs.sample_RK
    return float((matmul(rows / scale, quantised) - rows @ weight.t()).square().sum())


def _divide_producer(tensors: dict[str, Tensor], point: str, scale_K: Tensor, config: ModelConfig, dtype: torch.dtype) -> Tensor:
    """Divide what makes a point's inputs; returns the scale that it was in fact divided by."""
    name = _PRODUCERS[point]
    if point in ("attn_in", "mlp_in"):
        before = tensors[name]
        after = (before / scale_K).to(dtype).float()
        exact = torch.where(after != 0, before / torch.where(after != 0, after, 1.0), 1.0)
        tensors[name] = torch.where(after != 0, after, before)
        return exact
    rows = scale_K
    if point == "o_in":
        rows = scale_K.view(config.num_key_value_heads, -1, config.head_dim)[:, 0].reshape(-1)
    tensors[name] = tensors[name] / rows[:, None]
    return scale_K
