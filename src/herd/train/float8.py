"""Float8 training of the blocks' matrix products: e4m3 forward, e5m2 gradients, one scale a tensor, dynamic. Masters stay as they are.

    y = s_x s_w (q(x / s_x) q(w / s_w)^T),  s = amax / max of the format;  likewise for both gradients.

Embedding, head and norms keep their dtype. Needs `torch._scaled_mm` in hardware: NVIDIA compute capability 8.9 (Ada) or later; it is
refused elsewhere. Sizes that are no multiple of 16 cannot be multiplied in 8 bits and are refused too.
Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from herd.base.errors import ConfigError
from herd.model.linear import Linear
from herd.model.transformer import Transformer

_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_LEAST_CAPABILITY = (8, 9)


class Float8UnsupportedError(ConfigError):
    """Float8 training was asked for on hardware that multiplies no 8-bit numbers, or for sizes that cannot be."""

    code = "float8_unsupported"


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A tensor in 8 bits and the float32 factor that it is to be multiplied by."""
    scale = (x.abs().amax().float() / torch.finfo(dtype).max).clamp(min=1e-12)
    limit = torch.finfo(dtype).max
    return (x.float() / scale).clamp(-limit, limit).to(dtype), scale


def _product(left: Tensor, left_scale: Tensor, right_KN: Tensor, right_scale: Tensor, out: torch.dtype, *, fast: bool = False) -> Tensor:
    """Left right, both in 8 bits: the left one has to lie row by row, the right one column by column.

    `fast` lets the tensor cores add up in fewer bits than float32; it is for the forward alone, as gradients span more of the range.
    """
    return torch._scaled_mm(left, right_KN, scale_a=left_scale, scale_b=right_scale, out_dtype=out, use_fast_accum=fast)  # pyright: ignore[reportPrivateImportUsage]


def _turned(q_MK: Tensor) -> Tensor:
    """The same matrix, column by column."""
    return q_MK.t().contiguous().t()


class _Float8Matmul(torch.autograd.Function):
    """x w^T; both gradients are 8-bit products as well, the weight's in the dtype of the master.

    A tensor's scale is the same whichever way it lies, so each is quantised once: the backward keeps and turns what the forward multiplied.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        (qx, x_scale), (qw, w_scale) = quantise(x.contiguous(), _E4M3), quantise(weight.contiguous(), _E4M3)
        ctx.save_for_backward(qx, x_scale, qw, w_scale)
        ctx.master = weight.dtype
        return _product(qx, x_scale, qw.t(), w_scale, x.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        qx, x_scale, qw, w_scale = ctx.saved_tensors
        grad = grad_outputs[0]
        qg, g_scale = quantise(grad.contiguous(), _E5M2)
        grad_x = _product(qg, g_scale, _turned(qw), w_scale, grad.dtype)
        grad_weight = _product(qg.t().contiguous(), g_scale, _turned(qx), x_scale, grad.dtype)
        return grad_x, grad_weight.to(ctx.master)


class Float8Linear(Linear):
    """A Linear that multiplies in 8 bits while it trains, and as ever without gradients."""

    def forward(self, input: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch N"]:
        """X w^T in 8 bits."""
        if not torch.is_grad_enabled():
            return super().forward(input)
        dtype = torch.get_autocast_dtype(input.device.type) if torch.is_autocast_enabled(input.device.type) else input.dtype
        rows = input.reshape(-1, input.shape[-1]).to(dtype)
        padding = -len(rows) % 16  # the weight's gradient sums over rows
        rows = torch.nn.functional.pad(rows, (0, 0, 0, padding)) if padding else rows
        out: Tensor = _Float8Matmul.apply(rows, self.weight)  # pyright: ignore[reportAssignmentType]
        return out[: len(out) - padding].view(*input.shape[:-1], -1)


def check_float8(device: torch.device) -> None:
    """Raise Float8UnsupportedError where the device multiplies no 8-bit numbers."""
    if device.type != "cuda":
        raise Float8UnsupportedError(
            f"float8=true, and the device is {device.type}: 8-bit products need an NVIDIA GPU of compute capability 8.9 or later",
            hint="set float8=false; compute_dtype=auto is the fastest that this device has",
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        raise Float8UnsupportedError(
            f"float8=true, and {torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, below 8.9",
            hint="set float8=false, or train on an Ada, Hopper or later GPU",
        )


def convert_to_float8(model: Transformer) -> int:
    """Make every matrix of the blocks a `Float8Linear`, in place; names and weights stay. Returns how many.

    Raises Float8UnsupportedError for a matrix whose sizes are no multiples of 16.
    """
    linears = [(name, module) for name, module in model.model.layers.named_modules() if type(module) is Linear]
    for name, module in linears:
        if any(size % 16 for size in module.weight.shape):
            raise Float8UnsupportedError(
                f"float8=true, and layers.{name} is {tuple(module.weight.shape)}: both sizes have to be multiples of 16",
                hint="change hidden_size, intermediate_size or the heads, or set float8=false",
            )
    for _, module in linears:
        module.__class__ = Float8Linear
    return len(linears)


def convert_back(model: Transformer) -> None:
    """Make every `Float8Linear` the plain one that it was."""
    converted: list[Linear] = [module for module in model.modules() if isinstance(module, Float8Linear)]
    for module in converted:
        module.__class__ = Linear
