"""Norm, gate and rotation for training on a CPU, with their gradients: one pass of C each way, where torch's operations make five to ten.

    rms_norm:  n = x r, r = rsqrt(mean(x^2) + eps), g = dy w;  y = n w;  dx = r (g - n mean(g n)),  dw = sum over rows of dy n
    swiglu:    y = silu(gate) up;  d gate = dy up s (1 + gate (1 - s)), s = sigmoid(gate);  d up = dy silu(gate)
    rotate:    by an angle; its gradient by the angle turned back

Between the passes only inputs are kept. Registered with torch, so that a step can be traced with tensors that hold nothing
(`train --simulate`). `plain` asks `applies` first. Shapes: M rows, D model dim, F inner dim, B batch, T tokens, N heads, H head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from herd.kernels import dispatch, library, norm
from herd.kernels.checks import refuse
from herd.kernels.library import Library
from herd.kernels.swiglu import swiglu as swiglu_rows


def applies(*tensors: Tensor) -> bool:
    """Whether a gradient is wanted and C runs for these: on a CPU, in float32 or bfloat16, all in one dtype and none cut over ranks.

    The compiler fuses torch's own operations instead.
    """
    first = tensors[0]
    if first.device.type != "cpu" or torch.compiler.is_compiling() or not (torch.is_grad_enabled() and first.numel()):
        return False
    if any(part.dtype != first.dtype or hasattr(part, "placements") for part in tensors):
        return False
    return any(part.requires_grad for part in tensors) and dispatch.native(first.device, first.dtype) is not None


def _library(x: Tensor) -> Library:
    found = dispatch.native(x.device, x.dtype)
    assert found is not None, "applies() was not asked"
    return found


@torch.library.custom_op("herd::rms_norm", mutates_args=(), schema="(Tensor x, Tensor weight, float eps) -> Tensor")
def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return norm.rms_norm(x, weight, eps)


@_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op(
    "herd::rms_norm_gradient", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor grad, float eps) -> (Tensor, Tensor)"
)
def _norm_gradient(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    x_grad, weight_grad = torch.empty_like(x), torch.empty(width, dtype=torch.float32)
    partial = torch.empty(-(-rows // library.GRADIENT_ROWS), width, dtype=torch.float32)
    given = (x.data_ptr(), weight.data_ptr(), grad.data_ptr(), eps, rows, width, library.code(x.dtype))
    library.raise_for(_library(x).rms_norm_gradient(*given, x_grad.data_ptr(), partial.data_ptr(), weight_grad.data_ptr()))
    return x_grad, weight_grad


@_norm_gradient.register_fake
def _(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty(weight.shape, dtype=torch.float32, device=weight.device)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _norm(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        x_grad, weight_grad = _norm_gradient(x, weight, grad_outputs[0].contiguous(), ctx.eps)
        return x_grad, weight_grad.to(weight.dtype), None


def rms_norm(x: Float[Tensor, "*batch D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*batch D"]:
    """The normalised rows; the weight's gradient is summed in float32, 64 rows at a time in ascending order, whatever the threads.

    Raises ConfigError where shapes and dtypes do not fit.
    """
    return _RMSNorm.apply(x.contiguous(), weight.contiguous(), eps)  # pyright: ignore[reportReturnType]


@torch.library.custom_op("herd::swiglu", mutates_args=(), schema="(Tensor gate, Tensor up) -> Tensor")
def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return swiglu_rows(gate, up)


@_swiglu.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return torch.empty_like(gate)


@torch.library.custom_op("herd::swiglu_gradient", mutates_args=(), schema="(Tensor gate, Tensor up, Tensor grad) -> (Tensor, Tensor)")
def _swiglu_gradient(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    gate_grad, up_grad = torch.empty_like(gate), torch.empty_like(up)
    given = (gate.data_ptr(), up.data_ptr(), grad.data_ptr(), gate.numel(), library.code(gate.dtype))
    library.raise_for(_library(gate).swiglu_gradient(*given, gate_grad.data_ptr(), up_grad.data_ptr()))
    return gate_grad, up_grad


@_swiglu_gradient.register_fake
def _(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gate), torch.empty_like(up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        return _swiglu_gradient(*ctx.saved_tensors, grad_outputs[0].contiguous())


def swiglu(gate: Float[Tensor, "*batch F"], up: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch F"]:
    """silu(gate) * up, each step rounded to the dtype, and so are the gradients. Raises ConfigError where shapes and dtypes do not fit."""
    return _SwiGLU.apply(gate.contiguous(), up.contiguous())  # pyright: ignore[reportReturnType]


@torch.library.custom_op("herd::rotate", mutates_args=(), schema="(Tensor x, Tensor cos, Tensor sin) -> Tensor")
def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out, (heads, width) = torch.empty_like(x), x.shape[-2:]
    given = (x.data_ptr(), x.numel() // (heads * width), heads, width, library.code(x.dtype))
    library.raise_for(_library(x).rotate(*given, cos.data_ptr(), sin.data_ptr(), width, cos.numel() // width, out.data_ptr()))
    return out


@_rotate.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.empty_like(x)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad_outputs[0].contiguous(), cos, -sin), None, None


def rotate(x_BTNH: Float[Tensor, "B T N H"], cos: Float[Tensor, "#B T 1 H"], sin: Float[Tensor, "#B T 1 H"]) -> Float[Tensor, "B T N H"]:
    """Every head rotated by the angle of its position. Both halves of a row of the tables, float32, are the same.

    Raises ConfigError for tables of other positions or another width.
    """
    batch, tokens, _, width = x_BTNH.shape
    for name, table in (("cosines", cos), ("sines", sin)):
        if table.shape not in ((1, tokens, 1, width), (batch, tokens, 1, width)) or table.dtype != torch.float32:
            raise refuse(f"{name} are {table.dtype} {list(table.shape)}", f"give float32 [1 or {batch}, {tokens}, 1, {width}]")
    return _Rotation.apply(x_BTNH.contiguous(), cos.contiguous(), sin.contiguous())  # pyright: ignore[reportReturnType]
